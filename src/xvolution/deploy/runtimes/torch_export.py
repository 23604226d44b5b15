"""torch itself, running what ``torch.export`` captured."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.export import ExportedProgram

from xvolution.conversion.outputs import TOLERANCE, tensors_in
from xvolution.deploy.latency import cpu_threads
from xvolution.deploy.runtimes.base import ExportError, LoadedFile, Runtime, register


class LoadedProgram(LoadedFile):
    """A program of ``torch.export``; its outputs are where its weights are, nested ones in one list."""

    def __init__(self, runtime: TorchExport, path: Path, module: Callable[..., Any], threads: int | None) -> None:
        super().__init__(runtime, path)
        self._module = module
        self._threads = threads

    def _run(self, inputs: tuple[Tensor, ...]) -> list[Tensor]:
        limited = nullcontext() if self._threads is None else cpu_threads(self._threads)
        with torch.no_grad(), limited:
            return tensors_in(self._module(*inputs))


@register
class TorchExport(Runtime[LoadedProgram]):
    """``.pt2`` files."""

    name = "torch_export"
    title = "torch.export"
    ending = ".pt2"
    packages = ()
    computes_in: ClassVar = {dtype: dtype for dtype in TOLERANCE}

    def version(self) -> str:
        return torch.__version__

    def _write(self, program: ExportedProgram, path: Path, opset_version: int | None) -> None:
        if opset_version is not None:
            raise ExportError(
                f"opset_version is {opset_version}, which is ONNX's, and a .pt2 file has none; leave it out"
            )
        # torch's archive writer ends the process where the disk is full, and never where it writes to memory.
        archive = io.BytesIO()
        torch.export.save(program, archive)
        path.write_bytes(archive.getbuffer())

    def _load(self, path: Path, threads: int | None, input_shapes: Sequence[Sequence[int]] | None) -> LoadedProgram:
        return LoadedProgram(self, path, torch.export.load(path).module(), threads)
