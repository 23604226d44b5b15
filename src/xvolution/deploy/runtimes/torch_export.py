"""torch itself, running what ``torch.export`` captured."""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.export import ExportedProgram

from xvolution.conversion.outputs import TOLERANCE, tensors_in
from xvolution.deploy.latency import cpu_threads
from xvolution.deploy.runtimes.base import LoadedFile, Runtime, register
from xvolution.deploy.runtimes.labels import Labels
from xvolution.deploy.runtimes.pt2_files import read_extra_files, require_plain, write_extra_files


class LoadedProgram(LoadedFile):
    """A program of ``torch.export``; its outputs are on the device of its weights, nested ones in one list."""

    def __init__(self, runtime: TorchExport, path: Path, program: ExportedProgram, threads: int | None) -> None:
        taken = program.graph_signature.user_inputs
        values = {node.name: node.meta.get("val") for node in program.graph.nodes if node.op == "placeholder"}
        images = [values[name] for name in taken if isinstance(values.get(name), Tensor)]
        shapes = [[size if isinstance(size, int) else None for size in image.shape] for image in images]
        super().__init__(runtime, path, shapes, program.graph_signature.user_outputs)
        self._module: Callable[..., Any] = program.module()
        self._threads = threads

    def _run(self, inputs: tuple[Tensor, ...]) -> list[Tensor]:
        limited = nullcontext() if self._threads is None else cpu_threads(self._threads)
        with torch.no_grad(), limited:
            return tensors_in(self._module(*inputs))


@register
class TorchExport(Runtime[LoadedProgram]):
    """``.pt2`` files, which hold the program as data. A file that could run other code when it is read is refused.

    Inputs are given by position and have no names; properties are extra files of the archive.
    """

    name = "torch_export"
    title = "torch.export"
    ending = ".pt2"
    packages = ()
    computes_in: ClassVar = {dtype: dtype for dtype in TOLERANCE}

    def version(self) -> str:
        return torch.__version__

    def _write(self, program: ExportedProgram, path: Path, opset_version: int | None) -> None:
        # torch's archive writer ends the process where the disk is full, and never where it writes to memory.
        archive = io.BytesIO()
        torch.export.save(program, archive)
        path.write_bytes(archive.getbuffer())

    def _load(self, path: Path, threads: int | None, input_shapes: Sequence[Sequence[int]] | None) -> LoadedProgram:
        require_plain(path)
        return LoadedProgram(self, path, torch.export.load(path), threads)

    def is_intact(self, path: str | os.PathLike[str]) -> bool | None:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None

    def _label(self, path: Path, labels: Labels) -> None:
        write_extra_files(path, labels.properties)

    def _properties(self, path: Path) -> dict[str, str]:
        return read_extra_files(path)
