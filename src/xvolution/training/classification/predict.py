"""Predictions of a classifier for pictures: the most probable classes as lines, a table, JSON and a page."""

from __future__ import annotations

import csv as csv_files
import json as json_files
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from xvolution.training.classification.metadata import ClassifierMetadata
from xvolution.training.classification.page import write_page
from xvolution.training.data.reading import printable
from xvolution.training.data.transforms import evaluation_transform
from xvolution.training.errors import InputError
from xvolution.training.files import atomic_path, write_text
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

#: Pictures that go through a network at a time where nothing else is said.
_BATCH = 32
Item = TypeVar("Item")


@dataclass(frozen=True)
class ClassifiedPicture:
    """The most probable classes of a picture.

    Attributes:
        picture: path of the picture; empty if it has none.
        classes: names of the classes, the most probable one first.
        probabilities: probability of each, from the softmax over all classes.
    """

    picture: str
    classes: tuple[str, ...]
    probabilities: tuple[float, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        named = zip(self.classes, self.probabilities, strict=True)
        return {
            "picture": printable(self.picture),
            "classes": [{"name": name, "probability": value} for name, value in named],
        }

    def __str__(self) -> str:
        named = zip(self.classes, self.probabilities, strict=True)
        return "  ".join(f"{name} {value:.1%}" for name, value in named)


class ClassifierPredictor(Predictor[ClassifiedPicture]):
    """See `Predictor`."""

    metadata: ClassifierMetadata

    def __init__(self, model: nn.Module, metadata: ClassifierMetadata, max_pixels: int | None = None) -> None:
        super().__init__(model, metadata, max_pixels)
        self._transform = evaluation_transform(metadata.preprocessing)

    def preprocess(self, picture: Picture) -> Tensor:
        """One picture, turned as its EXIF orientation says, resized, cropped and normalized.

        Returns:
            (C, S, S) float32 on the CPU, S the network's image size.

        Raises:
            BadImage: the image cannot be decoded.
        """
        return self._transform(self.read(picture, self.metadata.preprocessing.channels))

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Tensor:
        """(N, C, H, W) float32 images, as `preprocess` makes them, to (N, num_classes) logits."""
        return self.model(images.to(self.device))

    def predict(self, pictures: Picture | Sequence[Picture], top: int = 5) -> list[ClassifiedPicture]:
        """The most probable classes of each picture.

        Args:
            pictures: a file, a Pillow image, or several.
            top: number of classes; all if there are fewer.

        Raises:
            BadImage: a picture cannot be decoded.
            InputError: ``top`` is below 1, or the network does not return one finite number for each class.
        """
        prepared = ((name_of(picture), self.preprocess(picture)) for picture in as_list(pictures))
        return [answer for part in batched(prepared, _BATCH) for answer in self.classify(part, top)]

    def classify(self, prepared: Sequence[tuple[str, Tensor]], top: int) -> list[ClassifiedPicture]:
        """`predict` for preprocessed pictures, as one batch, each with its path."""
        if top < 1:
            raise InputError(f"--top is {top}; it must be at least 1.")
        logits = self(torch.stack([image for _, image in prepared])).float().cpu()
        if logits.shape != (len(prepared), len(self.classes)) or not torch.isfinite(logits).all():
            raise InputError(
                f"the network {self.metadata.model.name} returns the shape {tuple(logits.shape)}, with NaN "
                f"values or without one value for each of {len(self.classes)} classes."
            )
        probabilities, classes = logits.softmax(1).topk(min(top, len(self.classes)))
        return [
            ClassifiedPicture(path, tuple(self.classes[index] for index in chosen.tolist()), tuple(values.tolist()))
            for (path, _), chosen, values in zip(prepared, classes, probabilities, strict=True)
        ]


@dataclass
class ClassifierPredictions(Predictions):
    """`Predictions` of a classifier; ``answers`` are `ClassifiedPicture`."""

    answers: list[ClassifiedPicture]

    @property
    def found(self) -> str:
        names = [printable(answer.picture) for answer in self.answers]
        width = max(map(len, names))
        lines = [f"{name:<{width}}  {answer}" for name, answer in zip(names, self.answers, strict=True)]
        wrote = [f"wrote {path}" for path in self.files]
        return "\n".join([*lines, *wrote, self.summary])

    @property
    def summary(self) -> str:
        """The number of pictures, and for each class the number of pictures of which it is the most probable class."""
        first = Counter(answer.classes[0] for answer in self.answers)
        named = ", ".join(f"{name} {count}" for name, count in first.most_common())
        return f"{counted(len(self.answers), 'picture')}: {named}"


def predict_classes(
    predictor: ClassifierPredictor,
    paths: Sequence[Path],
    settings: PredictSettings,
    *,
    top: int = 5,
    csv: str | os.PathLike[str] | None = None,
    json: str | os.PathLike[str] | None = None,
    page: str | os.PathLike[str] | None = None,
    pictures_on_page: int = 100,
) -> ClassifierPredictions:
    """`xvolution.training.predict` of a classifier in any form."""
    if pictures_on_page < 0:
        raise InputError(f"--pictures-on-page is {pictures_on_page}; it must be at least 0.")
    skipped: list[Path] = []
    prepared = ((str(path), image) for _, path, image in readable(predictor, paths, settings, skipped))
    answers = [answer for part in batched(prepared, settings.batch_size) for answer in predictor.classify(part, top)]
    found = ClassifierPredictions(answers, skipped=skipped)
    if csv is not None:
        _write_table(csv, answers)
    if json is not None:
        write_text(json, json_files.dumps([answer.to_dict() for answer in answers], indent=2) + "\n")
    if page is not None:
        write_page(page, predictor, found, pictures_on_page)
    found.files += [Path(path) for path in (csv, json, page) if path is not None]
    return found


def batched(items: Iterator[Item], size: int) -> Iterator[list[Item]]:
    """The items in lists of this length; the last list may be shorter."""
    while part := list(islice(items, size)):
        yield part


def _write_table(path: str | os.PathLike[str], answers: Sequence[ClassifiedPicture]) -> None:
    with atomic_path(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv_files.writer(file)
        writer.writerow(["picture", "rank", "class", "probability"])
        for answer in answers:
            for rank, (name, value) in enumerate(zip(answer.classes, answer.probabilities, strict=True), start=1):
                writer.writerow([printable(answer.picture), rank, name, value])
