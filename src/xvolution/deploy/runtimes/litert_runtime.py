"""LiteRT, formerly TensorFlow Lite, on the CPU."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram

from xvolution.deploy.runtimes.base import LoadedFile, Runtime, quiet, register
from xvolution.deploy.runtimes.labels import Labels


class LiteRtInterpreter(LoadedFile):
    """A LiteRT file; the interpreter's type is the package's, which has no annotations."""

    def __init__(self, runtime: LiteRt, path: Path, interpreter: Any) -> None:
        self._interpreter = interpreter
        self._inputs = [details["index"] for details in interpreter.get_input_details()]
        self._outputs = [details["index"] for details in interpreter.get_output_details()]
        shapes = [
            [None if size < 0 else int(size) for size in details["shape_signature"]]
            for details in interpreter.get_input_details()
        ]
        signature = next(iter(interpreter.get_signature_list().values()), {"outputs": ()})
        super().__init__(runtime, path, shapes, signature["outputs"])
        self._given: list[tuple[int, ...]] = []

    def _run(self, inputs: tuple[Tensor, ...]) -> list[Tensor]:
        arrays = [x.detach().cpu().contiguous().numpy() for x in inputs]
        given = [array.shape for array in arrays]
        if given != self._given:
            self._given = []
            for index, shape in zip(self._inputs, given, strict=True):
                self._interpreter.resize_tensor_input(index, shape, strict=True)
            self._interpreter.allocate_tensors()
            self._given = given
        for index, array in zip(self._inputs, arrays, strict=True):
            self._interpreter.set_tensor(index, array)
        self._interpreter.invoke()
        return [torch.from_numpy(self._interpreter.get_tensor(index)) for index in self._outputs]


@register
class LiteRt(Runtime[LiteRtInterpreter]):
    """``.tflite`` files, their convolutions computed by XNNPACK in fp32.

    Properties are an archive behind the graph, where LiteRT's own metadata has its associated files. Names of inputs and outputs
    are the converter's.
    """

    name = "litert"
    title = "LiteRT"
    ending = ".tflite"
    packages = ("ai_edge_litert",)
    writer_packages = ("litert_torch",)
    extra = "litert"
    computes_in: ClassVar = {torch.float32: torch.float32}

    def version(self) -> str:
        from importlib.metadata import version

        return version("ai-edge-litert")

    def _write(self, program: ExportedProgram, path: Path, opset_version: int | None) -> None:
        arguments, _ = program.example_inputs
        with quiet():
            import litert_torch

            module = program.module()
            converted = litert_torch.convert(module, tuple(arguments), dynamic_shapes=_open_axes(program))
            converted.export(str(path))

    def _label(self, path: Path, labels: Labels) -> None:
        _remove_archive(path)
        if labels.properties:
            with zipfile.ZipFile(path, "a") as archive:
                for key, value in labels.properties.items():
                    archive.writestr(key, value)

    def _properties(self, path: Path) -> dict[str, str]:
        if not zipfile.is_zipfile(path):
            return {}
        with zipfile.ZipFile(path) as archive:
            return {name: archive.read(name).decode("utf-8") for name in archive.namelist()}

    def _load(self, path: Path, threads: int | None, input_shapes: Sequence[Sequence[int]] | None) -> LiteRtInterpreter:
        from ai_edge_litert.interpreter import Interpreter

        return LiteRtInterpreter(self, path, Interpreter(str(path), num_threads=threads))


def _remove_archive(path: Path) -> None:
    """Cut off what `_label` has put behind the graph."""
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        start = min(entry.header_offset for entry in archive.infolist())
    os.truncate(path, start)


def _open_axes(program: ExportedProgram) -> Any:
    """The open axes of the inputs, as ``torch.export`` takes them; None where there are none."""
    if not program.range_constraints:
        return None
    values = {node.name: node.meta.get("val") for node in program.graph.nodes if node.op == "placeholder"}
    images = [values[name] for name in program.graph_signature.user_inputs if isinstance(name, str)]
    return tuple(
        {axis: Dim.DYNAMIC for axis, size in enumerate(image.shape) if not isinstance(size, int)} for image in images
    )
