"""Exporting a whole detector, with proposals and suppression in the graph, or only its feature pyramid."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from xvolution.deploy.export import ExportError, export
from xvolution.deploy.measure import AUTO, LayoutChoice, Progress, choose_layouts
from xvolution.deploy.reparameterize import layouts_of
from xvolution.deploy.runtimes import Labels, LoadedFile, OnnxReader, detector_runtimes
from xvolution.deploy.runtimes.base import find_runtime
from xvolution.deploy.runtimes.onnx_files import write_traced
from xvolution.files import written_whole
from xvolution.models.detect_deploy import deploy_detector
from xvolution.models.detect_match import Agreement, RawAgreement, match_detections
from xvolution.models.detect_raw import WithRawOutputs, as_raw, compare_raw, open_axes, raw_outputs
from xvolution.operator import XVolution

#: Outputs of an exported detector; ``masks`` where there are any.
OUTPUTS = ("boxes", "labels", "scores", "masks")

# The operators that torchvision's boxes, NMS and RoIAlign need are complete from here on.
_OPSET = 17


@dataclass(frozen=True)
class DetectorExport:
    """The written file.

    Attributes:
        path: the file.
        format: ``"onnx"`` or ``"xml"``.
        content: ``"detector"``: one image (3, H, W) in [0, 1] to ``boxes``, ``labels``, ``scores`` and ``masks``; or
            ``"pyramid"``: normalized images (N, 3, H, W) to the levels of the feature pyramid.
        dynamic: the dynamic axes of the input: ``"image size"`` for a detector.
        agreement: comparison of the detections with the model's, or of feature maps and raw scores if there are none; None for
            a pyramid, whose features were compared.
        reason: why the file is not the whole detector; empty if it is.
        layouts: layout of every deployed operator of the detector, by module name.
        choice: how the layouts were chosen; None where the detector was deployed before, or the layouts were given.
    """

    path: Path
    format: str
    content: str
    dynamic: str
    agreement: Agreement | None
    reason: str = ""
    layouts: Mapping[str, str] = field(default_factory=dict)
    choice: LayoutChoice | None = None


def export_detector(
    detector: nn.Module,
    path: str | os.PathLike[str],
    image: Tensor,
    *,
    layout: str | Mapping[str, str] = AUTO,
    threads: int | None = None,
    progress: Progress | None = None,
    score_threshold: float = 0.05,
    whole: bool = True,
    properties: dict[str, str] | None = None,
) -> DetectorExport:
    """Write a detector, run the file, and compare its detections with the model's on two images of different size.

    The graph takes one image of any size and holds everything from resizing to suppression, in standard operators; it is made by
    torch's tracing exporter, which torchvision supports. No file is left if the detections differ.

    Args:
        detector: in eval mode, on the CPU in fp32, in its training form or from ``deploy_detector``.
        path: ends in ``.onnx`` or ``.xml`` (OpenVINO, through ONNX).
        image: (3, H, W) in [0, 1].
        layout, threads, progress: of a detector in its training form, which is re-parameterized for the runtime of the path's
            ending; as of ``xvolution.export``.
        score_threshold: detections with a higher score must agree.
        whole: write the whole detector; False writes the backbone and the feature pyramid alone, for runtimes without NMS.
        properties: strings to put into the file's metadata; ``content`` is always put there.

    Returns:
        The report. Where the exporter or the runtime cannot take the whole detector, the pyramid is written; ``content`` and
        ``reason`` say so.

    Raises:
        ValueError: an unknown ending, an image of another shape, or a layout that an operator does not have.
        ReparameterizationError: the detections of the deployed detector differ from those of the trained one.
        ExportError: train mode, or a file whose outputs differ from the model's.
        OSError: the file cannot be written.
    """
    path = Path(path)
    runtime = _runtime(path)
    if image.dim() != 3 or image.shape[0] != 3:
        raise ValueError(f"the example image has the shape {tuple(image.shape)}; it must be (3, H, W)")
    if any(module.training for module in detector.modules()):
        raise ExportError("the detector is in train mode; call detector.eval() before exporting it")
    runtime.require_writer()
    choice, reason = None, "asked for"
    if any(isinstance(module, XVolution) for module in detector.modules()):
        if layout == AUTO:
            choice = choose_layouts(detector, ([image],), runtime.name, threads, progress)
        detector = deploy_detector(detector, [image], layout if choice is None else choice.layouts)
    layouts = layouts_of(detector)
    if whole:
        try:
            agreement = _export_whole(detector, runtime, path, image, score_threshold, properties or {})
        except _Disagreement:
            raise
        except ExportError as error:
            reason = str(error)
        else:
            what = ("detector", "image size", agreement, "")
            return DetectorExport(path, runtime.ending[1:], *what, layouts, choice)
    report = _export_pyramid(detector, path, image, reason, properties or {})
    return replace(report, layouts=layouts, choice=choice)


class _Disagreement(ExportError):
    """The file of the whole detector runs, but its detections differ."""


def _runtime(path: Path) -> OnnxReader[LoadedFile]:
    """By the path's ending; detectors are traced to ONNX, so it must be one that takes ONNX."""
    readers = {runtime.ending: runtime for runtime in detector_runtimes().values()}
    runtime = find_runtime(path)
    if runtime is None or runtime.ending not in readers:
        raise ValueError(
            f"cannot export a detector to {path.name!r}; the name must end in {' or '.join(sorted(readers))}"
        )
    return readers[runtime.ending]


def _export_whole(
    detector: nn.Module,
    runtime: OnnxReader[LoadedFile],
    path: Path,
    image: Tensor,
    threshold: float,
    properties: dict[str, str],
) -> Agreement:
    """Write the file if its detections agree with the detector's; returns the agreement.

    Raises:
        ExportError: the exporter or the runtime does not take the whole detector.
        _Disagreement: the detections of the file differ.
    """
    # Another shape, and another orientation, than the one that is traced.
    other = torch.nn.functional.interpolate(image[None], (image.shape[2] + 16, image.shape[1]), mode="bilinear")[0]
    trials = [image, other]
    with torch.no_grad():
        expected = [detector([trial])[0] for trial in trials]
    names = list(expected[0])

    def write_onnx(onnx_path: Path) -> None:
        _trace(detector, image, names, onnx_path)

    labels = Labels(["image"], names, properties={**properties, "content": "detector"})
    with written_whole(path) as temporary:
        runtime.write_from(write_onnx, temporary)
        runtime.label(temporary, labels)
        find = runtime.load(temporary)
        actual = [dict(zip(names, find(trial), strict=True)) for trial in trials]
        agreement = match_detections(expected, actual, threshold)
        if agreement.is_empty:
            agreement = replace(agreement, raw=_raw_agreement(detector, runtime, path, trials))
        if not agreement.holds():
            raise _Disagreement(
                f"the detections of {path.name} differ from those of the detector: {agreement}; nothing was written"
            )
    return agreement


def _raw_agreement(
    detector: nn.Module, runtime: OnnxReader[LoadedFile], path: Path, trials: Sequence[Tensor]
) -> RawAgreement:
    """Agreement of the detector with a temporary file of the same graph that also returns feature maps and raw scores."""
    expected = [raw_outputs(detector, trial) for trial in trials]
    with torch.no_grad():
        names = list(detector([trials[0]])[0])
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / path.name
        runtime.write_from(lambda to: _trace(WithRawOutputs(detector), trials[0], names, to, expected[0]), file)
        find = runtime.load(file)
        raw = [compare_raw(each, as_raw(list(each), find(trial))) for each, trial in zip(expected, trials, strict=True)]
    return RawAgreement(max(each.maps for each in raw), max(each.scores for each in raw))


def _trace(
    detector: nn.Module, image: Tensor, names: Sequence[str], path: Path, raw: Mapping[str, Tensor] | None = None
) -> None:
    raw = {} if raw is None else raw
    axes = {"image": {1: "height", 2: "width"}, **{name: {0: "detections"} for name in names}, **open_axes(raw)}
    if "masks" in names:
        axes["masks"] = {0: "detections", 2: "height", 3: "width"}
    with resizing_in_double(detector):
        write_traced(
            detector,
            ([image],),
            path,
            opset_version=_OPSET,
            input_names=["image"],
            output_names=[*names, *raw],
            dynamic_axes=axes,
        )


@contextmanager
def resizing_in_double(detector: nn.Module) -> Iterator[None]:
    """Trace the resized size in double precision, as it is computed where nothing is traced.

    torchvision traces it in single precision, where 224 / 536 * 536 is below 224: such images came out one pixel smaller.
    """
    transforms: list[Any] = [module for module in detector.modules() if isinstance(module, GeneralizedRCNNTransform)]
    resizable = [transform for transform in transforms if transform.fixed_size is None]
    for transform in resizable:
        transform.resize = partial(_resize, transform.min_size[-1], transform.max_size)
    try:
        yield
    finally:
        for transform in resizable:
            del transform.resize


def _resize(shorter: int, longer: int, image: Tensor, target: None = None) -> tuple[Tensor, None]:
    """(3, H, W) -> (3, H', W') as `GeneralizedRCNNTransform.resize` in eval mode, for tracing."""
    sides = torch.stack([torch.as_tensor(side) for side in image.shape[-2:]]).double()
    # All in one dimension: the exporter casts scalars to single precision.
    limits = torch.tensor([shorter, longer], dtype=torch.float64)
    scale = (limits / torch.cat([sides.amin(0, keepdim=True), sides.amax(0, keepdim=True)])).amin(0, keepdim=True)
    height, width = torch.floor(sides * scale).long()
    size: Any = [height, width]
    return torch.nn.functional.interpolate(image[None], size=size, mode="bilinear", align_corners=False)[0], target


def _export_pyramid(
    detector: Any, path: Path, image: Tensor, reason: str, properties: dict[str, str]
) -> DetectorExport:
    images, _ = detector.transform([image])
    with written_whole(path) as temporary:
        labels = {**properties, "content": "pyramid", "reason": reason}
        report = export(detector.backbone, temporary, images.tensors, properties=labels)
    return DetectorExport(path, report.format, "pyramid", report.dynamic, None, reason)
