"""Exported files with the metadata of their network, run by the runtime of their ending."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import nn

from xvolution.deploy.runtimes import ExportError, LoadedFile, Runtime
from xvolution.deploy.runtimes.base import find_runtime
from xvolution.training.errors import InputError
from xvolution.training.metadata import HEADER, SKIP_CHECKSUM, read_description


def runtime_that_runs(path: str | os.PathLike[str]) -> Runtime[LoadedFile] | None:
    """The runtime of an exported file, by its ending; None for a weights file."""
    return find_runtime(path)


def read_exported_header(path: str | os.PathLike[str], runtime: Runtime[LoadedFile]) -> dict[str, Any]:
    """`to_dict` of the metadata of an exported file.

    Raises:
        InputError: there is no such file, the runtime is missing or does not take it, or it was not written by this library.
    """
    text = _properties(path, runtime).get(HEADER)
    # Before 0.2.0, .xml and .pt2 files had it beside them.
    beside = Path(f"{os.fspath(path)}.json")
    if text is None and beside.is_file():
        text = beside.read_text(encoding="utf-8")
    if text is None:
        raise InputError(f"{path} does not say how to prepare its images; it was not written by `xvolution deploy`.")
    return read_description(text)


def _properties(path: str | os.PathLike[str], runtime: Runtime[LoadedFile]) -> dict[str, str]:
    try:
        return runtime.properties(path)
    except FileNotFoundError as error:
        raise InputError(f"there is no file {path}.") from error
    except (ExportError, OSError, UnicodeError) as error:
        raise InputError(_unopened(path, runtime, error)) from error


def _unopened(path: str | os.PathLike[str], runtime: Runtime[LoadedFile], error: Exception) -> str:
    return f"{path} is not a network that {runtime.title} can run here, or it is damaged ({error})."


class ExportedNetwork(nn.Module):
    """A network in an exported file, as a module on the CPU; a subclass defines the inputs and outputs of its forward.

    Args:
        path: the file.
        runtime: the runtime that runs it.
        checksum: check the file against the checksum stored in it, if it has one.

    Raises:
        InputError: there is no such file, it is damaged, or the runtime is missing or does not take it.
    """

    def __init__(self, path: str | os.PathLike[str], runtime: Runtime[LoadedFile], checksum: bool = True) -> None:
        super().__init__()
        try:
            if checksum and runtime.is_intact(path) is False:
                raise InputError(f"{path} is damaged: its checksum does not match its contents. {SKIP_CHECKSUM}")
            self.file: LoadedFile = runtime.load(path)
        except FileNotFoundError as error:
            raise InputError(f"there is no file {path}.") from error
        except (ExportError, OSError) as error:
            raise InputError(_unopened(path, runtime, error)) from error
        self.path = path

    def run(self, *inputs: torch.Tensor) -> list[torch.Tensor]:
        """The outputs of the graph, in their order.

        Raises:
            InputError: it does not run on inputs of these shapes.
        """
        try:
            return self.file(*(x.cpu() for x in inputs))
        except ExportError as error:
            shapes = ", ".join(str(tuple(x.shape)) for x in inputs)
            raise InputError(f"{self.path} does not run on images of the shape {shapes}: {error}.") from error
