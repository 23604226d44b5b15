"""`quantize`: a checkpoint in 8-bit integers, compared with its plain network if one is given."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xvolution.training.classification.metadata import ClassifierMetadata
from xvolution.training.classification.quantize import (
    ONNX,
    Calibration,
    Method,
    QuantizedNetwork,
    quantize_classifier,
    reader_of,
)
from xvolution.training.deployment import DeploySettings
from xvolution.training.errors import InputError
from xvolution.training.evaluation import EvaluationSettings
from xvolution.training.held_out import seed_of
from xvolution.training.tasks import CLASSIFY, task_of_file


@dataclass(frozen=True)
class Quantization:
    """The written file, and the evaluations before and after.

    Attributes:
        path: the file.
        networks: the network of the checkpoint, then its plain network if one was given.
    """

    path: Path
    networks: tuple[QuantizedNetwork, ...]

    def to_dict(self) -> dict[str, Any]:
        """The figures, as plain JSON values."""
        return {"path": str(self.path), "networks": [network.to_dict() for network in self.networks]}

    def __str__(self) -> str:
        width = max(len(network.name) for network in self.networks)
        lines = [f"{'':<{width}}  form     top-1    top-5    loss  other predictions  error of the logits       bytes"]
        for each in self.networks:
            for form, judged, size in (
                ("fp32", each.before, each.report.bytes_before),
                ("int8", each.after, each.report.bytes_after),
            ):
                name = each.name if form == "fp32" else ""
                of = f"{each.changed} of {each.after.images}" if form == "int8" else ""
                off = f"{each.report.relative_error:.1%}" if form == "int8" else ""
                figures = f"{judged.top1:7.2%}  {judged.top5:7.2%}  {judged.loss:6.4f}"
                lines.append(f"{name:<{width}}  {form}   {figures}  {of:>17}  {off:>19}  {size:>10,}")
        lost = " and ".join(
            f"{100 * (each.after.top1 - each.before.top1):+.2f} points for {each.name}" for each in self.networks
        )
        images = self.networks[0].report.calibration_images
        lines.append(f"top-1 after minus before: {lost}; calibrated on {images} training images")
        return "\n".join([*lines, f"wrote {self.path}"])


def quantize(
    checkpoint: str | os.PathLike[str],
    output: str | os.PathLike[str],
    data: str | os.PathLike[str] | None = None,
    *,
    plain: str | os.PathLike[str] | None = None,
    images: int = 256,
    method: Method = "minmax",
    equalized: bool = False,
    layout: str = "auto",
    split: str = "val",
    holdout: float | str | None = None,
    seed: int | None = None,
    batch_size: int = 64,
    workers: int | None = None,
    limit_batches: int | None = None,
    max_pixels: int | None = None,
    outside_images: bool = False,
    checksum: bool = True,
    progress: Callable[[str], None] | None = None,
) -> Quantization:
    """Write a classifier in 8-bit integers, and evaluate it before and after.

    The deployed form, with every norm folded, is written in fp32 and quantized: weights per output channel, activations per
    tensor, with ranges from training images.

    Args:
        checkpoint: a .ckpt or .safetensors file of this library, or an fp32 .onnx file of `deploy`.
        output: ``.onnx`` or ``.xml``.
        data: as in training; by default the data that the network was trained on.
        plain: a checkpoint or file of the plain network, which is evaluated before and after in the same way and not written.
        images: number of training images for the calibration, evenly spread.
        method: how the calibration computes the range of an activation: minmax, entropy or percentile.
        equalized: rescale the parts of deployed operators so that one 8-bit scale covers their ranges; see
            `xvolution.deploy.equalize`.
        layout: layout of every operator, or auto for the fastest one in the output's runtime, in fp32.
        split: part to evaluate on: train, val or test.
        holdout: hold out this fraction of the training part as ``val``, or a fold such as ``2/5``, as in training.
        seed: seed that chooses the held-out images; by default that of the network's training if it held out images of these
            data.
        batch_size: images in a batch.
        workers: processes that load images.
        limit_batches: largest number of batches to evaluate on.
        max_pixels: largest number of pixels in an image; Pillow's own limit if None.
        outside_images: also read images outside the data folder that tables name.
        checksum: check the files against the checksums stored in them, if they have one.
        progress: called with a line for each timed operator and before each step.

    Raises:
        InputError: a file, the data or an option cannot be used.
        RunError: a network cannot be quantized, or the file cannot be written.
    """
    path, calibration = Path(output), Calibration(images, method, equalized)
    deploy = DeploySettings(layout, True, (reader_of(path).name,), None, progress)

    def made(given: str | os.PathLike[str], to: Path, name: str) -> QuantizedNetwork:
        if task_of_file(given) is not CLASSIFY:
            raise InputError(f"{given} does not hold a classifier; only classifiers can be quantized.")
        model, metadata = CLASSIFY.load(given, checksum=checksum)
        assert isinstance(metadata, ClassifierMetadata)
        is_file = Path(given).suffix == ONNX
        if is_file and equalized:
            raise InputError(f"{given} is an exported graph, whose parts cannot be equalized; give the checkpoint.")
        judged_by = metadata.data if data is None else data
        settings = EvaluationSettings(
            judged_by,
            split,
            holdout,
            seed_of(metadata, judged_by, seed),
            batch_size,
            workers,
            "error",
            limit_batches,
            max_pixels,
            outside_images,
        )
        if progress is not None:
            progress(f"quantizing {given}")
        return quantize_classifier(Path(given) if is_file else model, metadata, to, settings, deploy, calibration, name)

    found = [made(checkpoint, path, os.fspath(Path(checkpoint).name) if plain is None else "the network")]
    if plain is not None:
        with tempfile.TemporaryDirectory() as folder:
            found.append(made(plain, Path(folder) / f"plain{path.suffix}", "its plain twin"))
    return Quantization(path, tuple(found))
