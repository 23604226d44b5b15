"""ONNX files, run by ONNX Runtime; their metadata travel in the file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from torch import nn

from xvolution.deploy.runtimes import ExportError
from xvolution.deploy.runtimes.onnx_files import is_intact
from xvolution.deploy.runtimes.onnx_runtime import OnnxRuntime, OnnxSession
from xvolution.training.errors import InputError
from xvolution.training.metadata import HEADER, SKIP_CHECKSUM, read_description


class OnnxNetwork(nn.Module):
    """A network in an ONNX file, on the CPU, as if it were a module; a subclass says what its forward takes and returns.

    Args:
        path: the file.
        checksum: compare the file with the checksum in it, where it has one.

    Raises:
        InputError: there is no such file, or it is no ONNX network.
    """

    def __init__(self, path: str | os.PathLike[str], checksum: bool = True) -> None:
        super().__init__()
        if not Path(path).is_file():
            raise InputError(f"there is no file {path}.")
        if checksum and is_intact(path) is False:
            raise InputError(f"{path} is damaged: its checksum is of other contents. {SKIP_CHECKSUM}")
        try:
            self.session: OnnxSession = OnnxRuntime().load(path)
        except ExportError as error:
            raise InputError(f"{path} is no ONNX network that ONNX Runtime can run, or it is damaged.") from error
        self.path = path

    @property
    def header(self) -> dict[str, Any]:
        """`to_dict` of the metadata.

        Raises:
            InputError: the file has none.
        """
        if HEADER not in self.session.properties:
            raise InputError(
                f"{self.path} does not say how to prepare its images; it was not written by `xvolution deploy`."
            )
        return read_description(self.session.properties[HEADER])
