"""The pictures of a comparison."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from xvolution.compare.task import Metric
from xvolution.compare.verdict import ENOUGH_SEEDS, claimed
from xvolution.training.figures import COLOURS, GREY, INK, MARKERS, WIDTH, in_lines, style, svg

#: Of a line of a legend of two columns.
_LEGEND_LETTERS = 26


def accuracy_over_cost(rows: Sequence[dict[str, Any]], baseline: str, metric: Metric) -> str:
    """The metric with its interval over the deployed form's FLOPs; the Pareto front is a line."""
    done = [row for row in rows if row["score"] is not None]
    with style():
        figure = Figure(figsize=(WIDTH, 3.4 + _legend_height(done)), layout="constrained")
        axes = figure.add_subplot()
        front = sorted(
            (row["deployed_flops_ratio"] or 1.0, 100 * row["score"]["estimate"]) for row in done if row["pareto"]
        )
        axes.step(*zip(*front, strict=True), where="post", color=INK, alpha=0.35, linewidth=1, linestyle="--")
        for row, (colour, marker) in zip(rows, looks(rows, baseline), strict=True):
            if row["score"] is None:
                continue
            # Two seeds span an interval that dwarfs the picture.
            half = 100 * row["score"]["half"] if row["score"]["seeds"] >= ENOUGH_SEEDS else 0.0
            point = (row["deployed_flops_ratio"] or 1.0, 100 * row["score"]["estimate"])
            axes.errorbar(
                *point,
                yerr=half,
                color=colour,
                marker=marker,
                markersize=7,
                capsize=3,
                elinewidth=1,
                linestyle="none",
                label=in_lines(row["label"], _LEGEND_LETTERS),
            )
        axes.set(
            xlabel=in_lines(f"FLOPs of the deployed network, relative to {baseline}", 50), ylabel=f"{metric.name}, %"
        )
        axes.margins(x=0.08)
        axes.grid(color=INK, alpha=0.1)
        # Names beside the points would lie on each other wherever points do.
        _legend(figure, axes)
        return svg(figure, f"{metric.name} over FLOPs with the Pareto front")


def training_curves(
    rows: Sequence[dict[str, Any]], cells: Sequence[dict[str, Any]], baseline: str, metric: Metric
) -> str:
    """Training loss and the metric by epoch: the mean over seeds, and their range as a band."""
    with style():
        figure = Figure(figsize=(WIDTH, 5.0 + _legend_height(rows)), layout="constrained")
        loss, accuracy = figure.subplots(2, 1, sharex=True)
        for row, (colour, marker) in zip(rows, looks(rows, baseline), strict=True):
            histories = [cell["history"] for cell in cells if cell["label"] == row["label"]]
            if histories:
                label = in_lines(row["label"], _LEGEND_LETTERS)
                losses = [[epoch["train_loss"] for epoch in history] for history in histories]
                _band(loss, losses, colour, marker, label)
                percent = [[100 * epoch[f"val_{metric.key}"] for epoch in history] for history in histories]
                _band(accuracy, percent, colour, marker, label)
        loss.set(ylabel="training loss")
        accuracy.set(xlabel="epoch", ylabel=f"{metric.name}, %")
        accuracy.xaxis.get_major_locator().set_params(integer=True)
        for axes in (loss, accuracy):
            axes.grid(axis="y", color=INK, alpha=0.12)
        _legend(figure, loss)
        return svg(figure, f"Training loss and {metric.name} after each epoch")


def _legend(figure: Figure, axes: Axes) -> None:
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False, fontsize=9.5)


def _legend_height(rows: Sequence[dict[str, Any]]) -> float:
    """Inches, about: as many lines as the taller column of the legend has."""
    return 0.09 * sum(in_lines(row["label"], _LEGEND_LETTERS).count("\n") + 1 for row in rows)


def _band(axes: Axes, by_seed: Sequence[Sequence[float]], colour: str, marker: str, label: str) -> None:
    values = np.array(by_seed)
    epochs = np.arange(1, values.shape[1] + 1)
    axes.fill_between(epochs, values.min(0), values.max(0), color=colour, alpha=0.18, linewidth=0)
    every = max(1, len(epochs) // 8)
    axes.plot(
        epochs, values.mean(0), color=colour, linewidth=1.8, marker=marker, markersize=4, markevery=every, label=label
    )


def differences(rows: Sequence[dict[str, Any]], baseline: str, metric: Metric) -> str:
    """Difference from the baseline in the metric with its interval, one line for each variant; empty where there is none yet."""
    shown = [(row["label"], found) for row in rows if (found := claimed(row)) is not None]
    if not shown:
        return ""
    colours = dict(zip((row["label"] for row in rows), looks(rows, baseline), strict=True))
    with style():
        names = [in_lines(label) for label, _ in shown]
        lines = sum(max(2, name.count("\n") + 1) for name in names)
        figure = Figure(figsize=(WIDTH, 0.2 * lines + 0.9), layout="constrained")
        axes = figure.add_subplot()
        for place, (label, found) in enumerate(shown):
            colour, marker = colours[label]
            ends = (found["low"], found["high"]) if found["low"] is not None else (found["estimate"],) * 2
            axes.plot([100 * end for end in ends], [place, place], color=colour, linewidth=2.2)
            axes.plot(100 * found["estimate"], place, color=colour, marker=marker, markersize=7)
        axes.axvline(0, color=INK, linewidth=0.8)
        axes.set_yticks(range(len(shown)), names)
        axes.set(xlabel=in_lines(f"{metric.name} minus that of {baseline}, points", 36), ylim=(len(shown) - 0.5, -0.5))
        axes.grid(axis="x", color=INK, alpha=0.12)
        axes.spines["left"].set_visible(False)
        axes.tick_params(left=False)
        return svg(figure, f"Difference in {metric.name} from {baseline} with its interval")


def looks(rows: Sequence[dict[str, Any]], baseline: str) -> list[tuple[str, str]]:
    """Colour and marker of each row."""
    found, place = [], 0
    for row in rows:
        if row["label"] == baseline:
            found.append((GREY, "o"))
            continue
        found.append((COLOURS[place % len(COLOURS)], MARKERS[(place + place // len(COLOURS)) % len(MARKERS)]))
        place += 1
    return found
