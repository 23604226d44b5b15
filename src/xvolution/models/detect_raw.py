"""A detector's outputs before suppression (feature maps and raw scores), which exist even without detections."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from xvolution.models.detect_match import Agreement, RawAgreement, match_detections

_MAPS = "backbone"
#: Parts of torchvision's detectors whose outputs are raw scores and offsets of boxes.
_HEADS = ("rpn.head", "head", "roi_heads.box_predictor")
#: Its rows are regions, whose number and order rounding decides.
_OF_REGIONS = "roi_heads.box_predictor"


class WithRawOutputs(nn.Module):
    """A detector that also returns its feature maps and raw scores, after the detections of one image.

    Args:
        detector: in eval mode.
    """

    def __init__(self, detector: nn.Module) -> None:
        super().__init__()
        self.detector = detector
        self.train(detector.training)  # exporters leave a module, and all in it, in the mode that it was in

    def forward(self, images: list[Tensor]) -> tuple[Tensor, ...]:
        """One image (3, H, W) in a list -> its detections, then the outputs of `raw_outputs`, in that order."""
        with _watched(self.detector) as raw:
            (detections,) = self.detector(images)
        return (*detections.values(), *raw.values())


@torch.no_grad()
def raw_outputs(detector: nn.Module, image: Tensor) -> dict[str, Tensor]:
    """Feature maps and raw scores of a detector in eval mode on one image (3, H, W), by the path of their module."""
    with _watched(detector) as raw:
        detector([image])
    return dict(raw)


def agreement_of(expected: nn.Module, actual: nn.Module, image: Tensor) -> Agreement:
    """Compare the detections of two detectors on one image (3, H, W), or feature maps and raw scores if there are none."""
    with torch.no_grad():
        agreement = match_detections(expected([image]), actual([image]))
    if not agreement.is_empty:
        return agreement
    return replace(agreement, raw=compare_raw(raw_outputs(expected, image), raw_outputs(actual, image)))


def compare_raw(expected: Mapping[str, Tensor], actual: Mapping[str, Tensor]) -> RawAgreement:
    """The difference of two detectors' raw outputs on one image.

    For scores of regions, the highest of each class is compared, because rounding decides which of two regions with nearly equal
    scores is kept.
    """
    maps = scores = 0.0
    for name, one in expected.items():
        pair = (one, actual[name])
        if name.startswith(_MAPS):
            maps = max(maps, _difference(*pair))
        elif not name.startswith(_OF_REGIONS):
            scores = max(scores, _difference(*pair))
        elif name == f"{_OF_REGIONS}.0" and all(map(len, pair)):
            scores = max(scores, _difference(*(each.amax(0) for each in pair)))
    return RawAgreement(maps, scores)


def as_raw(names: Sequence[str], outputs: Sequence[Tensor]) -> dict[str, Tensor]:
    """The raw outputs among those of an exported `WithRawOutputs`, which come last."""
    return dict(zip(names, outputs[-len(names) :], strict=True))


def open_axes(raw: Mapping[str, Tensor]) -> dict[str, dict[int, str]]:
    """All axes of raw outputs, each by a name, for an exporter: their sizes follow those of the image."""
    return {name: {axis: f"{name}.{axis}" for axis in range(each.dim())} for name, each in raw.items()}


def _difference(expected: Tensor, actual: Tensor) -> float:
    """Largest difference, over the largest magnitude; infinite where the shapes differ."""
    if expected.shape != actual.shape:
        return float("inf")
    expected, actual = expected.double(), actual.double()
    return float((actual - expected).abs().max() / expected.abs().max().clamp(min=1e-30))


@contextmanager
def _watched(detector: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Record the outputs of a detector's parts while the context lasts."""
    raw: dict[str, Tensor] = {}
    modules = dict(detector.named_modules())

    def keep(name: str) -> Any:
        return lambda _, __, answer: raw.update(_flat(name, answer))

    handles = [modules[name].register_forward_hook(keep(name)) for name in (_MAPS, *_HEADS) if name in modules]
    try:
        yield raw
    finally:
        for handle in handles:
            handle.remove()


def _flat(name: str, answer: Any) -> Iterator[tuple[str, Tensor]]:
    """The tensors in an output, by path."""
    if isinstance(answer, Tensor):
        yield name, answer
        return
    for key, each in answer.items() if isinstance(answer, Mapping) else enumerate(answer):
        yield from _flat(f"{name}.{key}", each)
