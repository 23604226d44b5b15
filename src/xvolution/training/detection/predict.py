"""Drawing what a detector finds on images."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from xvolution.training.coco.metrics import to_results
from xvolution.training.detection.metadata import DetectorMetadata
from xvolution.training.detection.pictures import draw, read_image, write_picture
from xvolution.training.evaluation import device_of
from xvolution.training.files import write_text


def draw_detections(
    model: nn.Module,
    metadata: DetectorMetadata,
    images: Sequence[Path],
    folder: Path,
    score_threshold: float,
    max_pixels: int | None = None,
) -> list[Path]:
    """`xvolution.training.predict` of a detector in any form, in eval mode, on image files."""
    device = device_of(model)
    written: list[Path] = []
    results: list[dict[str, Any]] = []
    for position, path in enumerate(images):
        image = read_image(path, max_pixels).to(device)
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


def _picture_name(path: Path, taken: Sequence[Path]) -> str:
    """Images of one name from several folders get pictures of their own."""
    names = {each.name for each in taken}
    name, number = f"{path.stem}.png", 2
    while name in names:
        name, number = f"{path.stem}-{number}.png", number + 1
    return name
