"""The page: figures and pictures in, one HTML document out."""

from __future__ import annotations

from statistics import mean
from typing import Any

from xvolution.demo.measure import FORMS, RUNTIMES
from xvolution.training.pages import environment


def render(figures: dict[str, Any], pictures: dict[str, str]) -> str:
    """Fill the template.

    Args:
        figures: what ``run_demo`` measured.
        pictures: name -> SVG element.

    Returns:
        A self-contained HTML document.
    """
    return (
        environment("xvolution.demo")
        .get_template("page.html.jinja")
        .render(**figures, pictures=pictures, summary=summary(figures), forms=FORMS, runtimes=RUNTIMES)
    )


def summary(figures: dict[str, Any]) -> dict[str, Any]:
    """The figures of the first paragraph: means, ranges, ratios."""
    accuracy, cost = figures["accuracy"], figures["cost"]
    ranges = {name: (min(values), max(values)) for name, values in accuracy.items()}
    points = 100 * (mean(accuracy["xvolution"]) - mean(accuracy["conv"]))
    ratios = {
        (row["runtime"], row["batch_size"]): row["ratio_to_conv"]
        for row in figures["latency"]
        if row["form"] == "deployed"
    }
    return {
        "means": {name: mean(values) for name, values in accuracy.items()},
        "ranges": ranges,
        "points": points,
        "images": round(abs(points) / 100 * figures["images"], 1),
        "apart": min(accuracy["xvolution"]) > max(accuracy["conv"])
        or max(accuracy["xvolution"]) < min(accuracy["conv"]),
        "parameters": cost["deployed"]["parameters"] / cost["conv"]["parameters"],
        "flops": cost["deployed"]["flops"] / cost["conv"]["flops"],
        "slowdown": {
            runtime: [ratio for (name, _), ratio in ratios.items() if name == runtime] for runtime in RUNTIMES
        },
    }
