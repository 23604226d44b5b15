"""Predictions of a detector for pictures: drawn, and in COCO's format."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from xvolution.training.coco.metrics import to_results
from xvolution.training.detection.metadata import DetectorMetadata
from xvolution.training.detection.pictures import as_tensor, draw, write_picture
from xvolution.training.errors import InputError
from xvolution.training.files import write_text
from xvolution.training.predictor import (
    Picture,
    Predictions,
    Predictor,
    PredictSettings,
    as_list,
    counted,
    name_of,
    readable,
)


@dataclass(frozen=True)
class DetectedPicture:
    """The detected objects on a picture, the best one first.

    Attributes:
        picture: path of the picture; empty if it has none.
        classes: class name of each object.
        scores: score of each object, from 0 to 1.
        boxes: (n, 4) float32, x1, y1, x2, y2 in pixels.
        masks: (n, 1, H, W) float32 probabilities; None if the detector has no masks.
    """

    picture: str
    classes: tuple[str, ...]
    scores: tuple[float, ...]
    boxes: Tensor
    masks: Tensor | None = field(default=None, repr=False)


class DetectorPredictor(Predictor[DetectedPicture]):
    """See `Predictor`; a detector resizes and normalizes its images itself."""

    metadata: DetectorMetadata

    def preprocess(self, picture: Picture) -> Tensor:
        """One picture, rotated by its EXIF orientation.

        Returns:
            (3, H, W) float32 in [0, 1] on the CPU.

        Raises:
            BadImage: the image cannot be decoded.
        """
        return as_tensor(self.read(picture))

    @torch.inference_mode()
    def __call__(self, images: Sequence[Tensor]) -> list[dict[str, Tensor]]:
        """Images, each (3, H, W) float32 in [0, 1], to boxes, labels, scores and masks as torchvision's detectors give them."""
        return self.model([image.to(self.device) for image in images])

    def predict(self, pictures: Picture | Sequence[Picture], score_threshold: float = 0.5) -> list[DetectedPicture]:
        """The objects on each picture.

        Args:
            pictures: a file, a Pillow image, or several.
            score_threshold: lowest score of a returned object.

        Raises:
            BadImage: a picture cannot be decoded.
            InputError: the threshold is not from 0 to 1.
        """
        require_score(score_threshold)
        found = []
        for picture in as_list(pictures):
            (objects,) = self([self.preprocess(picture)])
            found.append(self.named(name_of(picture), _above(objects, score_threshold)))
        return found

    def named(self, picture: str, objects: dict[str, Tensor]) -> DetectedPicture:
        """The detections on a picture, with class names."""
        classes = tuple(self.classes[label - 1] for label in objects["labels"].tolist())
        scores, masks = tuple(objects["scores"].tolist()), objects.get("masks")
        return DetectedPicture(picture, classes, scores, objects["boxes"].cpu(), None if masks is None else masks.cpu())


@dataclass
class DetectorPredictions(Predictions):
    """`Predictions` of a detector; ``answers`` are `DetectedPicture` without masks.

    Attributes:
        folder: folder of the pictures and of results.json.
        score_threshold: lowest score of a kept object.
        best_score: highest score on any picture, also below the threshold; 0 without detections.
    """

    answers: list[DetectedPicture]
    folder: Path
    score_threshold: float
    best_score: float

    @property
    def found(self) -> str:
        pictures = counted(len(self.answers), "picture")
        wrote = f"{len(self.files) - 1} pictures in {self.folder}, results in {self.files[-1]}"
        counts = Counter(name for answer in self.answers for name in answer.classes)
        if not counts:
            return (
                f"{wrote}\nno object has a score of {self.score_threshold:g} or more on {pictures}; the best "
                f"score is {self.best_score:.2f}. A lower --score-threshold keeps more"
            )
        named = ", ".join(f"{name} {count}" for name, count in counts.most_common())
        some = sum(bool(answer.classes) for answer in self.answers)
        return f"{wrote}\n{counted(counts.total(), 'object')} on {some} of {pictures}: {named}"


def draw_detections(
    predictor: DetectorPredictor,
    paths: Sequence[Path],
    settings: PredictSettings,
    *,
    output: str | os.PathLike[str] = "predictions",
    score_threshold: float = 0.5,
) -> DetectorPredictions:
    """`xvolution.training.predict` of a detector in any form."""
    require_score(score_threshold)
    folder, metadata = Path(output), predictor.metadata
    found = DetectorPredictions([], folder, score_threshold, 0.0)
    results: list[dict[str, Any]] = []
    for position, path, image in readable(predictor, paths, settings, found.skipped):
        (objects,) = predictor([image])
        found.best_score = max([found.best_score, *objects["scores"].tolist()])
        objects = _above(objects, score_threshold)
        coco = to_results(objects, position, metadata.category_ids)
        results += [{**each, "file_name": str(path)} for each in coco]
        target = folder / _picture_name(path, found.files)
        write_picture(target, draw(image, objects, metadata.class_names, score_threshold))
        found.files.append(target)
        found.answers.append(replace(predictor.named(str(path), objects), masks=None))
    write_text(folder / "results.json", json.dumps(results) + "\n")
    found.files.append(folder / "results.json")
    return found


def require_score(score_threshold: float) -> None:
    """Require that a threshold is a possible score.

    Raises:
        InputError: it is below 0 or above 1.
    """
    if not 0 <= score_threshold <= 1:
        raise InputError(f"--score-threshold is {score_threshold}; it must be between 0 and 1.")


def _above(objects: dict[str, Tensor], score_threshold: float) -> dict[str, Tensor]:
    kept = objects["scores"] >= score_threshold
    return {name: value[kept] for name, value in objects.items()}


def _picture_name(path: Path, taken: Sequence[Path]) -> str:
    """A unique name for the drawn picture, also for images with the same name in several folders."""
    names = {each.name for each in taken}
    name, number = f"{path.stem}.png", 2
    while name in names:
        name, number = f"{path.stem}-{number}.png", number + 1
    return name
