"""Worst relative error of the deployed form over random operators, in fp64 and fp32.

    python -m benchmarks.reparameterization_error --cases 1000 --output results/reparameterization.json

Geometry, padding mode, groups, branch and options are drawn at random; every batch norm has random statistics.
"""

from __future__ import annotations

import argparse
import copy
import random
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.randomize import randomize_norms
from benchmarks.record import write_record
from xvolution import XVolution2d, reparameterize
from xvolution.attention import (
    ATTENTION,
    AttentionConfig,
    ChannelGate,
    GatedDepthwise,
    Global,
    Linear,
    PixelShift,
    PixelShiftDot,
)
from xvolution.operator import fold


def _pixel_shift(rng: random.Random) -> AttentionConfig:
    return PixelShift(
        gate=rng.choice(["identity", "sigmoid", "tanh"]),
        window=rng.choice([None, 3, 5]),
        dilation=rng.choice([None, 1, 2, (1, 2), (1, 3)]),
        pooled_query=rng.random() < 0.5,
        pooled_key=rng.random() < 0.5,
        query_norm=rng.random() < 0.5,
        window_norm=rng.random() < 0.5,
    )


#: Random options of each branch; where there is no entry, its defaults.
_OPTIONS: dict[str, Callable[[random.Random], AttentionConfig]] = {
    "pixel_shift": _pixel_shift,
    "pixel_shift_dot": lambda rng: PixelShiftDot(num_heads=rng.choice([1, 2])),
    "linear": lambda rng: Linear(num_heads=rng.choice([1, 2])),
    "global": lambda rng: Global(num_heads=rng.choice([1, 2]), qk_norm=rng.random() < 0.5),
    "channel_gate": lambda rng: ChannelGate(separable=rng.random() < 0.5, channel_keys=rng.random() < 0.5),
    "gated_depthwise": lambda rng: GatedDepthwise(window=rng.choice([2, 3, 5]), pooled_value=rng.random() < 0.5),
}


def draw_operator(rng: random.Random) -> XVolution2d:
    """A random legal operator on 8 -> 16 channels, fp64, eval mode, random statistics."""
    padding: Any = rng.choice([0, 1, 2, (1, 2), "same", "valid"])
    geometry = {
        "kernel_size": (rng.choice([1, 2, 3, 5]), rng.choice([1, 2, 3, 4])),
        "stride": 1 if padding == "same" else (rng.randint(1, 3), rng.randint(1, 3)),
        "padding": padding,
        "dilation": (rng.randint(1, 2), rng.randint(1, 2)),
        "groups": rng.choice([1, 2, 4, 8]),
        "bias": rng.random() < 0.5,
        "padding_mode": rng.choice(["zeros", "reflect", "replicate", "circular"]),
    }
    name = rng.choice(list(ATTENTION))
    attention = _OPTIONS[name](rng) if name in _OPTIONS else ATTENTION[name]()
    options: dict[str, Any] = {"attention": attention, "zero_init": False, "dtype": torch.float64}
    operator = XVolution2d(8, 16, **geometry, **options).eval()
    randomize_norms(operator)
    if getattr(operator.attention, "mean_weight", None) is not None:
        nn.init.uniform_(operator.attention.mean_weight, -1, 1)
    return operator


def relative_error(expected: torch.Tensor, actual: torch.Tensor) -> float:
    """Largest difference relative to the largest magnitude of ``expected``."""
    return float((expected - actual).abs().max() / expected.abs().max())


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    rng = random.Random(options.seed)
    torch.manual_seed(options.seed)
    worst: defaultdict[str, float] = defaultdict(float)
    with torch.no_grad():
        for _ in range(options.cases):
            operator = draw_operator(rng)
            x = torch.randn(2, 8, 11, 13, dtype=torch.float64)
            low = copy.deepcopy(operator).float()
            for layout in fold(operator).layouts:
                wide = relative_error(operator(x), reparameterize(operator, layout=layout)(x))
                narrow = relative_error(low(x.float()), reparameterize(low, layout=layout)(x.float()))
                worst[f"fp64 {layout}"] = max(worst[f"fp64 {layout}"], wide)
                worst[f"fp32 {layout}"] = max(worst[f"fp32 {layout}"], narrow)
    print({name: f"{error:.1e}" for name, error in worst.items()})
    if options.output:
        write_record(options.output, {"cases": options.cases, "seed": options.seed, "worst_relative_error": worst})


if __name__ == "__main__":
    main()
