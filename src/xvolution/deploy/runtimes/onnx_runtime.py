"""ONNX Runtime, on the CPU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from xvolution.deploy.runtimes.base import LoadedFile, register
from xvolution.deploy.runtimes.onnx_files import CHECKSUM, OnnxReader, OnnxWriter

if TYPE_CHECKING:
    from onnxruntime import InferenceSession


class OnnxSession(LoadedFile):
    """An ONNX file in ONNX Runtime.

    Attributes:
        input_names: of the graph, in its order.
        input_shapes: of the inputs; None for an open axis.
        output_names: of the graph, in its order.
        properties: the file's metadata, without its checksum.
    """

    def __init__(self, runtime: OnnxRuntime, path: Path, session: InferenceSession) -> None:
        super().__init__(runtime, path)
        self._session = session
        inputs = session.get_inputs()
        self.input_names: tuple[str, ...] = tuple(node.name for node in inputs)
        self.input_shapes: tuple[tuple[int | None, ...], ...] = tuple(
            tuple(size if isinstance(size, int) else None for size in node.shape) for node in inputs
        )
        self.output_names: tuple[str, ...] = tuple(node.name for node in session.get_outputs())
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

    def _write_from(self, write_onnx: OnnxWriter, path: Path) -> None:
        write_onnx(path)

    def _load(self, path: Path, threads: int | None, input_shapes: Sequence[Sequence[int]] | None) -> OnnxSession:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = threads or 0
        return OnnxSession(self, path, onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"]))
