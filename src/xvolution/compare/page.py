"""The page: figures in, one HTML document out."""

from __future__ import annotations

import shlex
from typing import Any

import jinja2

from xvolution.compare.figures import accuracy_over_cost, differences, training_curves
from xvolution.compare.statistics import LEVEL
from xvolution.compare.task import Metric
from xvolution.compare.verdict import ENOUGH_SEEDS, MINUS, WORTH, claimed, count, differs


def environment(package: str) -> jinja2.Environment:
    """The templates of a package, and the style sheet that all pages include."""
    made = jinja2.Environment(
        loader=jinja2.ChoiceLoader(
            [jinja2.PackageLoader(package, "."), jinja2.PackageLoader("xvolution.compare", ".")]
        ),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters.update(
        percent=lambda value: f"{100 * value:.2f}\u00a0%",
        scientific=lambda value: f"{value:.1e}".replace("e-0", "e-"),
        signed=lambda value, digits=2: f"{value:+.{digits}f}".replace("-", MINUS),
        shell=shlex.join,
        si=lambda value: f"{value / 1e9:.2f}\u00a0G" if value >= 1e9 else f"{value / 1e6:.2f}\u00a0M",
    )
    return made


def render(figures: dict[str, Any]) -> str:
    """Fill the template.

    Args:
        figures: what `results.json` holds.

    Returns:
        A document that loads nothing from anywhere.
    """
    rows, baseline = figures["variants"], figures["baseline"]
    metric = Metric(**figures["metrics"][0])
    done = any(row["score"] is not None for row in rows)
    pictures = {
        "difference": differences(rows, baseline, metric),
        "cost": accuracy_over_cost(rows, baseline, metric) if done else "",
        "curves": training_curves(rows, figures["cells"], baseline, metric) if done else "",
    }
    constants = {"level": LEVEL, "enough": ENOUGH_SEEDS, "worth": WORTH}
    functions = {"count": count, "claimed": claimed, "differs": differs}
    pair_of = {(pair["label"], pair["against"]): pair for pair in figures["pairs"]}
    template = environment("xvolution.compare").get_template("report.html.jinja")
    return template.render(**figures, metric=metric, pictures=pictures, pair_of=pair_of, **constants, **functions)
