"""Confidence intervals over seeds and images. Pure functions of numbers."""

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
    """An estimate with its confidence interval.

    Attributes:
        estimate: the mean.
        low, high: the ends of the interval at ``LEVEL``; None if there are too few values.
        seeds: number of seeds.
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


@dataclass(frozen=True)
class Parts:
    """Components of the variance of a mean over seeds and images: seeds, images, and their interaction."""

    of_seeds: float
    of_images: float
    both: float


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

    Seeds are drawn in pairs, since a seed means the same order of images for both. With one seed the interval is over images
    alone. See ``_two_level``.

    Args:
        correct, baseline: (seeds, images) bool, whether each image was classified correctly.
        draws: of the bootstrap.
        seed: of the draws.

    Raises:
        ValueError: the shapes differ, or there is nothing.
    """
    if correct.shape != baseline.shape or correct.ndim != 2 or correct.size == 0:
        raise ValueError(f"shapes are {correct.shape} and {baseline.shape}; both must be the same (seeds, images)")
    difference = correct.astype(np.float32) - baseline.astype(np.float32)
    images = difference.shape[1]
    estimate = float(difference.mean(dtype=np.float64))
    random = np.random.default_rng(seed)
    # Few patterns of right and wrong over the seeds are distinct, so that drawing images is drawing how often each pattern comes.
    patterns, counts = np.unique(difference, axis=1, return_counts=True)
    by_seed = random.multinomial(images, counts / images, size=draws) @ patterns.T / images
    return _two_level(estimate, by_seed, _parts_of_images(difference), images, random)


def resampled_difference(
    values: NDArray[np.float64],
    baseline: NDArray[np.float64],
    drawn: NDArray[np.float64],
    drawn_baseline: NDArray[np.float64],
    images: int,
    seed: int = 0,
) -> Interval | None:
    """`bootstrap_difference` for a figure that is not a mean over images, such as average precision.

    Args:
        values, baseline: (seeds,) the figure on all images.
        drawn, drawn_baseline: (seeds, draws) the figure on images drawn with replacement; column i is the same draw in all rows.
        images: how many were drawn from, and each time.
        seed: of the draws of seeds.

    Returns:
        None if the figure is undefined on most draws, because they have no objects.

    Raises:
        ValueError: the shapes differ, or there is nothing.
    """
    fits = values.ndim == 1 and drawn.shape[:1] == values.shape and drawn.ndim == 2 and drawn.size > 0
    if not fits or values.shape != baseline.shape or drawn.shape != drawn_baseline.shape:
        raise ValueError(
            f"shapes are {values.shape}, {baseline.shape}, {drawn.shape} and {drawn_baseline.shape}; (seeds,) twice and (seeds, "
            "draws) twice are needed"
        )
    by_seed = (drawn - drawn_baseline).T
    by_seed = by_seed[np.isfinite(by_seed).all(1)]
    if len(by_seed) < drawn.shape[1] / 2:
        return None
    difference = values - baseline
    parts = _parts_of_draws(difference, by_seed, images)
    return _two_level(float(difference.mean()), by_seed, parts, images, np.random.default_rng(seed))


def _two_level(
    estimate: float, by_seed: NDArray[np.float64], parts: Parts, images: int, random: np.random.Generator
) -> Interval:
    """The interval around an estimate from its draws.

    A plain percentile bootstrap over three seeds would be too narrow by far, and drawing rows and columns counts what only one
    seed says of one image several times; so the deviations are scaled to the variance from an analysis of variance, and
    widened from the normal to Student's quantile with Satterthwaite's degrees of freedom.

    Args:
        estimate: the difference.
        by_seed: (draws, seeds) the difference on other images.
        parts: of the variance of the estimate.
        images: how many were drawn from.
        random: draws the seeds.
    """
    draws, seeds = by_seed.shape
    drawn = np.take_along_axis(by_seed, random.integers(0, seeds, (draws, seeds)), axis=1).mean(1)
    if drawn.std() == 0:
        return Interval(estimate, estimate, estimate, seeds)
    variance, freedom = _variance(parts, seeds, images)
    tail = (1 - LEVEL) / 2
    scale = math.sqrt(variance) / drawn.std() * stats.t.ppf(1 - tail, freedom) / stats.norm.ppf(1 - tail)
    low, high = np.quantile(drawn - drawn.mean(), [tail, 1 - tail]) * scale
    return Interval(estimate, estimate + float(low), estimate + float(high), seeds)


def _parts_of_images(difference: NDArray[np.float32]) -> Parts:
    """The two-way analysis of variance of (seeds, images)."""
    seeds, images = difference.shape
    cells = seeds * images
    of_images = seeds * float(difference.mean(0).var(ddof=1)) / cells if images > 1 else 0.0
    if seeds == 1:
        return Parts(0.0, of_images, 0.0)
    of_seeds = images * float(difference.mean(1).var(ddof=1)) / cells
    rest = difference - difference.mean(0) - difference.mean(1, keepdims=True) + difference.mean()
    both = float((rest**2).sum(dtype=np.float64)) / ((seeds - 1) * max(images - 1, 1)) / cells
    return Parts(of_seeds, of_images, both)


def _parts_of_draws(difference: NDArray[np.float64], by_seed: NDArray[np.float64], images: int) -> Parts:
    """The same for a figure that has no value for one image, from (seeds,) and (draws, seeds): draws vary as images do."""
    seeds = len(difference)
    unbiased = images / max(images - 1, 1)  # as much as drawing from a sample falls short of drawing from all there is
    of_images = float(by_seed.mean(1).var()) * unbiased
    if seeds == 1:
        return Parts(0.0, of_images, 0.0)
    of_seeds = float(difference.var(ddof=1)) / seeds
    rest = by_seed - by_seed.mean(1, keepdims=True)
    both = float(rest.var(0).sum()) * unbiased / ((seeds - 1) * seeds)
    return Parts(of_seeds, of_images, both)


def _variance(parts: Parts, seeds: int, images: int) -> tuple[float, float]:
    """Variance of the estimate, seeds and images both drawn at random, and its degrees of freedom.

    Seeds plus images minus their interaction, which both hold.
    """
    of_seeds, of_images, both = parts.of_seeds, parts.of_images, parts.both
    if seeds == 1:
        return of_images, float(max(images - 1, 1))
    variance = max(of_seeds, of_images, of_seeds + of_images - both)
    degrees = (seeds - 1, images - 1, (seeds - 1) * (images - 1))
    squares = sum(part**2 / max(degree, 1) for part, degree in zip((of_seeds, of_images, both), degrees, strict=True))
    return variance, max(1.0, variance**2 / squares) if squares > 0 else float(seeds - 1)


def pareto_front(costs: Sequence[float], gains: Sequence[float]) -> list[int]:
    """Indices of the points on the Pareto front: no other point gains more at the same cost, or as much at a lower cost."""
    order = sorted(range(len(costs)), key=lambda i: (costs[i], -gains[i]))
    front: list[int] = []
    for index in order:
        if not front or gains[index] > gains[front[-1]]:
            front.append(index)
    return front
