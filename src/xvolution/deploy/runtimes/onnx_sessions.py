"""ONNX files in sessions of ONNX Runtime, whichever of its providers computes them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from xvolution.deploy.runtimes.base import LoadedFile, Runtime
from xvolution.deploy.runtimes.labels import Labels
from xvolution.deploy.runtimes.onnx_files import CHECKSUM, OnnxReader, OnnxWriter, is_intact, write_labels

if TYPE_CHECKING:
    from onnxruntime import InferenceSession, SessionOptions


class OnnxSession(LoadedFile):
    """An ONNX file in ONNX Runtime.

    Attributes:
        input_names: of the graph, in its order.
        properties: the file's metadata, without its checksum.
    """

    def __init__(self, runtime: Runtime[Any], path: Path, session: InferenceSession) -> None:
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


class SessionRuntime(OnnxReader[OnnxSession]):
    """A runtime that is a provider of ONNX Runtime, and whose files are ONNX files."""

    packages = ("onnxruntime",)
    writer_packages = ("onnx", "onnxscript")

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


def session_options(threads: int | None) -> SessionOptions:
    """Of a session that says errors alone and has so many threads, or the runtime's default."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads or 0
    return options
