"""Intervals cover what they claim to cover, and say nothing where there is nothing to say."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from xvolution.compare.statistics import (
    bootstrap_difference,
    mean_interval,
    paired_difference,
    pareto_front,
    resampled_difference,
)


def test_the_mean_has_students_interval() -> None:
    values = [0.71, 0.74, 0.72, 0.75]
    found = mean_interval(values)
    low, high = stats.t.interval(0.95, 3, np.mean(values), stats.sem(values))
    assert (found.low, found.high) == pytest.approx((low, high))
    assert found.half == pytest.approx((high - low) / 2)


def test_one_seed_has_no_interval_and_none_is_an_error() -> None:
    found = mean_interval([0.5])
    assert (found.estimate, found.low, found.high, found.half) == (0.5, None, None, None)
    assert not found.above
    assert not found.below
    with pytest.raises(ValueError, match="no values"):
        mean_interval([])


def test_no_variance_is_an_interval_of_no_width() -> None:
    found = mean_interval([0.5, 0.5, 0.5])
    assert (found.low, found.high) == (0.5, 0.5)


def test_pairs_are_of_the_seeds_that_both_have() -> None:
    found = paired_difference({0: 0.8, 1: 0.9, 3: 0.1}, {0: 0.7, 1: 0.8, 2: 0.9})
    assert found is not None
    assert (found.estimate, found.seeds) == (pytest.approx(0.1), 2)
    assert paired_difference({0: 0.8}, {1: 0.7}) is None


def test_pairing_takes_out_what_seeds_share() -> None:
    base = {seed: 0.5 + 0.1 * seed for seed in range(4)}
    found = paired_difference({seed: value + 0.01 for seed, value in base.items()}, base)
    assert found is not None
    assert found.above
    assert found.half == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(("seeds", "noise"), [(2, 0.03), (3, 0.03), (3, 0.0), (5, 0.02)])
def test_the_bootstrap_covers_the_truth(seeds: int, noise: float) -> None:
    """95 % intervals over synthetic trainings: each seed shifts a network, each image has a difficulty."""
    random, gain, hits, repeats, images = np.random.default_rng(0), 0.05, 0, 120, 400
    for repeat in range(repeats):
        difficulty = random.uniform(0.3, 0.7, images)
        correct, baseline = (
            random.random((seeds, images)) < difficulty + shift + noise * random.standard_normal((seeds, 1))
            for shift in (gain, 0.0)
        )
        found = bootstrap_difference(correct, baseline, draws=300, seed=repeat)
        assert found.low is not None
        assert found.high is not None
        hits += found.low <= gain <= found.high
    assert hits / repeats >= 0.89  # three standard errors below 95 %


def test_few_images_widen_the_interval_though_seeds_agree() -> None:
    correct = np.tile(np.arange(50) % 10 < 9, (3, 1))
    baseline = np.tile(np.arange(50) % 10 < 8, (3, 1))
    found = bootstrap_difference(correct, baseline)
    by_seed = paired_difference({0: 0.9, 1: 0.9, 2: 0.9}, {0: 0.8, 1: 0.8, 2: 0.8})
    assert by_seed is not None
    assert by_seed.half == pytest.approx(0, abs=1e-9)
    assert found.half is not None
    assert found.half > 0.05


def test_one_seed_is_judged_over_images_alone() -> None:
    random = np.random.default_rng(0)
    found = bootstrap_difference(random.random((1, 300)) < 0.9, random.random((1, 300)) < 0.3)
    assert found.seeds == 1
    assert found.above


def test_the_same_network_differs_by_nothing() -> None:
    correct = np.random.default_rng(0).random((3, 100)) < 0.5
    found = bootstrap_difference(correct, correct)
    assert (found.estimate, found.low, found.high) == (0, 0, 0)


def test_shapes_must_agree() -> None:
    with pytest.raises(ValueError, match="must be the same"):
        bootstrap_difference(np.ones((2, 5), bool), np.ones((3, 5), bool))
    with pytest.raises(ValueError, match="must be the same"):
        bootstrap_difference(np.ones((0, 5), bool), np.ones((0, 5), bool))


def test_the_pareto_front() -> None:
    costs, gains = [1.0, 1.1, 1.1, 2.0, 3.0], [70, 72, 71, 71.5, 73]
    assert pareto_front(costs, gains) == [0, 1, 4]
    assert pareto_front([], []) == []


@pytest.mark.parametrize("seeds", [1, 3, 5])
def test_draws_of_a_mean_say_what_its_images_say(seeds: int) -> None:
    """Average precision is known on drawn images alone; a mean is known on each, so that both ways can be held together."""
    random, images = np.random.default_rng(seeds), 200
    difficulty = random.uniform(0.2, 0.8, images)
    correct, baseline = (
        random.random((seeds, images)) < difficulty + shift + 0.03 * random.standard_normal((seeds, 1))
        for shift in (0.05, 0.0)
    )
    drawn = random.multinomial(images, np.full(images, 1 / images), size=2000) / images  # (draws, images)
    expected = bootstrap_difference(correct, baseline)
    found = resampled_difference(correct.mean(1), baseline.mean(1), correct @ drawn.T, baseline @ drawn.T, images)
    assert found is not None
    assert found.seeds == seeds
    assert found.estimate == pytest.approx(expected.estimate)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=0.12 * (expected.half or 0))


def test_draws_without_a_figure_are_left_out() -> None:
    random = np.random.default_rng(0)
    drawn, base = random.normal(0.5, 0.05, (2, 3, 500))
    values, baseline = np.array([0.6, 0.5, 0.6]), np.array([0.4, 0.4, 0.4])
    whole = resampled_difference(values, baseline, drawn, base, 40)
    drawn[0, :100] = np.nan
    some = resampled_difference(values, baseline, drawn, base, 40)
    assert whole is not None
    assert some is not None
    assert some.half == pytest.approx(whole.half, rel=0.2)
    drawn[1, 100:300] = np.nan
    assert resampled_difference(values, baseline, drawn, base, 40) is None
    with pytest.raises(ValueError, match="shapes are"):
        resampled_difference(values, baseline, drawn[:2], base[:2], 40)
