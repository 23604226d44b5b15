"""Average precision of masks without pycocotools, image by image, so that intervals over images can be drawn from it."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

#: Of the overlap from which a detection counts, as COCO has them.
THRESHOLDS = np.linspace(0.5, 0.95, 10)
_RECALLS = np.linspace(0, 1, 101)


@dataclass(frozen=True)
class Matches:
    """The detections of one image, by descending score.

    Attributes:
        scores: (D,) float32.
        matched: (D, 10) bool, whether each has an object of its own at each threshold.
        objects: how many there are.
    """

    scores: NDArray[np.float32]
    matched: NDArray[np.bool_]
    objects: int


def match(scores: NDArray[np.float32], overlaps: NDArray[np.float32]) -> Matches:
    """Give each detection, the best one first, the free object that it overlaps most.

    Args:
        scores: (D,).
        overlaps: (D, G) intersection over union.
    """
    order = np.argsort(-scores, kind="stable")
    free = np.ones((len(THRESHOLDS), overlaps.shape[1]), bool)
    matched = np.zeros((len(scores), len(THRESHOLDS)), bool)
    for row, index in enumerate(order if overlaps.shape[1] else ()):
        open_to = np.where(free, overlaps[index], -1.0)
        best = open_to.argmax(1)
        found = open_to.max(1) >= THRESHOLDS
        matched[row] = found
        free[found, best[found]] = False
    return Matches(scores[order], matched, overlaps.shape[1])


def average_precision(images: Sequence[Matches]) -> tuple[float, float]:
    """Average precision over all thresholds, and at an overlap of one half; NaN where there is no object."""
    objects = sum(image.objects for image in images)
    if objects == 0:
        return float("nan"), float("nan")
    scores = np.concatenate([image.scores for image in images])
    matched = np.concatenate([image.matched for image in images])[np.argsort(-scores, kind="stable")]
    hits = matched.cumsum(0)
    precision = hits / np.arange(1, len(hits) + 1)[:, None]
    # The best precision at this recall or a higher one.
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    by_threshold = []
    for column in range(len(THRESHOLDS)):
        at = np.searchsorted(hits[:, column] / objects, _RECALLS, side="left")
        reached = at < len(hits)
        by_threshold.append(precision[at[reached], column].sum() / len(_RECALLS))
    return float(np.mean(by_threshold)), float(by_threshold[0])


def to_json(images: Sequence[Matches]) -> dict[str, Any]:
    """Everything as JSON values."""
    scores = np.concatenate([image.scores for image in images]).astype(np.float32)
    matched = np.packbits(np.concatenate([image.matched for image in images]))
    return {
        "detections": [len(image.scores) for image in images],
        "objects": [image.objects for image in images],
        "scores": base64.b64encode(scores.tobytes()).decode(),
        "matched": base64.b64encode(matched.tobytes()).decode(),
    }


def from_json(values: dict[str, Any]) -> list[Matches]:
    """The inverse of ``to_json``."""
    ends = np.cumsum(values["detections"])
    scores = np.frombuffer(base64.b64decode(values["scores"]), np.float32)
    bits = np.frombuffer(base64.b64decode(values["matched"]), np.uint8)
    matched = np.unpackbits(bits, count=len(scores) * len(THRESHOLDS)).reshape(-1, len(THRESHOLDS)).astype(bool)
    parts = zip(np.split(scores, ends[:-1]), np.split(matched, ends[:-1]), values["objects"], strict=True)
    return [Matches(*part) for part in parts]
