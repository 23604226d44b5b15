"""Seeds of several comparisons are joined seed by seed, and nothing else is."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.joined_seeds import differences, joined, line


def record(cells: dict[tuple[str, int], tuple[float, float]], **recipe: Any) -> dict[str, Any]:
    rows = [{"label": label, "seed": seed, "top1": top1, "loss": loss} for (label, seed), (top1, loss) in cells.items()]
    return {"recipe": {"epochs": 3, "outside_images": False, **recipe}, "cells": rows}


def test_a_seed_is_paired_with_the_same_seed() -> None:
    first = record({("conv", 0): (0.2, 3.0), ("xvolution", 0): (0.22, 2.9), ("se", 0): (0.9, 1.0)})
    second = record({("conv", 1): (0.5, 2.0), ("xvolution", 1): (0.56, 1.8)}, outside_images=True)
    (row,) = differences(joined([first, second]))
    assert (row["label"], row["against"], row["top1"]["seeds"]) == ("xvolution", "conv", 2)
    assert row["top1"]["estimate"] == pytest.approx(0.04)
    width = 2 * 12.7062 * 0.02  # Student's t with one degree of freedom
    assert row["top1"]["high"] - row["top1"]["low"] == pytest.approx(width, rel=1e-4)
    assert row["loss"]["estimate"] == pytest.approx(-0.15)
    assert line(row).startswith("xvolution against conv: +4.00 points (-21.41 to +29.41), loss -0.150")
    assert (
        line(differences(joined([first]))[0]) == "xvolution against conv: fewer than two seeds in common, no interval"
    )


def test_other_recipes_and_the_same_seed_are_refused() -> None:
    first = record({("conv", 0): (0.2, 3.0)})
    with pytest.raises(ValueError, match=r"different recipes \(epochs\)"):
        joined([first, record({("conv", 1): (0.2, 3.0)}, epochs=8)])
    with pytest.raises(ValueError, match="two comparisons have the seed 0 of conv"):
        joined([first, first])
