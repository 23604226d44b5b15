"""Fit what `convert(budget=...)` takes a number written and an operation to cost, to the latencies of `xvolution bench networks`.

python -m benchmarks.prices results/bench-networks.json
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import torch

from xvolution.bench.network_forms import is_detector, plain_network
from xvolution.bench.networks import SQUEEZE_EXCITATION, forms_of
from xvolution.conversion import budget
from xvolution.conversion.budget import Work, work_of_network
from xvolution.deploy.reparameterize import reparameterize
from xvolution.deploy.runtimes import RUNTIMES

#: Grid of the fit: multiply-adds in the time of one number written, and of one operation.
NUMBERS = (0, 2, 4, 6, 8, 10, 12, 14, 16, 20, 25, 30)
OPERATIONS = (0, 0.5e5, 1e5, 1.5e5, 2e5, 3e5, 4e5, 6e5)


@dataclass(frozen=True)
class Point:
    """A form of a network in one runtime, measured, and the work of it and of the plain network."""

    what: str
    measured: float
    plain: Work
    form: Work

    def estimate(self, numbers: float = budget.NUMBERS, operations: float = budget.OPERATIONS) -> float:
        """The time of the form over that of the plain network."""
        plain, form = (
            work.multiply_adds + numbers * work.numbers + operations * work.operations
            for work in (self.plain, self.form)
        )
        return form / plain


def points(cases: Iterable[Mapping[str, Any]]) -> list[Point]:
    """X-volution in a runtime, one image and one thread, from the cases of a record; classifiers, which need timm alone."""
    found, works = [], {}
    for case in cases:
        if (
            case["runtime"] not in RUNTIMES
            or case["batch"] != 1
            or case["threads"] != 1
            or is_detector(case["network"])
        ):
            continue
        images = torch.randn(1, 3, case["image_size"], case["image_size"])
        name = case["network"]
        if name not in works:
            works[name] = {form.name: _work(form.build(name), images) for form in forms_of(name, ["auto"])}
            works[name]["plain"] = _work(plain_network(name), images)
        for form, figures in case["forms"].items():
            if form in works[name] and form != SQUEEZE_EXCITATION and "ratio" in figures:
                what = f"{name}, {form}, {case['runtime']}"
                found.append(Point(what, figures["ratio"], works[name]["plain"], works[name][form]))
    return found


def fit(found: Sequence[Point]) -> tuple[float, float]:
    """The numbers and operations of the grid whose estimates are nearest to what was measured, in the mean square."""
    grid = [(numbers, operations) for numbers in NUMBERS for operations in OPERATIONS]
    return min(grid, key=lambda prices: mean((point.estimate(*prices) - point.measured) ** 2 for point in found))


def _work(model: torch.nn.Module, images: torch.Tensor) -> Work:
    return work_of_network(reparameterize(model.eval(), layout="split", fold_norms=True).to("meta"), images.to("meta"))


def main() -> None:
    """Print the fit, and each estimate beside its measurement."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("record", type=Path, help="bench-networks.json.")
    found = points(json.loads(parser.parse_args().record.read_text())["cases"].values())
    for point in found:
        print(f"{point.what:60s} measured {point.measured:.3f}, estimated {point.estimate():.3f}")
    print("best on the grid: NUMBERS, OPERATIONS =", fit(found), "; in use:", (budget.NUMBERS, budget.OPERATIONS))


if __name__ == "__main__":
    main()
