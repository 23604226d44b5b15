"""Latency takes turns and reports the middle; costs are those of the arithmetic."""

import itertools
import time

import pytest
import torch
from torch import nn

from xvolution.bench import Latency, LatencyComparison, count_flops, count_parameters, measure_latency


def test_callables_take_turns_and_start_in_turn():
    order = []
    calls = {name: lambda name=name: order.append(name) for name in "abc"}
    comparison = measure_latency(calls, rounds=4, warmup=0, minimum_time=0.0)
    timed = "".join(order[3:])
    assert timed == "abc" + "bca" + "cab" + "abc"
    assert all(len(latency.samples) == 4 for latency in comparison.latencies.values())


def test_a_short_callable_is_called_several_times_per_sample(monkeypatch):
    clock = itertools.count(step=1e-4)
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    order = []
    measure_latency({"short": lambda: order.append(1)}, rounds=2, warmup=0, minimum_time=1e-3)
    assert len(order) == 1 + 2 * 10  # one call to find out that ten of them fill a sample


def test_median_and_quartiles():
    latency = Latency((5.0, 1.0, 3.0, 2.0, 4.0))
    assert latency.median == 3.0
    assert latency.quartiles == (2.0, 4.0)
    assert Latency((2.0,)).quartiles == (2.0, 2.0)


def test_ratio_pairs_the_rounds():
    slowed_round = 100.0
    comparison = LatencyComparison(
        {"slow": Latency((2.0, 4.0, 2.0 * slowed_round)), "fast": Latency((1.0, 2.0, 1.0 * slowed_round))}
    )
    assert comparison.ratio("slow", "fast") == 2.0
    assert "slow" in str(comparison)
    assert "median ms" in str(comparison)


@pytest.mark.parametrize(("callables", "rounds"), [({}, 3), ({"a": lambda: None}, 0)])
def test_bad_arguments_are_named(callables, rounds):
    with pytest.raises(ValueError, match=r"nothing to time|rounds is 0"):
        measure_latency(callables, rounds=rounds)


def test_flops_of_a_convolution_are_its_formula():
    convolution = nn.Conv2d(4, 6, 3, padding=1, groups=2)
    x = torch.randn(2, 4, 5, 7)
    assert count_flops(convolution, x) == 2 * 2 * 6 * (4 // 2) * 9 * 5 * 7


def test_counting_leaves_modes_and_statistics_alone():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Dropout())
    model[2].eval()
    count_flops(model, torch.randn(1, 1, 4, 4))
    assert [module.training for module in model] == [True, True, False]
    assert model[1].num_batches_tracked == 0


def test_shared_parameters_count_once():
    layer = nn.Linear(3, 2)
    assert count_parameters(nn.ModuleList([layer, layer])) == 3 * 2 + 2
