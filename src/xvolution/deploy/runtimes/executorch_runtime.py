"""ExecuTorch with XNNPACK, on the CPU."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar
from weakref import WeakSet

import torch
from torch import Tensor
from torch.export import ExportedProgram

from xvolution.deploy.runtimes.base import LoadedFile, Runtime, quiet, register


class ExecutorchMethod(LoadedFile):
    """A program of ExecuTorch; the types of its parts are the package's, which are written in C++."""

    def __init__(self, runtime: ExecuTorch, path: Path, program: Any) -> None:
        super().__init__(runtime, path)
        # The method reads its weights from the program's memory.
        self._program, self._method = program, program.load_method("forward")
        _alive.add(self)

    def _run(self, inputs: tuple[Tensor, ...]) -> list[Tensor]:
        outputs = self._method.execute([x.detach().cpu().contiguous() for x in inputs])
        # The next call writes its outputs into the same memory.
        return [y.clone() for y in outputs]


#: Methods hold the pool of threads that they were loaded with, so that it cannot be changed before they are gone.
_alive: WeakSet[ExecutorchMethod] = WeakSet()


def _set_threads(number: int) -> None:
    """Set the number of XNNPACK's threads; a process has one thread pool."""
    from executorch.extension.pybindings import portable_lib

    there = portable_lib._threadpool_get_thread_count()
    if number == there:
        return
    if _alive:
        raise ValueError(
            f"threads is {number}, but files that are already open use {there} threads, and a process has one "
            f"thread pool; give threads={there}, or close those files first"
        )
    portable_lib._unsafe_reset_threadpool(number)


@register
class ExecuTorch(Runtime[ExecutorchMethod]):
    """``.pte`` files, of a fixed size, their convolutions computed by XNNPACK in fp32."""

    name = "executorch"
    title = "ExecuTorch"
    ending = ".pte"
    packages = ("executorch",)
    writer_packages = ("torchao",)
    extra = "executorch"
    computes_in: ClassVar = {torch.float32: torch.float32}

    def version(self) -> str:
        from executorch.version import __version__

        return __version__

    def _write(self, program: ExportedProgram, path: Path, opset_version: int | None) -> None:
        if program.range_constraints:
            # Memory is planned when the file is written, for the largest size, and an open axis has none.
            raise ValueError("ExecuTorch plans memory for fixed sizes")
        with quiet():
            from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
            from executorch.exir import to_edge_transform_and_lower

            lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
            path.write_bytes(lowered.to_executorch().buffer)

    def _load(self, path: Path, threads: int | None, input_shapes: Sequence[Sequence[int]] | None) -> ExecutorchMethod:
        from executorch.runtime import Runtime as Executor

        if threads is not None:
            _set_threads(threads)
        return ExecutorchMethod(self, path, Executor.get().load_program(path))
