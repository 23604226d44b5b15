"""`evaluate` of a detector, and `predict`: what it finds on images."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import nn

from xvolution.training.checkpoint import load_detector
from xvolution.training.coco.data import detection_loader
from xvolution.training.coco.metrics import CocoMetrics, to_results
from xvolution.training.coco.source import DetectionSource, open_detection, open_part
from xvolution.training.errors import InputError
from xvolution.training.evaluation import clock, pick_device
from xvolution.training.files import write_text
from xvolution.training.memory import peak_memory
from xvolution.training.metadata import DetectorMetadata
from xvolution.training.pictures import Pictured, draw, read_image, write_page, write_picture

_IMAGES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")


@dataclass
class DetectionEvaluation:
    """What an evaluation of a detector found.

    Attributes:
        figures: COCO's figures as fractions of 1, by names such as box_ap and mask_ap50; see ``CocoMetrics.compute``.
        categories: for each its name, objects and AP of each kind.
        images: how many were judged.
        seconds_per_image: of the detector alone, without loading; the first image is left out where there are more.
        peak_memory: the most that the process has held so far, on the GPU where it used one, else in RAM; in bytes.
        judged: the detections that the figures are computed from.
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
    checkpoint: str | os.PathLike[str],
    data: str | os.PathLike[str] | None = None,
    *,
    split: str = "val",
    holdout: float | None = None,
    seed: int = 0,
    batch_size: int = 1,
    workers: int = 0,
    device: str = "auto",
    on_bad_image: str = "error",
    limit_batches: int | None = None,
    results: str | os.PathLike[str] | None = None,
    page: str | os.PathLike[str] | None = None,
    pictures: int = 24,
) -> DetectionEvaluation:
    """Evaluate a detector with COCO's metrics.

    Args:
        checkpoint: a .ckpt, a .safetensors (training or deployed form) or an .onnx file of this library.
        data: as ``open_detection`` takes it; by default what the detector was trained on.
        split: train, val or test.
        holdout: as in training: ``val`` is then this fraction of the training part.
        seed: of the held-out part.
        batch_size: images in a batch.
        workers: processes that load images.
        device: cpu, cuda, cuda:1, mps, or auto for a GPU where there is one. ONNX runs on the CPU.
        on_bad_image: "error" ends at an unreadable image, "skip" leaves it out.
        limit_batches: evaluate at most so many batches.
        results: JSON file for the detections in COCO's submission format.
        page: HTML file for pictures of the first images, the truth beside what was found.
        pictures: how many.

    Raises:
        InputError: the checkpoint or the data cannot be used, or they do not fit each other.
        RunError: a file cannot be written.
    """
    if batch_size < 1:
        raise InputError(f"the batch size is {batch_size}; it must be at least 1.")
    place = pick_device(device)
    model, metadata = open_detector(checkpoint, place)
    name = metadata.data if data is None else data
    if holdout is not None and split == "val":
        source = open_detection(name, metadata.masks, holdout, seed, on_bad_image).val
    else:
        source = open_part(name, split, metadata.masks, on_bad_image)
    loader = detection_loader(source, batch_size, workers, on_bad_image)
    metrics = CocoMetrics(source, metadata.masks, _category_ids(metadata, source))
    seconds, drawn = _judge(model, loader, metrics, limit_batches, metadata.class_names, pictures if page else 0)
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
        write_page(page, f"{metadata.model.name} on {name}", str(result), drawn)
    return result


def open_detector(path: str | os.PathLike[str], device: torch.device) -> tuple[nn.Module, DetectorMetadata]:
    """Open a detector's checkpoint of any kind, by its ending.

    Raises:
        InputError: it is none.
    """
    if Path(path).suffix == ".onnx":
        from xvolution.training.onnx_model import load_onnx_detector

        return load_onnx_detector(path)
    return load_detector(path, device)


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
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    seconds: list[float] = []
    drawn: list[Pictured] = []
    for batch in islice(loader, limit):
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


def predict(
    checkpoint: str | os.PathLike[str],
    images: Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str] = "predictions",
    *,
    score_threshold: float = 0.5,
    device: str = "auto",
) -> list[Path]:
    """Draw what a detector finds on images, and write it in COCO's format.

    Args:
        checkpoint: a .ckpt, a .safetensors (training or deployed form) or an .onnx file of this library.
        images: files, or folders of them.
        output: folder for the pictures and for ``results.json``: COCO's results, with the position of the image as image_id and
            its name as file_name.
        score_threshold: what scores less is neither drawn nor written.
        device: cpu, cuda, cuda:1, mps, or auto for a GPU where there is one. ONNX runs on the CPU.

    Returns:
        The files written, results.json last.

    Raises:
        InputError: the checkpoint or an image cannot be used.
        RunError: a file cannot be written.
    """
    if not 0 <= score_threshold <= 1:
        raise InputError(f"--score-threshold is {score_threshold}; it must be between 0 and 1.")
    paths = list(_image_files(images))
    place = pick_device(device)
    model, metadata = open_detector(checkpoint, place)
    device_of_model = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    written: list[Path] = []
    results: list[dict[str, Any]] = []
    folder = Path(output)
    for position, path in enumerate(paths):
        image = read_image(path).to(device_of_model)
        with torch.inference_mode():
            (found,) = model([image])
        kept = found["scores"] >= score_threshold
        found = {name: value[kept] for name, value in found.items()}
        results += [{**each, "file_name": str(path)} for each in to_results(found, position, metadata.category_ids)]
        target = folder / _picture_name(path, written)
        write_picture(target, draw(image, found, metadata.class_names, score_threshold))
        written.append(target)
    write_text(folder / "results.json", json.dumps(results) + "\n")
    return [*written, folder / "results.json"]


def _image_files(images: Iterable[str | os.PathLike[str]]) -> Iterable[Path]:
    for given in map(Path, images):
        if given.is_dir():
            inside = sorted(path for path in given.iterdir() if path.suffix.lower() in _IMAGES)
            if not inside:
                raise InputError(f"there are no images in {given}; the endings are {', '.join(_IMAGES)}.")
            yield from inside
        elif given.is_file():
            yield given
        else:
            raise InputError(f"there is no file {given}.")


def _picture_name(path: Path, taken: Sequence[Path]) -> str:
    """Images of one name from several folders get pictures of their own."""
    names = {each.name for each in taken}
    name, number = f"{path.stem}.png", 2
    while name in names:
        name, number = f"{path.stem}-{number}.png", number + 1
    return name
