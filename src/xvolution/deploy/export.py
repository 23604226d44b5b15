"""Writing a network for other runtimes, running what was written, and comparing."""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from xvolution.conversion.modules import call
from xvolution.conversion.outputs import TOLERANCE, Difference, difference, tensors_in
from xvolution.deploy.runtimes import ExportError, LoadedFile, Runtime, runtime_for
from xvolution.deploy.runtimes.base import one_sentence

#: Axes of an image batch that stay open, the most general choice first.
_DYNAMIC_AXES = {"batch and image size": (0, 2, 3, 4), "batch": (0,), "none": ()}


@dataclass(frozen=True)
class ExportReport:
    """What was written and how far it is from the eager model.

    Attributes:
        path: the file.
        format: its ending without the dot: ``"onnx"``, ``"pt2"`` or ``"xml"``.
        dynamic: which axes are open: ``"batch and image size"``, ``"batch"`` or ``"none"``.
        max_difference: largest absolute difference of any output, over all shapes that were tried.
        relative_error: the same relative to the largest magnitude of the output.
        reason: what kept more axes from staying open; empty where all that were asked for are open.
    """

    path: Path
    format: str
    dynamic: str
    max_difference: float
    relative_error: float
    reason: str = ""


def export(
    model: nn.Module,
    path: str | os.PathLike[str],
    example_inputs: Any,
    *,
    dynamic: bool = True,
    opset_version: int | None = None,
    rtol: float | None = None,
    atol: float = 1e-6,
) -> ExportReport:
    """Write ``model`` for the runtime that the path's ending names, run the file there, and compare it with the model.

    ``.onnx`` through torch's dynamo exporter and run in ONNX Runtime; ``.pt2`` through ``torch.export``; ``.xml`` (and the
    ``.bin`` beside it) by OpenVINO, run there in fp32. The graph holds standard operators only. Nothing is left behind when
    the outputs differ.

    Args:
        model: a network in eval mode, usually from ``reparameterize``.
        path: where to write; ``.onnx``, ``.pt2`` or ``.xml``.
        example_inputs: a tensor or a tuple of tensors, images as (N, C, H, W), signals as (N, C, L), videos as (N, C, D, H, W).
        dynamic: leave batch and image size open. Where the network or its graph does not run or compare at other sizes, fewer
            axes stay open, and the report says which and why.
        opset_version: of ONNX, which the file then has; the exporter's own when None.
        rtol: allowed difference relative to the largest magnitude of the output; by default what rounding explains in the
            dtype that the runtime computes the model in: 1e-4 in float32, 2e-2 in float16, 1e-10 in float64.
        atol: allowed absolute difference, however small the outputs are.

    Returns:
        The report. Dynamic files are compared at a second batch and image size as well.

    Raises:
        ValueError: an unknown ending, or example inputs that are no tensors.
        ExportError: train mode, a missing package, a model, dtype or opset that does not export, or outputs that differ.
    """
    path = Path(path)
    runtime = runtime_for(path)
    inputs = _checked(model, runtime, example_inputs)
    allowed = (_tolerance(model, runtime, inputs) if rtol is None else rtol, atol)
    path.parent.mkdir(parents=True, exist_ok=True)
    failure: ExportError | None = None
    for name in _DYNAMIC_AXES if dynamic and any(map(_is_batch, inputs)) else ("none",):
        try:
            error = _write(model, runtime, path, inputs, _DYNAMIC_AXES[name], opset_version, allowed)
        except ExportError as refusal:  # the next choice asks for less
            failure = refusal
        else:
            return ExportReport(path, runtime.ending[1:], name, error.absolute, error.relative, str(failure or ""))
    raise ExportError(f"{failure}; nothing was written{_advice(_dtypes(model, inputs))}") from failure


def _checked(model: nn.Module, runtime: Runtime[LoadedFile], example_inputs: Any) -> tuple[Tensor, ...]:
    runtime.require_writer()
    if any(module.training for module in model.modules()):
        raise ExportError("the model is in train mode; call model.eval() before exporting it")
    inputs = example_inputs if isinstance(example_inputs, tuple) else (example_inputs,)
    if isinstance(example_inputs, Mapping) or not inputs or not all(isinstance(x, Tensor) for x in inputs):
        raise ValueError(
            "example_inputs must be a tensor or a tuple of tensors, in the order in which the model takes them"
        )
    refused = _dtypes(model, inputs).difference(runtime.computes_in)
    if refused:
        raise ExportError(
            f"{runtime.title} cannot run {_names(refused)}, the dtype of {type(model).__name__} or of its inputs; allowed "
            f"are {_names(runtime.computes_in)}: convert both, for example by model.float() and example_inputs.float()"
        )
    return inputs


def _dtypes(model: nn.Module, inputs: tuple[Tensor, ...]) -> set[torch.dtype]:
    """The floating dtypes of weights, buffers and inputs."""
    found = {x.dtype for x in (*model.parameters(), *model.buffers(), *inputs)}
    return found.intersection(TOLERANCE)


def _names(dtypes: Iterable[torch.dtype]) -> str:
    return ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in dtypes))


def _advice(dtypes: set[torch.dtype]) -> str:
    """What may help where a runtime has an operator in float32 only, as many have."""
    others = dtypes.difference({torch.float32})
    if not others:
        return ""
    return f"; the model or its inputs are in {_names(others)}, and what fails there may work in float32: model.float()"


def _tolerance(model: nn.Module, runtime: Runtime[LoadedFile], inputs: tuple[Tensor, ...]) -> float:
    dtypes = _dtypes(model, inputs) or {torch.float32}
    return max(TOLERANCE[runtime.computes_in[dtype]] for dtype in dtypes)


def _write(
    model: nn.Module,
    runtime: Runtime[LoadedFile],
    path: Path,
    inputs: tuple[Tensor, ...],
    axes: tuple[int, ...],
    opset_version: int | None,
    allowed: tuple[float, float],
) -> Difference:
    """Write the file with these axes open if it computes what the model computes; the largest difference over all trials."""
    trials = _trials(inputs, axes)
    # An export can succeed for sizes at which the network itself fails.
    expected = [_outputs(model, trial) for trial in trials]
    program = _capture(model, inputs, axes)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
        temporary = Path(folder) / path.name
        runtime.write(program, temporary, opset_version)
        errors = _compared(runtime, temporary, trials, expected, allowed)
        for written in sorted(Path(folder).iterdir()):
            os.replace(written, path.parent / written.name)
    return Difference(max(error.absolute for error in errors), max(error.relative for error in errors))


def _outputs(model: nn.Module, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    with one_sentence(f"{type(model).__name__} does not run on inputs {_shapes(inputs)}"), torch.no_grad():
        return [y.cpu() for y in tensors_in(call(model, inputs))]


def _shapes(inputs: Iterable[Tensor]) -> str:
    return ", ".join(str(tuple(x.shape)) for x in inputs)


def _compared(
    runtime: Runtime[LoadedFile],
    path: Path,
    trials: list[tuple[Tensor, ...]],
    expected: list[list[Tensor]],
    allowed: tuple[float, float],
) -> list[Difference]:
    """How far the file is from what is expected, trial by trial."""
    rtol, atol = allowed
    run = runtime.load(path)
    errors = []
    for trial, wanted in zip(trials, expected, strict=True):
        error = difference(wanted, [y.cpu() for y in run(*trial)])
        if error.relative > rtol and error.absolute > atol:
            raise ExportError(
                f"{path.name} computes something else than the model: difference {error.absolute:.1e} (relative "
                f"{error.relative:.1e}, allowed {rtol:.0e}) for inputs {_shapes(trial)}"
            )
        errors.append(error)
    return errors


def _capture(model: nn.Module, inputs: tuple[Tensor, ...], axes: tuple[int, ...]) -> ExportedProgram:
    """The exported program with these axes open."""
    # torch.export takes an axis of size 1 for a constant, so a single image is captured as two.
    batch = tuple(x.expand(2, *x.shape[1:]).contiguous() if _is_batch(x) and x.shape[0] == 1 else x for x in inputs)
    shapes = tuple(dict.fromkeys(_axes_of(x, axes), Dim.DYNAMIC) if _is_batch(x) else None for x in inputs)
    with (
        one_sentence(f"torch.export cannot capture {type(model).__name__}"),
        torch.no_grad(),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        return torch.export.export(model, batch if axes else inputs, dynamic_shapes=shapes, strict=False)


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
