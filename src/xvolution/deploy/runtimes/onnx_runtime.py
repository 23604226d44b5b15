"""ONNX Runtime, on the CPU."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from xvolution.deploy.runtimes.base import LoadedFile, register
from xvolution.deploy.runtimes.labels import Labels
from xvolution.deploy.runtimes.onnx_files import CHECKSUM, OnnxReader, OnnxWriter, is_intact, write_labels

if TYPE_CHECKING:
    from onnxruntime import InferenceSession


class OnnxSession(LoadedFile):
    """An ONNX file in ONNX Runtime.

    Attributes:
        input_names: of the graph, in its order.
        properties: the file's metadata, without its checksum.
    """

    def __init__(self, runtime: OnnxRuntime, path: Path, session: InferenceSession) -> None:
        inputs = session.get_inputs()
        shapes = [[size if isinstance(size, int) else None for size in node.shape] for node in inputs]
        super().__init__(runtime, path, shapes, [node.name for node in session.get_outputs()])
        self._session = session
        self.input_names: tuple[str, ...] = tuple(node.name for node in inputs)
        stored = session.get_modelmeta().custom_metadata_map
        self.properties: Mapping[str, str] = {key: value for key, value in stored.items() if key != CHECKSUM}

    def _run(self, inputs: tuple[Tensor, ...]) -> list[Tensor]:
        arrays = [x.detach().cpu().contiguous().numpy() for x in inputs]
        outputs = self._session.run(None, dict(zip(self.input_names, arrays, strict=True)))
        return [torch.from_numpy(y) for y in outputs]


@register
class OnnxRuntime(OnnxReader[OnnxSession]):
    """``.onnx`` files, run by ONNX Runtime's own CPU kernels."""

    name = "onnxruntime"
    title = "ONNX Runtime"
    ending = ".onnx"
    packages = ("onnxruntime",)
    writer_packages = ("onnx", "onnxscript")
    computes_in: ClassVar = {dtype: dtype for dtype in (torch.float32, torch.float16, torch.float64)}

    def version(self) -> str:
        import onnxruntime

        return onnxruntime.__version__

    def files_of(self, path: Path) -> tuple[Path, ...]:
        return (path, path.with_name(f"{path.name}.data"))

    def is_intact(self, path: str | os.PathLike[str]) -> bool | None:
        return is_intact(path)

    def _label(self, path: Path, labels: Labels) -> None:
        write_labels(path, labels)

    def _properties(self, path: Path) -> dict[str, str]:
        return dict(self.load(path).properties)

    def _write_from(self, write_onnx: OnnxWriter, path: Path) -> None:
        write_onnx(path)

    def _load(self, path: Path, threads: int | None, input_shapes: Sequence[Sequence[int]] | None) -> OnnxSession:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = threads or 0
        return OnnxSession(self, path, onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"]))
