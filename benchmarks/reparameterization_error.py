"""Worst relative error of the deployed form over random operators, in fp64 and fp32.

    python -m benchmarks.reparameterization_error --cases 1000 --output results/reparameterization.json

Geometry, padding mode, groups, branch and options are drawn at random; every batch norm has random statistics.
"""

from __future__ import annotations

import argparse
import copy
import random
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.randomize import randomize_norms
from benchmarks.record import write_record
from xvolution import XVolution2d, reparameterize

BRANCHES = ("hadamard", "hadamard", "hadamard", "dot", "linear", "global", "image", "shared")


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
    branch = rng.choice(BRANCHES)
    options: dict[str, Any] = {}
    if branch == "hadamard":
        options = {
            "gate": rng.choice(["identity", "sigmoid", "tanh"]),
            "window": rng.choice([None, 3, 5]),
            "shift_distance": rng.choice([None, 1, 2, (1, 2), (1, 3)]),
            "query_context": rng.random() < 0.5,
            "global_term": rng.random() < 0.5,
            "query_norm": rng.random() < 0.5,
            "window_norm": rng.random() < 0.5,
        }
    elif branch == "dot":
        options = {"similarity": "dot", "heads": rng.choice([1, 2])}
    elif branch == "image":
        options = {"attention": branch, "separable": rng.random() < 0.5}
    elif branch == "shared":
        options = {"attention": branch, "window": rng.choice([2, 3, 5]), "global_term": rng.random() < 0.5}
    else:
        options = {"attention": branch, "heads": rng.choice([1, 2])}
    operator = XVolution2d(8, 16, **geometry, **options, zero_init=False, dtype=torch.float64).eval()
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
    worst = {f"{dtype} {layout}": 0.0 for dtype in ("fp64", "fp32") for layout in ("single", "split")}
    with torch.no_grad():
        for _ in range(options.cases):
            operator = draw_operator(rng)
            x = torch.randn(2, 8, 11, 13, dtype=torch.float64)
            low = copy.deepcopy(operator).float()
            for layout in ("single", "split"):
                wide = relative_error(operator(x), reparameterize(operator, layout=layout)(x))
                narrow = relative_error(low(x.float()), reparameterize(low, layout=layout)(x.float()))
                worst[f"fp64 {layout}"] = max(worst[f"fp64 {layout}"], wide)
                worst[f"fp32 {layout}"] = max(worst[f"fp32 {layout}"], narrow)
    print({name: f"{error:.1e}" for name, error in worst.items()})
    if options.output:
        write_record(options.output, {"cases": options.cases, "seed": options.seed, "worst_relative_error": worst})


if __name__ == "__main__":
    main()
