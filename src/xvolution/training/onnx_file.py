"""ONNX files, run by ONNX Runtime; their metadata travel in the file."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from torch import nn

from xvolution.training.errors import InputError
from xvolution.training.files import atomic_path
from xvolution.training.metadata import HEADER, Metadata


class OnnxNetwork(nn.Module):
    """A network in an ONNX file, on the CPU, as if it were a module; a subclass says what its forward takes and returns.

    Raises:
        InputError: there is no such file, or it is no ONNX network.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        super().__init__()
        import onnxruntime

        if not Path(path).is_file():
            raise InputError(f"there is no file {path}.")
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        try:
            self.session: Any = onnxruntime.InferenceSession(
                os.fspath(path), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # ONNX Runtime raises a class of its own for each status code
            raise InputError(f"{path} is no ONNX network that ONNX Runtime can run, or it is damaged.") from error
        self.path = path

    @property
    def properties(self) -> dict[str, str]:
        """What is written in the file beside the network."""
        return self.session.get_modelmeta().custom_metadata_map

    @property
    def header(self) -> dict[str, Any]:
        """`to_dict` of the metadata.

        Raises:
            InputError: the file has none.
        """
        if HEADER not in self.properties:
            raise InputError(
                f"{self.path} does not say how to prepare its images; it was not written by `xvolution deploy`."
            )
        return json.loads(self.properties[HEADER])


def write_properties(path: str | os.PathLike[str], metadata: Metadata) -> None:
    """Put the metadata into an ONNX file.

    Raises:
        RunError: the file cannot be written.
    """
    import onnx

    network = onnx.load(os.fspath(path))
    onnx.helper.set_model_props(network, {HEADER: metadata.to_json()})
    with atomic_path(path) as temporary:
        onnx.save(network, os.fspath(temporary))
