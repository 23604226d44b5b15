"""OpenVINO, on the CPU."""

from __future__ import annotations

import errno
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from xvolution.deploy.runtimes.base import LoadedFile, register
from xvolution.deploy.runtimes.labels import Labels
from xvolution.deploy.runtimes.onnx_files import OnnxReader, OnnxWriter
from xvolution.files import written_whole

if TYPE_CHECKING:
    from openvino import CompiledModel


#: Of an axis in OpenVINO's layouts, such as NCHW.
_LETTERS = {"batch": "N", "channels": "C", "depth": "D", "height": "H", "width": "W", "length": "W"}


class CompiledFile(LoadedFile):
    """An OpenVINO file, compiled for this processor."""

    def __init__(self, runtime: OpenVino, path: Path, compiled: CompiledModel) -> None:
        shapes = [
            [size.get_length() if size.is_static else None for size in port.partial_shape] for port in compiled.inputs
        ]
        super().__init__(runtime, path, shapes, [port.get_any_name() for port in compiled.outputs])
        self._compiled = compiled

    def _run(self, inputs: tuple[Tensor, ...]) -> list[Tensor]:
        outputs = self._compiled([x.detach().cpu().numpy() for x in inputs])
        return [torch.from_numpy(y) for y in outputs.to_tuple()]


@register
class OpenVino(OnnxReader[CompiledFile]):
    """``.xml`` files with their weights in a ``.bin`` beside them, made from ONNX files and run in fp32."""

    name = "openvino"
    title = "OpenVINO"
    takes_int8 = True
    ending = ".xml"
    packages = ("openvino",)
    writer_packages = ("onnx", "onnxscript")
    # Weights and inputs in fp16 stay so, and set the error; those in fp64 are computed in fp32.
    computes_in: ClassVar = {torch.float32: torch.float32, torch.float16: torch.float16, torch.float64: torch.float32}

    def version(self) -> str:
        import openvino

        return openvino.__version__

    def files_of(self, path: Path) -> tuple[Path, ...]:
        return (path, path.with_suffix(".bin"))

    def _write_from(self, write_onnx: OnnxWriter, path: Path) -> None:
        import openvino

        with tempfile.TemporaryDirectory() as folder:
            onnx_path = Path(folder) / "model.onnx"
            write_onnx(onnx_path)
            model = openvino.convert_model(onnx_path)
            try:
                openvino.save_model(model, path, compress_to_fp16=False)
            except RuntimeError as error:
                if "iostream" not in str(error):
                    raise
                raise OSError(errno.EIO, "only a part of the file was written to the disk", str(path)) from error

    def _label(self, path: Path, labels: Labels) -> None:
        import openvino

        core = openvino.Core()
        core.set_property({"ENABLE_MMAP": False})  # the weights' file is written while the network is open
        model = core.read_model(path)
        labels.require_fitting(len(model.inputs), len(model.outputs))
        for ports, names in ((model.inputs, labels.input_names), (model.outputs, labels.output_names)):
            for port, name in zip(ports, names, strict=False):
                port.get_tensor().set_names({name})
        for port, axes in zip(model.inputs, labels.axes, strict=False):
            port.get_node().layout = openvino.Layout("".join(_LETTERS[axis] for axis in axes))
        for key, value in labels.properties.items():
            model.set_rt_info(value, [key])
        with written_whole(path) as temporary:
            openvino.save_model(model, temporary, compress_to_fp16=False)

    def _properties(self, path: Path) -> dict[str, str]:
        import openvino

        found = openvino.Core().read_model(path).get_rt_info()
        texts = {key: getattr(value, "value", value) for key, value in found.items()}
        return {key: value for key, value in texts.items() if isinstance(value, str)}

    def _load(self, path: Path, threads: int | None, input_shapes: Sequence[Sequence[int]] | None) -> CompiledFile:
        import openvino

        # Some processors run OpenVINO in bf16 by default, which would be compared and timed instead of the graph.
        properties: dict[str, str | int] = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
        if threads is not None:
            properties["INFERENCE_NUM_THREADS"] = threads
        core = openvino.Core()
        model = core.read_model(path)
        if input_shapes is not None:
            shapes = zip(model.inputs, input_shapes, strict=True)
            model.reshape({port: openvino.PartialShape(list(shape)) for port, shape in shapes})
        return CompiledFile(self, path, core.compile_model(model, "CPU", properties))
