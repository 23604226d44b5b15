"""The page: figures in, one HTML document out."""

from __future__ import annotations

from typing import Any

from xvolution.compare.figures import accuracy_over_cost, differences, training_curves
from xvolution.compare.statistics import LEVEL
from xvolution.compare.task import Metric
from xvolution.compare.verdict import ENOUGH_SEEDS, WORTH, claimed, count, differs
from xvolution.training.pages import environment


def render(figures: dict[str, Any]) -> str:
    """Fill the template.

    Args:
        figures: the content of `results.json`.

    Returns:
        A self-contained HTML document.
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
    older = {"folds": None}  # of results that were written before there were folds
    return template.render(
        **{**older, **figures}, metric=metric, pictures=pictures, pair_of=pair_of, **constants, **functions
    )
