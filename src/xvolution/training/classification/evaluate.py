"""Evaluating a classifier of any form on any data set."""

from __future__ import annotations

import csv
import os
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader

from xvolution.training.classification.metadata import ClassifierMetadata
from xvolution.training.classification.metrics import ClassificationMetrics
from xvolution.training.data import DataSplits, ImageSource, evaluation_loader, open_data
from xvolution.training.data.dataset import GOOD, Batch
from xvolution.training.data.labels import align_labels, require_labels
from xvolution.training.data.module import default_workers
from xvolution.training.errors import InputError
from xvolution.training.evaluation import Evaluation, EvaluationSettings, clock, device_of
from xvolution.training.files import atomic_path
from xvolution.training.held_out import JUDGE_BY_OTHERS, require_unseen
from xvolution.training.progress import followed


@dataclass
class EvaluationResult(Evaluation):
    """The results of a classifier's evaluation.

    Attributes:
        top1: fraction of images whose most likely class is correct.
        top5: fraction of images whose class is among the five most likely (or all, with fewer classes).
        loss: mean cross-entropy, in nats.
        images: number of counted images.
        images_per_second: speed of the network without loading; the first batch is left out if there are more.
        skipped: unreadable images that were left out.
        predictions: (images,) int64, the most likely class of each counted image, in the data's order.
        indices: (images,) int64, index of the image of each prediction in the data.
    """

    top1: float
    top5: float
    loss: float
    images: int
    images_per_second: float
    skipped: int
    predictions: torch.Tensor
    indices: torch.Tensor

    def to_dict(self) -> dict[str, Any]:
        """The figures, without the predictions, as plain JSON values."""
        return {key: value for key, value in vars(self).items() if not isinstance(value, torch.Tensor)}

    def __str__(self) -> str:
        figures = f"top-1 {self.top1:.2%}  top-5 {self.top5:.2%}  loss {self.loss:.4f}  {self.images} images"
        skipped = f"  {self.skipped} unreadable images skipped" if self.skipped else ""
        return f"{figures}  {self.images_per_second:.1f} images/s{skipped}"


def evaluate_classifier(
    model: nn.Module,
    metadata: ClassifierMetadata,
    settings: EvaluationSettings,
    *,
    image_size: int | None = None,
    predictions: str | os.PathLike[str] | None = None,
) -> EvaluationResult:
    """`xvolution.training.evaluate` of a classifier in any form, in eval mode."""
    splits = judging_data(metadata, settings)
    source = labelled_images(splits, settings.split, metadata)
    loader = evaluation_loader(
        source,
        metadata.preprocessing.resized(image_size),
        settings.batch_size,
        workers=settings.workers if settings.workers is not None else default_workers(splits),
        on_bad_image=settings.on_bad_image,
    )
    result = evaluate_model(model, loader, metadata.model.num_classes, settings.limit_batches)
    if predictions is not None:
        _write_predictions(predictions, result, source, metadata.class_names)
    return result


def judging_data(metadata: ClassifierMetadata, settings: EvaluationSettings) -> DataSplits:
    """The data set of an evaluation.

    Raises:
        InputError: it cannot be opened, or the classifier learned from images of ``val``, which judges it.
    """
    splits = open_data(settings.data, settings.holdout, settings.seed, settings.max_pixels, settings.outside_images)
    if settings.split == "val":
        require_unseen("the network", metadata, settings.data, splits.held_out, JUDGE_BY_OTHERS)
    return splits


def labelled_images(splits: DataSplits, split: str, metadata: ClassifierMetadata) -> ImageSource:
    """The images of one part, with labels numbered like the classifier's outputs.

    Raises:
        InputError: there is no such part, it has no labels, or its classes differ from the classifier's.
    """
    source = align_labels(splits.part(split), metadata.class_names)
    require_labels(source, metadata.model.num_classes, splits.name)
    return source


@torch.inference_mode()
def evaluate_model(
    model: nn.Module, loader: DataLoader[Batch], num_classes: int, limit_batches: int | None = None
) -> EvaluationResult:
    """Evaluate a module in eval mode on the batches of an `evaluation_loader`, on the module's device."""
    device = device_of(model)
    metrics = ClassificationMetrics(num_classes).to(device)
    predicted, indices, timings = [], [], []
    batches = len(loader) if limit_batches is None else min(limit_batches, len(loader))
    for batch in followed(islice(loader, limit_batches), batches, "judging"):
        batch = {name: tensor.to(device) for name, tensor in batch.items()}
        began = clock(device)
        logits = model(batch["image"])
        timings.append((len(logits), clock(device) - began))
        if logits.ndim != 2 or logits.shape[1] != num_classes:
            raise InputError(
                f"the network returns the shape {tuple(logits.shape)}, not (images, {num_classes} classes)."
            )
        metrics.update(logits, batch)
        counted = batch["status"] == GOOD
        predicted.append(logits[counted].argmax(1).cpu())
        indices.append(batch["index"][counted].cpu())
    if metrics.images == 0:
        raise InputError("there was no readable image to evaluate.")
    timed = timings[1:] or timings  # the first batch warms up
    rate = sum(count for count, _ in timed) / sum(seconds for _, seconds in timed)
    return EvaluationResult(
        **metrics.compute(),
        images=metrics.images,
        images_per_second=rate,
        skipped=metrics.skipped,
        predictions=torch.cat(predicted),
        indices=torch.cat(indices),
    )


def _write_predictions(
    path: str | os.PathLike[str], result: EvaluationResult, source: ImageSource, class_names: list[str]
) -> None:
    with atomic_path(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["index", "image", "label", "prediction", "label_name", "prediction_name"])
        for index, prediction in zip(result.indices.tolist(), result.predictions.tolist(), strict=True):
            label = int(source.labels[index])
            writer.writerow(
                [index, source.describe(index), label, prediction, class_names[label], class_names[prediction]]
            )
