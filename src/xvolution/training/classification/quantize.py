"""A classifier in 8-bit integers: calibrated on training images, evaluated before and after."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import nn
from torch.utils.data import DataLoader

from xvolution.deploy.equalize import equalize
from xvolution.deploy.quantize import QuantizationError, QuantizationReport, int8_runtime, quantize
from xvolution.deploy.runtimes import ExportError, LoadedFile, OnnxReader, OnnxRuntime, runtime_for
from xvolution.training.classification.deploy import ClassifierDeployment, deploy_classifier
from xvolution.training.classification.evaluate import EvaluationResult, evaluate_model, judging_data, labelled_images
from xvolution.training.classification.metadata import ClassifierMetadata
from xvolution.training.data import DataSplits, ImageSource, evaluation_loader
from xvolution.training.data.dataset import GOOD, Batch
from xvolution.training.data.module import default_workers
from xvolution.training.deployment import DeployedForm, DeploySettings
from xvolution.training.errors import InputError, RunError
from xvolution.training.evaluation import EvaluationSettings
from xvolution.training.files import atomic_path
from xvolution.training.metadata import HEADER

#: How ONNX Runtime takes a range from what was seen.
Method = Literal["minmax", "entropy", "percentile"]
METHODS: tuple[Method, ...] = get_args(Method)
#: Ending of a deployed file that is quantized as it is.
ONNX = OnnxRuntime.ending


@dataclass(frozen=True)
class Calibration:
    """The settings of a quantization to 8-bit integers.

    Attributes:
        images: number of training images for the calibration, evenly spread.
        method: how the calibration computes a range; see `xvolution.deploy.quantize`.
        equalized: rescale the parts of deployed operators so that one scale covers their ranges.
    """

    images: int = 256
    method: Method = "minmax"
    equalized: bool = False

    def __post_init__(self) -> None:
        if self.images < 1:
            raise InputError(f"--images is {self.images}; it must be at least 1.")
        if self.method not in METHODS:
            raise InputError(f"--method is {self.method}; it must be one of {', '.join(METHODS)}.")


@dataclass(frozen=True)
class QuantizedNetwork:
    """One network before and after.

    Attributes:
        name: its name in a report.
        before: evaluation of its deployed form in fp32.
        after: evaluation of the quantized file on the same images.
        report: the report of the quantization.
    """

    name: str
    before: EvaluationResult
    after: EvaluationResult
    report: QuantizationReport

    @property
    def changed(self) -> int:
        """Number of images whose prediction changed."""
        return int((self.before.predictions != self.after.predictions).sum())

    def to_dict(self) -> dict[str, Any]:
        """The figures, as plain JSON values."""
        judged = {"fp32": self.before.to_dict(), "int8": self.after.to_dict(), "changed_predictions": self.changed}
        return {"network": self.name, **judged, **vars(self.report), "path": str(self.report.path)}


class _Runs(nn.Module):
    """A file of a runtime as a module: (N, C, H, W) float32 images to (N, num_classes) logits, on the CPU."""

    def __init__(self, file: LoadedFile) -> None:
        super().__init__()
        self.file = file

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.file(images)[0]


def write_quantized(
    source: nn.Module | Path,
    metadata: ClassifierMetadata,
    path: Path,
    images: Sequence[torch.Tensor],
    deploy: DeploySettings,
    calibration: Calibration,
) -> tuple[QuantizationReport, LoadedFile]:
    """Write a classifier in 8-bit integers.

    Args:
        source, metadata, path, deploy, calibration: as of `quantize_classifier`.
        images: batches that set the ranges of the activations.

    Returns:
        The report, and the fp32 file that was quantized, opened.

    Raises:
        RunError: the network cannot be quantized, or the file cannot be written.
    """
    with tempfile.TemporaryDirectory() as folder:
        try:
            original = source if isinstance(source, Path) else Path(folder) / f"fp32{ONNX}"
            if isinstance(source, nn.Module):
                _export(source, metadata, original, deploy, images if calibration.equalized else None)
            report = _write(original, path, images, calibration.method)
            return report, OnnxRuntime().load(original)
        except (ExportError, QuantizationError) as error:
            raise RunError(f"{path} was not written: {error}") from error


def quantize_classifier(
    source: nn.Module | Path,
    metadata: ClassifierMetadata,
    path: Path,
    settings: EvaluationSettings,
    deploy: DeploySettings,
    calibration: Calibration,
    name: str,
) -> QuantizedNetwork:
    """Write a classifier in 8-bit integers and evaluate it before and after.

    Args:
        source: a classifier in eval mode, in its training or its deployed form; or an fp32 ``.onnx`` file of `deploy`.
        metadata: of the classifier.
        path: ``.onnx``, or the ending of another runtime that reads ONNX, such as ``.xml``.
        settings: settings of the evaluation; its data are also used for the calibration.
        deploy: layouts and norms of the deployed form.
        calibration: settings of the calibration.
        name: its name in the report.

    Raises:
        InputError: the data or an option cannot be used.
        RunError: the network cannot be quantized, or the file cannot be written.
    """
    splits = judging_data(metadata, settings)
    judging = _batches(labelled_images(splits, settings.split, metadata), metadata, settings, splits)
    chosen = splits.train.spread(calibration.images)
    images = [batch["image"][batch["status"] == GOOD] for batch in _batches(chosen, metadata, settings, splits)]
    report, original = write_quantized(source, metadata, path, images, deploy, calibration)
    judge = partial(
        evaluate_model, loader=judging, num_classes=metadata.model.num_classes, limit_batches=settings.limit_batches
    )
    return QuantizedNetwork(name, judge(_Runs(original)), judge(_Runs(runtime_for(path).load(path))), report)


def reader_of(path: Path) -> OnnxReader[LoadedFile]:
    """`xvolution.deploy.quantize.int8_runtime`, with an error of the command line.

    Raises:
        InputError: the path's runtime has no int8 files, or no runtime has such an ending.
    """
    try:
        return int8_runtime(path)
    except ValueError as error:
        raise InputError(f"{error}.") from error


def _batches(
    source: ImageSource, metadata: ClassifierMetadata, settings: EvaluationSettings, splits: DataSplits
) -> DataLoader[Batch]:
    workers = settings.workers if settings.workers is not None else default_workers(splits)
    options: dict[str, Any] = {"workers": workers, "on_bad_image": settings.on_bad_image}
    return evaluation_loader(source, metadata.preprocessing, settings.batch_size, **options)


def _export(
    model: nn.Module,
    metadata: ClassifierMetadata,
    path: Path,
    settings: DeploySettings,
    equalized: Sequence[torch.Tensor] | None,
) -> None:
    """Write the deployed form in fp32, with its description, for the runtime that the settings name."""
    result = deploy_classifier(model, metadata, settings) if metadata.form == "training" else None
    form = DeployedForm(model, metadata, 0.0) if result is None else next(iter(result.forms.values()))
    if equalized is not None:
        form = replace(form, model=equalize(form.model, equalized))
    writer = result or ClassifierDeployment({}, metadata.example_images(), False)
    writer.export(form, path)


def _write(original: Path, path: Path, images: Sequence[torch.Tensor], method: Method) -> QuantizationReport:
    """Write the quantized file by its ending, its description in it and, but for ONNX, beside it."""
    with atomic_path(path) as temporary:
        report = quantize(original, temporary, images, method=method)
        if path.suffix != ONNX:
            header = OnnxRuntime().load(original).properties[HEADER]
            temporary.with_suffix(temporary.suffix + ".json").write_text(f"{header}\n", encoding="utf-8")
    return replace(report, path=path)
