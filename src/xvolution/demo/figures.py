"""The page's pictures, as SVG that takes its text colour from the page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from xvolution.demo.measure import FORMS, RUNTIMES
from xvolution.training.figures import INK, WIDTH, in_lines, style, svg

COLOURS = {"conv": "#8b93a1", "training": "#e0902f", "xvolution": "#129c93", "deployed": "#129c93"}
NAMES = {"conv": "plain convolution", "xvolution": "X-volution"}


def accuracy_curves(curves: dict[str, list[list[float]]]) -> str:
    """Top-1 by epoch: a thin line for each seed, a thick one for their mean.

    Args:
        curves: operator -> seed -> epoch, fractions.
    """
    with style():
        figure = Figure(figsize=(WIDTH, 3.0))
        axes = figure.add_subplot()
        for operator, by_seed in curves.items():
            percent = 100 * np.array(by_seed)
            epochs = np.arange(1, percent.shape[1] + 1)
            for seed in percent if len(percent) > 1 else []:
                axes.plot(epochs, seed, color=COLOURS[operator], linewidth=0.8, alpha=0.5)
            axes.plot(
                epochs, percent.mean(0), color=COLOURS[operator], linewidth=2.4, marker="o", label=NAMES[operator]
            )
        axes.set(xlabel="epoch", ylabel="top-1, %", xticks=epochs, ylim=(None, 100.5))
        axes.grid(axis="y", color=INK, alpha=0.12)
        axes.legend(loc="lower right", frameon=False)
        return svg(figure, "Top-1 accuracy of both networks after each epoch")


def latency_bars(rows: Sequence[dict[str, Any]]) -> str:
    """Median latency of each form with its quartiles, one panel for each runtime and batch size."""
    panels = list(dict.fromkeys((row["runtime"], row["batch_size"]) for row in rows))
    with style():
        figure = Figure(figsize=(WIDTH, 1.45 * len(panels) + 0.3), layout="constrained")
        for axes, (runtime, size) in zip(figure.subplots(len(panels), 1, squeeze=False)[:, 0], panels, strict=True):
            chosen = [row for row in rows if (row["runtime"], row["batch_size"]) == (runtime, size)]
            _bars(axes, chosen)
            axes.set_title(f"{RUNTIMES[runtime]}, batch of {size}", fontsize=11, loc="left")
        return svg(figure, "Median latency of the plain network, the training form and the deployed form")


def _bars(axes: Axes, rows: Sequence[dict[str, Any]]) -> None:
    medians = np.array([row["median_ms"] for row in rows])
    quartiles = np.array([row["quartiles_ms"] for row in rows]).T
    errors = np.abs(quartiles - medians)
    axes.barh(
        [in_lines(FORMS[row["form"]], 14) for row in rows],
        medians,
        xerr=errors,
        height=0.62,
        color=[COLOURS[row["form"]] for row in rows],
        error_kw={"ecolor": INK, "elinewidth": 0.8, "capsize": 2},
    )
    for place, row in enumerate(rows):
        text = f"{row['median_ms']:.2f} ms  ({row['ratio_to_conv']:.2f}x)"
        axes.text(1, place, text, va="center", ha="right", fontsize=10, transform=axes.get_yaxis_transform())
    axes.set_xlim(0, 1.65 * quartiles.max())  # the text stands behind the longest bar
    axes.invert_yaxis()
    axes.spines[["left", "bottom"]].set_visible(False)
    axes.tick_params(left=False, bottom=False, labelbottom=False)
