"""Comparison of two detectors: detections above a score, matched by box."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.ops import box_iou

Detections = Mapping[str, Tensor]

# Pixels by which rounding moves a corner.
_SAME_BOX = 1e-2


@dataclass(frozen=True)
class RawAgreement:
    """The difference of two detectors before suppression, on the same image.

    Attributes:
        maps: largest difference of a feature map, over its largest magnitude.
        scores: the same of the heads' raw scores and offsets.
    """

    maps: float
    scores: float

    def __str__(self) -> str:
        return f"feature maps differ by {self.maps:.1e} and raw scores by {self.scores:.1e} of their largest value"

    def holds(self, tolerance: float = 1e-3) -> bool:
        """Whether both agree."""
        return max(self.maps, self.scores) <= tolerance


@dataclass(frozen=True)
class Agreement:
    """The difference of two results.

    Attributes:
        matched: pairs of detections of one class whose boxes overlap.
        unmatched: detections that only one of the two has, except those too close to the threshold.
        iou: smallest overlap of a pair; 1 without pairs.
        score: largest difference of the scores of a pair.
        mask: largest share of an image's pixels in which the masks of a pair, cut at one half, differ.
        raw: of feature maps and raw scores, which were compared because there was no detection; else None.
    """

    matched: int
    unmatched: int
    iou: float
    score: float
    mask: float
    raw: RawAgreement | None = None

    @property
    def is_empty(self) -> bool:
        """Whether there were no detections to compare."""
        return self.matched == 0 and self.unmatched == 0

    def __str__(self) -> str:
        if self.is_empty:
            instead = "nothing was compared" if self.raw is None else str(self.raw)
            return f"nothing is detected in the example image, so detections were not compared; {instead}"
        masks = f", masks in {self.mask:.1e} of an image's pixels" if self.mask else ""
        return (
            f"{self.matched} detections agree, {self.unmatched} do not; smallest overlap {self.iou:.3f}, scores differ by "
            f"{self.score:.1e}{masks}"
        )

    def holds(self, min_iou: float = 0.99, score_tolerance: float = 1e-3, mask_tolerance: float = 1e-3) -> bool:
        """Whether both results agree."""
        close = self.iou >= min_iou and self.score <= score_tolerance and self.mask <= mask_tolerance
        return close and self.unmatched == 0 and (self.raw is None or self.raw.holds())


def match_detections(
    expected: Sequence[Detections],
    actual: Sequence[Detections],
    score_threshold: float = 0.05,
    score_tolerance: float = 1e-3,
    min_iou: float = 0.99,
) -> Agreement:
    """Match the detections of the same images, the best score first, each to the most overlapping one of its class.

    Rounding decides the order of equal scores, and which of them a limit on the number of detections keeps. A detection
    without a partner therefore counts only if its score is more than ``score_tolerance`` above the threshold and, of two
    lists of the same length, above their lowest scores.

    Args:
        expected, actual: for each image ``boxes`` (n, 4) as x1, y1, x2, y2 in pixels, ``labels`` (n,), ``scores`` (n,), and
            ``masks`` (n, 1, H, W) as probabilities where there are any.
        score_threshold: detections with a lower score are ignored.
        score_tolerance: largest allowed difference of scores.
        min_iou: smallest overlap of two boxes that form a pair.

    Raises:
        ValueError: not the same number of images.
    """
    if len(expected) != len(actual):
        raise ValueError(f"results of {len(expected)} and of {len(actual)} images cannot be matched")
    results = [_match(a, b, score_threshold, score_tolerance, min_iou) for a, b in zip(expected, actual, strict=True)]
    return Agreement(
        matched=sum(result.matched for result in results),
        unmatched=sum(result.unmatched for result in results),
        iou=min((result.iou for result in results), default=1.0),
        score=max((result.score for result in results), default=0.0),
        mask=max((result.mask for result in results), default=0.0),
    )


def _match(expected: Detections, actual: Detections, threshold: float, tolerance: float, min_iou: float) -> Agreement:
    boxes, others = expected["boxes"].double(), actual["boxes"].double()
    # The overlap of a box without area is 0/0, even with itself.
    equal = torch.cdist(boxes, others, p=float("inf")) <= _SAME_BOX
    overlaps = torch.where(equal, 1.0, box_iou(boxes, others).nan_to_num())
    same = expected["labels"][:, None] == actual["labels"][None]
    close = (expected["scores"].double()[:, None] - actual["scores"].double()[None]).abs() <= tolerance
    overlaps = torch.where(same & close, overlaps, torch.full_like(overlaps, -1.0))
    pairs = []
    for index in expected["scores"].argsort(descending=True).tolist():
        if not overlaps.shape[1] or expected["scores"][index] < threshold:
            break
        overlap, partner = overlaps[index].max(0)
        if overlap >= min_iou:
            pairs.append((index, int(partner), float(overlap)))
            overlaps[:, partner] = -1.0
    floor = threshold
    if len(boxes) == len(others) > 0:
        floor = max(threshold, float(expected["scores"].min()), float(actual["scores"].min()))
    alone = _alone(expected, {a for a, _, _ in pairs}, floor + tolerance)
    alone += _alone(actual, {b for _, b, _ in pairs}, floor + tolerance)
    scores = [abs(float(expected["scores"][a]) - float(actual["scores"][b])) for a, b, _ in pairs]
    masks = [_mask_difference(expected, actual, a, b) for a, b, _ in pairs]
    return Agreement(
        len(pairs),
        alone,
        min((iou for _, _, iou in pairs), default=1.0),
        max(scores, default=0.0),
        max(masks, default=0.0),
    )


def _alone(detections: Detections, paired: set[int], floor: float) -> int:
    return sum(
        index not in paired and score > floor for index, score in enumerate(detections["scores"].double().tolist())
    )


def _mask_difference(expected: Detections, actual: Detections, a: int, b: int) -> float:
    if "masks" not in expected:
        return 0.0
    return float(((expected["masks"][a] > 0.5) != (actual["masks"][b] > 0.5)).double().mean())
