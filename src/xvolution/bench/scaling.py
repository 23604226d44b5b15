"""`xvolution bench scaling`: how time and memory grow with the number of pixels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from xvolution.bench.forms import cost, inference, peak_bytes, refusal, timed
from xvolution.bench.operators import BASELINE
from xvolution.bench.results import Case, Record
from xvolution.bench.settings import require_at_least, require_known, thread_count
from xvolution.conversion.register import operator_config, operator_names
from xvolution.deploy.latency import cpu_threads
from xvolution.operator import XVolution, fold

#: Maps from this side on show how work grows; below it calls cost more than their arithmetic.
ASYMPTOTIC_SIDE = 28


@dataclass(frozen=True)
class ScalingBench:
    """Time one forward pass of the deployed form, in float32, over maps of growing size.

    Args:
        operators: registered names of the operators to time beside conv.
        sides: heights and widths of the maps in pixels.
        channels: number of input and output channels.
        threads: number of CPU threads; 0 uses all.
        rounds: number of times each form is timed; the forms take turns.
    """

    operators: Sequence[str] = ("xvolution", "linear", "global", "global-attention")
    sides: Sequence[int] = (7, 14, 28, 40, 56, 80, 112, 160, 256)
    channels: int = 64
    threads: int = 1
    rounds: int = 7

    def __post_init__(self) -> None:
        require_known("operators", self.operators, operator_names())
        for name, least in (("sides", 3), ("channels", 1), ("threads", 0), ("rounds", 1)):
            require_at_least(name, getattr(self, name), least)

    def cases(self) -> list[Case]:
        """One for each size of the map."""
        found = []
        for side in self.sides:
            settings = {"side": side, "channels": self.channels, "threads": thread_count(self.threads)}
            found.append(
                Case(f"{side} {self.channels} {settings['threads']}", settings, partial(self._measure, settings))
            )
        return found

    def _measure(self, settings: dict[str, Any]) -> dict[str, Record]:
        shape = (1, self.channels, settings["side"], settings["side"])
        x = torch.randn(shape)
        figures: dict[str, Record] = {}
        calls = {}
        with cpu_threads(settings["threads"]):
            for name in (BASELINE, *self.operators):
                form = deployed(name, self.channels)
                reason = refusal(form, shape)
                if reason is not None:
                    figures[name] = {"skipped": reason}
                    continue
                calls[name] = inference(form, x)
                figures[name] = cost(form, x) | {"peak_bytes": peak_bytes(calls[name], x.device)}
            for name, times in timed(calls, BASELINE, self.rounds).items():
                figures[name] |= times
        return figures


def deployed(name: str, channels: int) -> nn.Module:
    """An operator in the form that is deployed, in eval mode."""
    conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
    if name == BASELINE:
        return conv.eval()
    operator = operator_config(name).replacement(conv, nn.BatchNorm2d(channels)).eval()
    if not isinstance(operator, XVolution):
        return operator
    folded = fold(operator)
    return folded.deployed("split" if "split" in folded.layouts else folded.layouts[0], operator.conv.weight)


def exponent(pixels: Sequence[int], values: Sequence[float]) -> float:
    """p of the least-squares fit ``value = c · pixels^p``.

    Raises:
        ValueError: fewer than two points.
    """
    if len(pixels) < 2:
        raise ValueError(f"the fit of an exponent needs at least two points, and there is {len(pixels)}")
    x, y = [math.log(n) for n in pixels], [math.log(value) for value in values]
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    covariance = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    return covariance / sum((a - mean_x) ** 2 for a in x)


def exponents(cases: Sequence[Record], figure: str) -> dict[str, float]:
    """The exponent of every form over the larger maps, of ``median_ms`` or ``peak_bytes``."""
    points: dict[str, list[tuple[int, float]]] = {}
    for case in cases:
        for name, record in case["forms"].items():
            if case["side"] >= ASYMPTOTIC_SIDE and record.get(figure):
                points.setdefault(name, []).append((case["side"] ** 2, record[figure]))
    return {name: exponent(*zip(*found, strict=True)) for name, found in points.items() if len(found) > 1}
