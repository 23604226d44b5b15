"""Modules in the runtimes that files are written for; each file is written once in a bench."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Hashable
from functools import partial
from pathlib import Path

from torch import Tensor, nn

from xvolution.deploy.export import export
from xvolution.deploy.runtimes import RUNTIMES, LoadedFile, OnnxReader, Runtime

ONNX = "onnxruntime"


class WrittenFiles:
    """Files by their content, in a folder that is deleted with this object.

    Runtimes that read ONNX share a file, which takes longer to write and to compare than to time. Sizes are fixed in it: with
    open axes the graph has the same nodes, and takes several times as long to write.
    """

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self._paths: dict[tuple[str, Hashable], Path] = {}

    def runner(
        self, runtime: str, module: nn.Module, x: Tensor, content: Hashable, threads: int
    ) -> Callable[[], object]:
        """A call of ``module`` in a runtime.

        Args:
            runtime: its name in ``RUNTIMES``.
            module: module in eval mode; it is written if there is no file with this content.
            x: (N, C, H, W), the only input that it will be called with.
            content: distinguishes files for inputs of one size; equal for modules that compute the same.
            threads: number of CPU threads.

        Raises:
            ExportError: the module cannot be written or run there.
        """
        path = self._written(RUNTIMES[runtime], module, x, (content, tuple(x.shape)))
        loaded = RUNTIMES[runtime].load(path, threads=threads, input_shapes=[x.shape])
        return partial(self._run, loaded, x)

    def _run(self, loaded: LoadedFile, x: Tensor) -> object:
        """Bound to this object, so that the file is there as long as its call."""
        return loaded(x)

    def _written(self, runtime: Runtime[LoadedFile], module: nn.Module, x: Tensor, content: Hashable) -> Path:
        key = (runtime.name, content)
        if key not in self._paths:
            reads_onnx = isinstance(runtime, OnnxReader) and runtime.name != ONNX
            source = self._written(RUNTIMES[ONNX], module, x, content) if reads_onnx else None
            path = Path(self._folder.name, f"{len(self._paths)}{runtime.ending}")
            if isinstance(runtime, OnnxReader) and source is not None:
                runtime.write_from(partial(shutil.copyfile, source), path)
            else:
                export(module, path, example_inputs=x, dynamic=False)
            self._paths[key] = path
        return self._paths[key]
