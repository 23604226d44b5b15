"""Intervals: what some seeds and some images say about all of them. Pure functions of numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

LEVEL = 0.95
DRAWS = 2000


@dataclass(frozen=True)
class Interval:
    """An estimate and how far the truth may be from it.

    Attributes:
        estimate: the mean.
        low, high: the ends of the interval at ``LEVEL``; None where there is too little to say.
        seeds: how many it rests on.
    """

    estimate: float
    low: float | None
    high: float | None
    seeds: int

    @property
    def half(self) -> float | None:
        """Half the interval's width."""
        return None if self.low is None or self.high is None else (self.high - self.low) / 2

    @property
    def above(self) -> bool:
        """Whether all of it lies above zero."""
        return self.low is not None and self.low > 0

    @property
    def below(self) -> bool:
        """Whether all of it lies below zero."""
        return self.high is not None and self.high < 0


def mean_interval(values: Sequence[float]) -> Interval:
    """The mean of values over seeds with Student's interval; one value has none.

    Raises:
        ValueError: there are no values.
    """
    if len(values) == 0:
        raise ValueError("there are no values to average")
    mean = float(np.mean(values))
    if len(values) == 1:
        return Interval(mean, None, None, 1)
    half = float(stats.t.ppf(0.5 + LEVEL / 2, len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values)))
    return Interval(mean, mean - half, mean + half, len(values))


def paired_difference(values: Mapping[int, float], baseline: Mapping[int, float]) -> Interval | None:
    """Mean difference over the seeds that both have; None where there is no such seed.

    Args:
        values, baseline: seed -> accuracy.
    """
    seeds = sorted(values.keys() & baseline.keys())
    return mean_interval([values[seed] - baseline[seed] for seed in seeds]) if seeds else None


def bootstrap_difference(
    correct: NDArray[np.bool_], baseline: NDArray[np.bool_], draws: int = DRAWS, seed: int = 0
) -> Interval:
    """The difference in accuracy with a two-level bootstrap: other seeds and other images of the same kind.

    Seeds are drawn in pairs, since a seed means the same order of images for both. A plain percentile bootstrap over three seeds
    would be too narrow by far, and drawing rows and columns counts what only one seed says of one image several times; so the
    deviations are scaled to the variance that an analysis of variance finds, and widened from the normal to Student's quantile
    with Satterthwaite's degrees of freedom. With one seed the interval is over images alone.

    Args:
        correct, baseline: (seeds, images) bool, whether each image was classified rightly.
        draws: of the bootstrap.
        seed: of the draws.

    Raises:
        ValueError: the shapes differ, or there is nothing.
    """
    if correct.shape != baseline.shape or correct.ndim != 2 or correct.size == 0:
        raise ValueError(f"shapes are {correct.shape} and {baseline.shape}; both must be the same (seeds, images)")
    difference = correct.astype(np.float32) - baseline.astype(np.float32)
    seeds, images = difference.shape
    estimate = float(difference.mean(dtype=np.float64))
    random = np.random.default_rng(seed)
    # Few patterns of right and wrong over the seeds are distinct, so that drawing images is drawing how often each pattern comes.
    patterns, counts = np.unique(difference, axis=1, return_counts=True)
    by_seed = random.multinomial(images, counts / images, size=draws) @ patterns.T / images  # (draws, seeds)
    drawn = np.take_along_axis(by_seed, random.integers(0, seeds, (draws, seeds)), axis=1).mean(1)
    if drawn.std() == 0:
        return Interval(estimate, estimate, estimate, seeds)
    variance, freedom = _variance(difference)
    tail = (1 - LEVEL) / 2
    scale = math.sqrt(variance) / drawn.std() * stats.t.ppf(1 - tail, freedom) / stats.norm.ppf(1 - tail)
    low, high = np.quantile(drawn - drawn.mean(), [tail, 1 - tail]) * scale
    return Interval(estimate, estimate + float(low), estimate + float(high), seeds)


def _variance(difference: NDArray[np.float32]) -> tuple[float, float]:
    """Variance of the mean of (seeds, images), both drawn at random, and its degrees of freedom.

    The two-way analysis of variance: seeds plus images minus their interaction, which both hold.
    """
    seeds, images = difference.shape
    cells = seeds * images
    of_images = seeds * float(difference.mean(0).var(ddof=1)) / cells if images > 1 else 0.0
    if seeds == 1:
        return of_images, float(max(images - 1, 1))
    of_seeds = images * float(difference.mean(1).var(ddof=1)) / cells
    rest = difference - difference.mean(0) - difference.mean(1, keepdims=True) + difference.mean()
    both = float((rest**2).sum(dtype=np.float64)) / ((seeds - 1) * max(images - 1, 1)) / cells
    variance = max(of_seeds, of_images, of_seeds + of_images - both)
    degrees = (seeds - 1, images - 1, (seeds - 1) * (images - 1))
    parts = sum(part**2 / max(degree, 1) for part, degree in zip((of_seeds, of_images, both), degrees, strict=True))
    return variance, max(1.0, variance**2 / parts) if parts > 0 else float(seeds - 1)


def pareto_front(costs: Sequence[float], gains: Sequence[float]) -> list[int]:
    """Indices of the points that no other beats: none gains more for the same cost or less, or as much for less."""
    order = sorted(range(len(costs)), key=lambda i: (costs[i], -gains[i]))
    front: list[int] = []
    for index in order:
        if not front or gains[index] > gains[front[-1]]:
            front.append(index)
    return front
