"""`evaluate`: a checkpoint in any form on any data set."""

from __future__ import annotations

import csv
import os
import time
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader

from xvolution.training.checkpoint import load_model
from xvolution.training.data import DataSplits, ImageSource, evaluation_loader, open_data
from xvolution.training.data.dataset import GOOD, Batch
from xvolution.training.data.labels import align_labels, require_labels
from xvolution.training.data.module import default_workers
from xvolution.training.errors import InputError
from xvolution.training.files import atomic_path
from xvolution.training.metadata import Metadata
from xvolution.training.metrics import ClassificationMetrics


@dataclass
class EvaluationResult:
    """What an evaluation found.

    Attributes:
        top1: fraction of images whose most likely class is theirs.
        top5: fraction of images whose class is among the five most likely (or all, with fewer classes).
        loss: mean cross-entropy, in nats.
        images: how many were counted.
        images_per_second: of the network alone, without loading; the first batch is left out where there are more.
        skipped: unreadable images that were left out.
        predictions: (images,) int64, the most likely class of each counted image, in the data's order.
        indices: (images,) int64, which image of the data each prediction is of.
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


def evaluate(
    checkpoint: str | os.PathLike[str],
    data: str | os.PathLike[str] | None = None,
    *,
    split: str = "val",
    holdout: float | None = None,
    seed: int = 0,
    batch_size: int = 64,
    image_size: int | None = None,
    workers: int | None = None,
    device: str = "auto",
    on_bad_image: str = "error",
    limit_batches: int | None = None,
    predictions: str | os.PathLike[str] | None = None,
) -> EvaluationResult:
    """Evaluate a classifier.

    Args:
        checkpoint: a .ckpt, a .safetensors (training or deployed form) or an .onnx file of this library.
        data: as `open_data` takes it; by default what the network was trained on.
        split: train, val or test.
        holdout: as in training: `val` is then this fraction of the training part.
        seed: of the held-out part.
        batch_size: images in a batch.
        image_size: side length in pixels; by default that of training.
        workers: processes that load images; by default none for digits, else one for each core but one, at most 8.
        device: cpu, cuda, cuda:1, mps, or auto for a GPU where there is one. ONNX runs on the CPU.
        on_bad_image: "error" ends at an unreadable image, "skip" leaves it out.
        limit_batches: evaluate at most so many batches.
        predictions: CSV file for the prediction of every image.

    Raises:
        InputError: the checkpoint or the data cannot be used, or they do not fit each other.
        RunError: a file cannot be written.
    """
    if batch_size < 1:
        raise InputError(f"the batch size is {batch_size}; it must be at least 1.")
    model, metadata = open_classifier(checkpoint, pick_device(device))
    splits = open_data(data if data is not None else metadata.data, holdout, seed)
    source = labelled_images(splits, split, metadata)
    loader = evaluation_loader(
        source,
        metadata.preprocessing.resized(image_size),
        batch_size,
        workers=workers if workers is not None else default_workers(splits),
        on_bad_image=on_bad_image,
    )
    result = evaluate_model(model, loader, metadata.model.num_classes, limit_batches)
    if predictions is not None:
        _write_predictions(predictions, result, source, metadata.class_names)
    return result


def labelled_images(splits: DataSplits, split: str, metadata: Metadata) -> ImageSource:
    """The images of one part, their labels those of the classifier's outputs.

    Raises:
        InputError: there is no such part, it has no labels, or they are of other classes.
    """
    source = align_labels(splits.part(split), metadata.class_names)
    require_labels(source, metadata.model.num_classes, splits.name)
    return source


def open_classifier(path: str | os.PathLike[str], device: torch.device) -> tuple[nn.Module, Metadata]:
    """Open a checkpoint of any kind, by its ending.

    Raises:
        InputError: it is none.
    """
    if Path(path).suffix == ".onnx":
        from xvolution.training.onnx_model import load_onnx

        return load_onnx(path)
    return load_model(path, device)


def pick_device(name: str) -> torch.device:
    """Answer the device of that name; `auto` is a GPU where there is one.

    Raises:
        InputError: there is no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"there is no device {name!r} here; give cpu or auto.") from error
    return device


@torch.inference_mode()
def evaluate_model(
    model: nn.Module, loader: DataLoader[Batch], num_classes: int, limit_batches: int | None = None
) -> EvaluationResult:
    """Evaluate a module in eval mode on the batches of an `evaluation_loader`, on the module's device."""
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    metrics = ClassificationMetrics(num_classes).to(device)
    predicted, indices, timings = [], [], []
    for batch in islice(loader, limit_batches):
        batch = {name: tensor.to(device) for name, tensor in batch.items()}
        began = clock(device)
        logits = model(batch["image"])
        timings.append((len(logits), clock(device) - began))
        if logits.ndim != 2 or logits.shape[1] != num_classes:
            raise InputError(f"the network answers {tuple(logits.shape)}, not (images, {num_classes} classes).")
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


def clock(device: torch.device) -> float:
    """Seconds, when everything that was asked of the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


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
