"""Writing a network for other runtimes, running what was written, and comparing."""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from xvolution.surgery.modules import call
from xvolution.surgery.outputs import difference, tensors_in

_NEEDS = {".onnx": ("onnx", "onnxscript", "onnxruntime"), ".pt2": (), ".xml": ("onnx", "onnxscript", "openvino")}

#: Axes of an image batch that stay open, the most general choice first.
_DYNAMIC_AXES = {"batch and image size": (0, 2, 3, 4), "batch": (0,), "none": ()}

Runner = Callable[[Sequence[Tensor]], list[Tensor]]


class ExportError(RuntimeError):
    """The model cannot be exported, or the exported file computes something else."""


@dataclass(frozen=True)
class ExportReport:
    """What was written and how far it is from the eager model.

    Attributes:
        path: the file.
        format: ``"onnx"``, ``"pt2"`` or ``"xml"``.
        dynamic: which axes are open: ``"batch and image size"``, ``"batch"`` or ``"none"``.
        max_difference: largest absolute difference of any output, over all shapes that were tried.
        relative_error: the same relative to the largest magnitude of the output.
    """

    path: Path
    format: str
    dynamic: str
    max_difference: float
    relative_error: float


def export(
    model: nn.Module,
    path: str | os.PathLike[str],
    example_inputs: Any,
    *,
    dynamic: bool = True,
    opset_version: int | None = None,
    rtol: float = 1e-4,
    atol: float = 1e-6,
) -> ExportReport:
    """Write ``model`` in the format that the path's ending names, run the file, and compare it with the model.

    ``.onnx`` through torch's dynamo exporter and run in ONNX Runtime; ``.pt2`` through ``torch.export``; ``.xml`` (and the
    ``.bin`` beside it) by OpenVINO, run there in fp32. The graph holds standard operators only. Nothing is left behind when
    the outputs differ.

    Args:
        model: a network in eval mode, usually from ``reparameterize``.
        path: where to write; ``.onnx``, ``.pt2`` or ``.xml``.
        example_inputs: a tensor or a tuple of tensors, images as (N, C, H, W), signals as (N, C, L), videos as (N, C, D, H, W).
        dynamic: leave batch and image size open. Where the network itself fixes the image size only the batch stays open, and
            the report says so.
        opset_version: of ONNX; the exporter's own when None.
        rtol: allowed difference relative to the largest magnitude of the output.
        atol: allowed absolute difference, however small the outputs are.

    Returns:
        The report. Dynamic files are compared at a second batch and image size as well.

    Raises:
        ValueError: an unknown ending, or example inputs that are no tensors.
        ExportError: train mode, a missing package, a model that does not export, or outputs that differ.
    """
    path = Path(path)
    inputs = _checked(model, path, example_inputs)
    axes = _DYNAMIC_AXES if dynamic else {"none": ()}
    program, open_axes = _capture(model, inputs, axes)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
        temporary = Path(folder) / path.name
        run = _WRITERS[path.suffix](program, temporary, opset_version)
        max_difference = relative_error = 0.0
        for trial in _trials(inputs, _DYNAMIC_AXES[open_axes]):
            with torch.no_grad():
                expected = tensors_in(call(model, trial))
            error = difference(expected, run(trial))
            if error.relative > rtol and error.absolute > atol:
                raise ExportError(
                    f"{path.name} computes something else than the model: difference {error.absolute:.1e} (relative "
                    f"{error.relative:.1e}, allowed {rtol:.0e}) for inputs {[tuple(x.shape) for x in trial]}; nothing was written"
                )
            max_difference = max(max_difference, error.absolute)
            relative_error = max(relative_error, error.relative)
        del run
        for written in sorted(Path(folder).iterdir()):
            os.replace(written, path.parent / written.name)
    return ExportReport(path, path.suffix[1:], open_axes, max_difference, relative_error)


def _checked(model: nn.Module, path: Path, example_inputs: Any) -> tuple[Tensor, ...]:
    if path.suffix not in _NEEDS:
        raise ValueError(f"cannot export to {path.name!r}; the name must end in {', '.join(_NEEDS)}")
    missing = [package for package in _NEEDS[path.suffix] if find_spec(package) is None]
    if missing:
        raise ExportError(f"exporting to {path.suffix} needs {', '.join(missing)}; install xvolution[export]")
    if any(module.training for module in model.modules()):
        raise ExportError("the model is in train mode; call model.eval() before exporting it")
    inputs = example_inputs if isinstance(example_inputs, tuple) else (example_inputs,)
    if isinstance(example_inputs, Mapping) or not inputs or not all(isinstance(x, Tensor) for x in inputs):
        raise ValueError(
            "example_inputs must be a tensor or a tuple of tensors, in the order in which the model takes them"
        )
    return inputs


def _capture(
    model: nn.Module, inputs: tuple[Tensor, ...], choices: Mapping[str, tuple[int, ...]]
) -> tuple[ExportedProgram, str]:
    """The exported program with as many open axes as the model allows."""
    # torch.export takes an axis of size 1 for a constant, so a single image is captured as two.
    batch = tuple(x.expand(2, *x.shape[1:]).contiguous() if _is_batch(x) and x.shape[0] == 1 else x for x in inputs)
    failure = ""
    for name, axes in choices.items():
        shapes = tuple(dict.fromkeys(_axes_of(x, axes), Dim.DYNAMIC) if _is_batch(x) else None for x in inputs)
        try:
            with torch.no_grad(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                # An export can succeed for sizes at which the network itself fails.
                call(model, _trials(inputs, axes)[-1])
                captured = inputs if not axes else batch
                return torch.export.export(model, captured, dynamic_shapes=shapes, strict=False), name
        except Exception as error:  # torch.export raises errors of many kinds; the next choice asks for less
            failure = str(error).strip().split("\n")[0]
    raise ExportError(f"torch.export cannot capture {type(model).__name__}: {failure}")


def _is_batch(x: Tensor) -> bool:
    """Signals (N, C, L), images (N, C, H, W) or videos (N, C, D, H, W)."""
    return x.dim() in (3, 4, 5)


def _axes_of(x: Tensor, axes: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(axis for axis in axes if axis < x.dim())


def _trials(inputs: tuple[Tensor, ...], axes: tuple[int, ...]) -> list[tuple[Tensor, ...]]:
    """Inputs to compare on: the example, and one of another size along the open axes."""
    if not axes:
        return [inputs]
    generator = torch.Generator().manual_seed(0)
    resized = []
    for x in inputs:
        shape = list(x.shape)
        for axis in _axes_of(x, axes) if _is_batch(x) else ():
            shape[axis] += 1 if axis == 0 else 32
        resized.append(torch.randn(shape, generator=generator).to(x) if shape != list(x.shape) else x)
    return [inputs, tuple(resized)]


def _write_onnx(program: ExportedProgram, path: Path, opset_version: int | None) -> Runner:
    _to_onnx(program, path, opset_version)
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [node.name for node in session.get_inputs()]

    def run(inputs: Sequence[Tensor]) -> list[Tensor]:
        feed = {name: x.cpu().numpy() for name, x in zip(names, inputs, strict=True)}
        return [torch.from_numpy(y) for y in session.run(None, feed)]

    return run


def _to_onnx(program: ExportedProgram, path: Path, opset_version: int | None) -> None:
    import onnx

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            converted = torch.onnx.export(
                program, dynamo=True, verbose=False, opset_version=opset_version, optimize=True
            )
    except Exception as error:
        raise ExportError(
            f"the ONNX exporter cannot convert the model: {str(error).strip().splitlines()[0]}"
        ) from error
    if converted is None:
        raise ExportError("the ONNX exporter returned nothing; check that onnx and onnxscript are up to date")
    converted.save(path)
    foreign = {node.domain for node in onnx.load(path, load_external_data=False).graph.node} - {"", "ai.onnx"}
    if foreign:
        raise ExportError(
            f"the ONNX graph holds operators of {', '.join(sorted(foreign))}; only standard ones can be deployed"
        )


def _write_pt2(program: ExportedProgram, path: Path, opset_version: int | None) -> Runner:
    torch.export.save(program, path)
    module = torch.export.load(path).module()
    return lambda inputs: tensors_in(module(*inputs))


def _write_openvino(program: ExportedProgram, path: Path, opset_version: int | None) -> Runner:
    import openvino

    with tempfile.TemporaryDirectory() as folder:
        onnx_path = Path(folder) / "model.onnx"
        _to_onnx(program, onnx_path, opset_version)
        model = openvino.convert_model(onnx_path)
        openvino.save_model(model, path, compress_to_fp16=False)
    # Some processors run OpenVINO in bf16 by default, which would be compared here instead of the graph.
    compiled = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda inputs: [torch.from_numpy(y.copy()) for y in compiled([x.cpu().numpy() for x in inputs]).to_tuple()]


_WRITERS: dict[str, Callable[[ExportedProgram, Path, int | None], Runner]] = {
    ".onnx": _write_onnx,
    ".pt2": _write_pt2,
    ".xml": _write_openvino,
}
