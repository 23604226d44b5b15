"""Average precision on resampled evaluation images, from pycocotools' stored matches of each image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

_AT_ONCE = 2**22  # numbers in one array, so that large data sets need no more memory than small ones


@dataclass(frozen=True)
class _Category:
    """pycocotools' matches in one category, for all sizes of objects, with the best scores first.

    Attributes:
        image: (n,) image of each detection.
        found, missed: (IoU thresholds, n) bool, whether it matches an object or none; ignored detections are neither.
        objects: (images,) number of objects.
    """

    image: NDArray[np.int64]
    found: NDArray[np.bool_]
    missed: NDArray[np.bool_]
    objects: NDArray[np.int64]


def resampled_precision(evaluation: Any, counts: NDArray[np.integer[Any]]) -> NDArray[np.float64]:
    """COCO's average precision, over IoU 0.50 to 0.95, with each image counted several times.

    Counting an image k times equals pycocotools' result for k copies of it, except for equal scores within an image, where
    pycocotools puts all detections of one copy before the next.

    Args:
        evaluation: a ``COCOeval`` that has evaluated.
        counts: (draws, images) how often each image is drawn, in the order of ``evaluation.params.imgIds``.

    Returns:
        (draws,) fractions; NaN if a draw has no objects.

    Raises:
        ValueError: counts are not of these images.
    """
    images = len(evaluation.params.imgIds)
    if counts.ndim != 2 or counts.shape[1] != images:
        raise ValueError(f"counts have the shape {counts.shape}; they must be (draws, {images} images)")
    recalls = np.asarray(evaluation.params.recThrs, dtype=np.float64)
    sums, present = np.zeros(len(counts)), np.zeros(len(counts))
    for category in _categories(evaluation):
        objects = (counts @ category.objects).astype(np.float64)
        step = max(1, _AT_ONCE // max(1, len(category.image)))
        for first in range(0, len(counts), step):
            part = slice(first, first + step)
            precision = _precision(category, counts[part], objects[part], recalls)
            there = objects[part] > 0
            sums[part] += np.where(there, precision, 0.0)
            present[part] += there
    return np.divide(sums, present, out=np.full(len(counts), np.nan), where=present > 0)


def _categories(evaluation: Any) -> list[_Category]:
    """pycocotools' matches by category, in its order; those of objects of all sizes come first."""
    params = evaluation.params
    images, sizes, most = len(params.imgIds), len(params.areaRng), params.maxDets[-1]
    found = []
    for position in range(len(params.catIds)):
        first = position * sizes * images
        stored = evaluation.evalImgs[first : first + images]
        found.append(_category(stored, len(params.iouThrs), most))
    return found


def _category(stored: Sequence[dict[str, Any] | None], thresholds: int, most: int) -> _Category:
    """Sort the detections of all images by score, as pycocotools does: stable, image by image."""
    none = np.zeros((thresholds, 0), dtype=bool)
    scores, image, matched, ignored = [np.zeros(0)], [np.zeros(0, np.int64)], [none], [none]
    objects = np.zeros(len(stored), dtype=np.int64)
    for index, each in enumerate(stored):
        if each is None:  # neither objects nor detections
            continue
        kept = np.asarray(each["dtScores"][:most], dtype=np.float64)
        scores.append(kept)
        image.append(np.full(len(kept), index))
        matched.append(np.asarray(each["dtMatches"])[:, :most] != 0)
        ignored.append(np.asarray(each["dtIgnore"])[:, :most].astype(bool))
        objects[index] = np.count_nonzero(np.asarray(each["gtIgnore"]) == 0)
    order = np.argsort(-np.concatenate(scores), kind="mergesort")
    is_match, counts = np.concatenate(matched, 1)[:, order], ~np.concatenate(ignored, 1)[:, order]
    return _Category(np.concatenate(image)[order], is_match & counts, ~is_match & counts, objects)


def _precision(
    category: _Category,
    counts: NDArray[np.integer[Any]],
    objects: NDArray[np.float64],
    recalls: NDArray[np.float64],
) -> NDArray[np.float64]:
    """(draws,) precision, averaged over IoU thresholds and recalls, of one category."""
    total = np.zeros(len(counts))
    if not len(category.image):
        return total
    weights = counts[:, category.image].astype(np.float64)  # (draws, n)
    for found, missed in zip(category.found, category.missed, strict=True):
        hits, errors = np.cumsum(weights * found, 1), np.cumsum(weights * missed, 1)
        precision = hits / np.maximum(hits + errors, np.spacing(1))
        # The best precision at this recall or a higher one.
        envelope = np.maximum.accumulate(precision[:, ::-1], 1)[:, ::-1]
        recall = hits / np.maximum(objects, 1)[:, None]
        for draw in range(len(counts)):
            reached = np.searchsorted(recall[draw], recalls, side="left")
            total[draw] += envelope[draw, reached[reached < recall.shape[1]]].sum() / len(recalls)
    return total / len(category.found)
