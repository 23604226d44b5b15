"""Writing a network for other runtimes, running the file, and comparing the outputs."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from xvolution.conversion.modules import call
from xvolution.conversion.outputs import TOLERANCE, Difference, difference, tensors_in
from xvolution.deploy.capture import axes_of, capture, is_batch
from xvolution.deploy.measure import AUTO, LayoutChoice, Progress, choose_layouts
from xvolution.deploy.reparameterize import layouts_of, reparameterize
from xvolution.deploy.runtimes import ExportError, Labels, LoadedFile, Runtime, runtime_for
from xvolution.deploy.runtimes.base import one_sentence
from xvolution.deploy.runtimes.labels import AXES
from xvolution.files import written_whole
from xvolution.operator import XVolution

#: Axes of an image batch that stay open, the most general choice first.
_DYNAMIC_AXES = {"batch and image size": (0, 2, 3, 4), "batch": (0,), "none": ()}


@dataclass(frozen=True)
class ExportReport:
    """The written file and its difference from the eager model.

    Attributes:
        path: the file.
        format: its ending without the first dot: ``"onnx"``, ``"pt2"``, ``"xml"``, ``"ncnn.param"``, ``"mnn"``,
            ``"pte"``, ``"tflite"``, ``"mlpackage"`` or ``"tensorrt.onnx"``.
        dynamic: the dynamic axes: ``"batch and image size"``, ``"batch"`` or ``"none"``.
        max_difference: largest absolute difference of any output, over all tested shapes.
        relative_error: the same relative to the largest magnitude of the output.
        reason: why fewer axes are dynamic than requested; empty if all are.
        layouts: layout of every deployed operator in the file, by module name.
        not_run: why the file was not run on this machine, but read back and checked; the differences are then nan. Empty if it
            was run and compared.
        choice: how the layouts were chosen; None where the model was deployed before, or the layouts were given.
    """

    path: Path
    format: str
    dynamic: str
    max_difference: float
    relative_error: float
    reason: str = ""
    layouts: Mapping[str, str] = field(default_factory=dict)
    choice: LayoutChoice | None = None
    not_run: str = ""

    @property
    def timed_in(self) -> str:
        """Name of the runtime that timed the layouts; empty if nothing was timed."""
        return "" if self.choice is None else self.choice.timed_in


def export(
    model: nn.Module,
    path: str | os.PathLike[str],
    example_inputs: Any,
    *,
    layout: str | Mapping[str, str] | None = AUTO,
    threads: int | None = None,
    progress: Progress | None = None,
    dynamic: bool = True,
    opset_version: int | None = None,
    input_names: Sequence[str] = (),
    output_names: Sequence[str] = (),
    properties: Mapping[str, str] | None = None,
    rtol: float | None = None,
    atol: float = 1e-6,
) -> ExportReport:
    """Write ``model`` for the runtime that the path's ending names, run the file there, and compare it with the model.

    A model in its training form is re-parameterized first, each operator in the layout that is fastest in that runtime.

    ``.onnx`` through torch's dynamo exporter and run in ONNX Runtime; ``.tensorrt.onnx`` likewise, run in TensorRT on an NVIDIA
    GPU; ``.pt2`` through ``torch.export``; ``.xml`` (and the ``.bin`` beside it) by OpenVINO, run there in fp32; ``.ncnn.param``
    (and the ``.ncnn.bin`` beside it) by pnnx and run in ncnn, one image at a time; ``.mnn`` by MNN's converter, run in MNN;
    ``.pte``, of a fixed size, by ExecuTorch; ``.tflite`` by litert-torch, run in LiteRT; ``.mlpackage``, of a fixed size, by
    coremltools, run in CoreML on macOS, and elsewhere only read back, with its inputs, outputs and convolutions checked. The
    graph of an ONNX file holds standard operators only. No file is left if the outputs differ. Dynamic axes of images are called
    ``batch``, ``height`` and ``width``; an ``.xml`` file has the layout NCHW.

    Args:
        model: a network in eval mode, in its training form or from ``reparameterize``.
        path: the file to write; its ending chooses the runtime.
        example_inputs: a tensor or a tuple of tensors, images as (N, C, H, W), signals as (N, C, L), videos as (N, C, D, H, W).
        layout: of a model in its training form: ``"auto"`` times the layouts in the runtime on the example inputs, others are
            as of ``reparameterize``; None writes the training form itself.
        threads: number of CPU threads while layouts are timed; as many as torch uses if None.
        progress: called with a line for each distinct operator: its times and the chosen layout.
        dynamic: make batch and image size dynamic. If the network or its graph fails at other sizes, fewer axes are dynamic, and
            the report says which and why.
        opset_version: ONNX opset of the file; the exporter's own if None.
        input_names: names of the graph's inputs; by default those of ``forward``. A ``.pt2`` file has none.
        output_names: names of the graph's outputs; by default the exporter's. A ``.pt2`` file has none.
        properties: strings to store in the file: metadata of ``.onnx``, runtime information of ``.xml``, extra files of
            ``.pt2`` and ``.tflite``.
        rtol: allowed difference relative to the largest magnitude of the output; by default what rounding explains in the
            dtype that the runtime computes the model in: 1e-4 in float32, 2e-2 in float16, 1e-10 in float64.
        atol: allowed absolute difference, however small the outputs are.

    Returns:
        The report. Dynamic files are compared at a second batch and image size as well.

    Raises:
        ValueError: an unknown ending, example inputs that are not tensors, or a layout that an operator does not have.
        ReparameterizationError: the deployed form differs from the training form.
        ExportError: train mode, a missing package, a model, dtype or opset that does not export, or outputs that differ.
        OSError: the file cannot be written.
    """
    path = Path(path)
    runtime = runtime_for(path)
    inputs = _checked(model, runtime, example_inputs)
    choice = None
    if layout is not None and any(isinstance(module, XVolution) for module in model.modules()):
        if layout == AUTO:
            choice = choose_layouts(model, inputs, runtime.name, threads, progress)
        model = reparameterize(model, inputs, layout if choice is None else choice.layouts)
    axes = tuple(AXES.get(x.dim(), ()) for x in inputs)
    labels = Labels(input_names, output_names, axes, dict(properties or {}))
    allowed = (_tolerance(model, runtime, inputs) if rtol is None else rtol, atol)
    failure: ExportError | None = None
    for name in _DYNAMIC_AXES if dynamic and any(map(is_batch, inputs)) else ("none",):
        try:
            error = _write(model, runtime, path, inputs, _DYNAMIC_AXES[name], opset_version, labels, allowed)
        except ExportError as refusal:  # the next choice asks for less
            failure = refusal
        else:
            errors, reason = (error.absolute, error.relative), str(failure or "")
            return ExportReport(
                path, runtime.ending[1:], name, *errors, reason, layouts_of(model), choice, runtime.unrunnable()
            )
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
    return inputs if runtime.batched else tuple(x[:1] if is_batch(x) else x for x in inputs)


def _dtypes(model: nn.Module, inputs: tuple[Tensor, ...]) -> set[torch.dtype]:
    """The floating dtypes of weights, buffers and inputs."""
    found = {x.dtype for x in (*model.parameters(), *model.buffers(), *inputs)}
    return found.intersection(TOLERANCE)


def _names(dtypes: Iterable[torch.dtype]) -> str:
    return ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in dtypes))


def _advice(dtypes: set[torch.dtype]) -> str:
    """Advice for runtimes that support some operators only in float32."""
    others = dtypes.difference({torch.float32})
    if not others:
        return ""
    return f"; the model or its inputs are in {_names(others)}; try float32: model.float()"


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
    labels: Labels,
    allowed: tuple[float, float],
) -> Difference:
    """Write the file with these dynamic axes if its outputs agree with the model; the largest difference over all trials."""
    trials = _trials(inputs, axes)
    # An export can succeed for sizes at which the network itself fails.
    expected = [_outputs(model, trial) for trial in trials]
    program = capture(model, inputs, axes)
    with written_whole(path) as temporary:
        runtime.write(program, temporary, opset_version, labels)
        if runtime.unrunnable():
            runtime.check(temporary, program)
            return Difference(math.nan, math.nan)
        errors = _compared(runtime, temporary, trials, expected, allowed)
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
    """The difference of the file's outputs from the expected ones, over all trials."""
    rtol, atol = allowed
    run = runtime.load(path)
    errors = []
    for trial, wanted in zip(trials, expected, strict=True):
        error = difference(wanted, [y.cpu() for y in run(*trial)])
        if error.relative > rtol and error.absolute > atol:
            raise ExportError(
                f"{path.name} does not compute the same as the model: difference {error.absolute:.1e} "
                f"(relative {error.relative:.1e}, allowed {rtol:.0e}) for inputs {_shapes(trial)}"
            )
        errors.append(error)
    return errors


def _trials(inputs: tuple[Tensor, ...], axes: tuple[int, ...]) -> list[tuple[Tensor, ...]]:
    """Inputs for the comparison: the example, and one of another size along the dynamic axes."""
    if not axes:
        return [inputs]
    return [inputs, tuple(_resized(x, axes_of(x, axes)) if is_batch(x) else x for x in inputs)]


def _resized(x: Tensor, axes: tuple[int, ...]) -> Tensor:
    """``x`` with one more image and larger images, made of its own values, because a network may accept only similar values.

    An image is repeated beyond its border; the added image is the first one, shifted along its last axis.
    """
    for axis in axes:
        if axis > 0:
            size = x.shape[axis]
            x = x.index_select(axis, torch.arange(size + 32, device=x.device) % size)
    return torch.cat([x, x[:1].roll(x.shape[-1] // 2, -1)]) if 0 in axes else x
