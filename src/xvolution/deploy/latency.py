"""Time several callables in turns in one process."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Latency:
    """Seconds that one call took, once per round.

    Report the median and the quartiles: on a shared machine the mean depends on other processes.
    """

    samples: tuple[float, ...]

    @property
    def median(self) -> float:
        """Median, in seconds."""
        return statistics.median(self.samples)

    @property
    def quartiles(self) -> tuple[float, float]:
        """Lower and upper quartile, in seconds."""
        if len(self.samples) == 1:
            return self.samples[0], self.samples[0]
        lower, _, upper = statistics.quantiles(self.samples, n=4, method="inclusive")
        return lower, upper


@dataclass(frozen=True)
class LatencyComparison:
    """Latencies of callables that took turns; sample i of each belongs to the same round."""

    latencies: dict[str, Latency]

    def ratio(self, name: str, baseline: str) -> float:
        """Median over the rounds of (time of ``name``) / (time of ``baseline``); a slowdown of a whole round cancels."""
        pairs = zip(self.latencies[name].samples, self.latencies[baseline].samples, strict=True)
        return statistics.median(time_of / baseline_time for time_of, baseline_time in pairs)

    def __str__(self) -> str:
        width = max(map(len, self.latencies))
        lines = [f"{'':{width}}  median ms   quartiles ms"]
        for name, latency in self.latencies.items():
            lower, upper = latency.quartiles
            lines.append(f"{name:{width}}  {latency.median * 1e3:9.3f}   {lower * 1e3:.3f} .. {upper * 1e3:.3f}")
        return "\n".join(lines)


def _synchronize() -> None:
    """Wait for the accelerator, whose calls return before they are done."""
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()


def _calls_per_sample(call: Callable[[], object], minimum_time: float) -> int:
    """How many calls one sample needs to last ``minimum_time`` seconds."""
    _synchronize()
    start = time.perf_counter()
    call()
    _synchronize()
    return max(1, round(minimum_time / max(time.perf_counter() - start, 1e-7)))


def _sample(call: Callable[[], object], calls: int) -> float:
    """Seconds per call, over ``calls`` calls in a row."""
    _synchronize()
    start = time.perf_counter()
    for _ in range(calls):
        call()
    _synchronize()
    return (time.perf_counter() - start) / calls


def measure_latency(
    callables: Mapping[str, Callable[[], object]],
    rounds: int = 30,
    warmup: int = 3,
    minimum_time: float = 2e-3,
    after_round: Callable[[], None] = lambda: None,
) -> LatencyComparison:
    """Time callables in turns: each round calls every one of them, and each round starts with a different one.

    Turns matter more than many repeats: a slowdown of the machine (heat, other processes) affects all callables equally,
    instead of only the last one.

    Args:
        callables: name -> function without arguments. They switch off gradients themselves.
        rounds: number of samples of each callable.
        warmup: number of calls of each before timing.
        minimum_time: shortest duration of a sample in seconds; a faster callable is called several times for one sample.
        after_round: called after each round, to show progress.

    Returns:
        The samples by name, in seconds per call.

    Raises:
        ValueError: there is nothing to time, or ``rounds`` is below 1.
    """
    if not callables:
        raise ValueError("there is nothing to time; give at least one named callable")
    if rounds < 1:
        raise ValueError(f"rounds is {rounds}; at least 1 is needed")
    for call in callables.values():
        for _ in range(warmup):
            call()
    calls = {name: _calls_per_sample(call, minimum_time) for name, call in callables.items()}
    samples: dict[str, list[float]] = {name: [] for name in callables}
    names = list(callables)
    for start in range(rounds):
        offset = start % len(names)
        for name in names[offset:] + names[:offset]:
            samples[name].append(_sample(callables[name], calls[name]))
        after_round()
    return LatencyComparison({name: Latency(tuple(seconds)) for name, seconds in samples.items()})


@contextmanager
def cpu_threads(number: int) -> Iterator[None]:
    """Set the number of torch's threads while the context lasts."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
