"""Evaluating a detector of any form with COCO's metrics."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import nn

from xvolution.training.coco.catalog import open_detection, open_part
from xvolution.training.coco.data import detection_loader
from xvolution.training.coco.metrics import CocoMetrics
from xvolution.training.coco.source import DetectionSource
from xvolution.training.detection.metadata import DetectorMetadata
from xvolution.training.detection.pictures import Pictured, draw, write_page
from xvolution.training.errors import InputError
from xvolution.training.evaluation import Evaluation, EvaluationSettings, clock, device_of
from xvolution.training.files import write_text
from xvolution.training.held_out import JUDGE_BY_OTHERS, HeldOut, require_unseen
from xvolution.training.memory import peak_memory
from xvolution.training.progress import followed


@dataclass
class DetectionEvaluation(Evaluation):
    """The results of a detector's evaluation.

    Attributes:
        figures: COCO's figures as fractions of 1, by names such as box_ap and mask_ap50; see ``CocoMetrics.compute``.
        categories: for each its name, objects and AP of each kind.
        images: number of evaluated images.
        seconds_per_image: time of the detector without loading; the first image is left out if there are more.
        peak_memory: largest memory of the process so far in bytes, on the GPU if it used one, else in RAM.
        judged: the detections from which the figures are computed.
    """

    figures: dict[str, float]
    categories: list[dict[str, Any]]
    images: int
    seconds_per_image: float
    peak_memory: int
    judged: CocoMetrics

    @property
    def results(self) -> list[dict[str, Any]]:
        """The detections in COCO's submission format."""
        return self.judged.results

    def to_dict(self) -> dict[str, Any]:
        """The figures, without the detections, as plain JSON values."""
        return {key: value for key, value in vars(self).items() if key != "judged"}

    def __str__(self) -> str:
        lines = []
        for kind in ("box", "mask"):
            named = {name.removeprefix(f"{kind}_"): v for name, v in self.figures.items() if name.startswith(kind)}
            if named:
                lines.append(
                    f"{kind:<4}  " + "  ".join(f"{name.upper()} {_percent(value)}" for name, value in named.items())
                )
        memory = f"peak memory {self.peak_memory / 2**20:.0f} MiB"
        lines.append(f"{self.images} images, {self.seconds_per_image:.3f} s for each, {memory}")
        present = [row for row in self.categories if row["objects"]]
        width = max((len(row["category"]) for row in present), default=0)
        for row in present:
            scores = "  ".join(
                f"{key.removesuffix('_ap')} AP {_percent(row[key])}" for key in row if key.endswith("_ap")
            )
            lines.append(f"  {row['category']:<{width}}  {row['objects']:>6} objects  {scores}")
        return "\n".join(lines)


def evaluate_detector(
    model: nn.Module,
    metadata: DetectorMetadata,
    settings: EvaluationSettings,
    *,
    results: str | os.PathLike[str] | None = None,
    page: str | os.PathLike[str] | None = None,
    pictures: int = 24,
) -> DetectionEvaluation:
    """`xvolution.training.evaluate` of a detector in any form, in eval mode."""
    source = _judging_images(metadata, settings)
    loader = detection_loader(source, settings.batch_size, settings.workers or 0, settings.on_bad_image)
    metrics = CocoMetrics(source, metadata.masks, _category_ids(metadata, source))
    seconds, drawn = _judge(
        model, loader, metrics, settings.limit_batches, metadata.class_names, pictures if page else 0
    )
    if not metrics.image_ids:
        raise InputError("there was no readable image to evaluate.")
    timed = seconds[1:] or seconds  # the first image warms up
    result = DetectionEvaluation(
        metrics.compute(),
        metrics.by_category(),
        len(metrics.image_ids),
        sum(timed) / len(timed),
        peak_memory().bytes,
        metrics,
    )
    if results is not None:
        write_text(results, json.dumps(result.results) + "\n")
    if page is not None:
        write_page(page, f"{metadata.model.name} on {settings.data}", str(result), drawn)
    return result


def _judging_images(metadata: DetectorMetadata, settings: EvaluationSettings) -> DetectionSource:
    data, masks = settings.data, metadata.masks
    reading = (settings.on_bad_image, settings.max_pixels, settings.outside_images)
    if settings.split != "val":
        return open_part(data, settings.split, masks, *reading)
    held_out = None if settings.holdout is None else HeldOut(settings.holdout, settings.seed)
    require_unseen("the network", metadata, data, held_out, JUDGE_BY_OTHERS)
    if held_out is None:
        return open_part(data, settings.split, masks, *reading)
    return open_detection(data, masks, settings.holdout, settings.seed, *reading).val


def _category_ids(metadata: DetectorMetadata, source: DetectionSource) -> list[int | None]:
    """The source's category of each of the detector's labels, by name."""
    ids = dict(zip(source.class_names, source.category_ids, strict=True))
    if source.class_names == metadata.class_names:
        return list(source.category_ids)
    unknown = [name for name in ids if name not in metadata.class_names]
    if unknown:
        raise InputError(
            f"{source.annotations.path} has the category {unknown[0]!r}, which the detector does not know "
            f"({len(unknown)} such categories); it knows {', '.join(metadata.class_names[:8])}."
        )
    return [ids.get(name) for name in metadata.class_names]


@torch.inference_mode()
def _judge(
    model: nn.Module, loader: Any, metrics: CocoMetrics, limit: int | None, class_names: list[str], pictures: int
) -> tuple[list[float], list[Pictured]]:
    """Seconds of every image, and the first pictures."""
    device = device_of(model)
    seconds: list[float] = []
    drawn: list[Pictured] = []
    batches = len(loader) if limit is None else min(limit, len(loader))
    for batch in followed(islice(loader, limit), batches, "judging"):
        images = [image.to(device) for image in batch["image"]]
        began = clock(device)
        found = model(images)
        seconds += [(clock(device) - began) / len(images)] * len(images)
        for index, counted, detections, image, target in zip(
            batch["index"], batch["counted"], found, images, batch["target"], strict=True
        ):
            if not counted:
                continue
            metrics.update(index, detections)
            if len(drawn) < pictures:
                truth, guess = draw(image, target, metrics.source.class_names), draw(image, detections, class_names)
                drawn.append(Pictured(metrics.source.describe(index), truth, guess))
    return seconds, drawn


def _percent(value: float) -> str:
    return "none" if value < 0 else f"{100 * value:.1f}"
