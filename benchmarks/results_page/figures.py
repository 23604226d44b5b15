"""The two pictures of `docs/results.md`."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

from benchmarks.results_page.rows import RUNTIMES, costs, gains
from xvolution.training.files import atomic_path

_OURS, _THEIRS, _LINE = "#00796b", "#8d6e63", "#9e9e9e"


def draw(results: Path, folder: Path) -> None:
    """Write ``results-gains.svg`` and ``results-costs.svg``."""
    for name, figure in (("gains", draw_gains(results)), ("costs", draw_costs(results))):
        # With ids of its own each time, an unchanged picture would be a change.
        with atomic_path(folder / f"results-{name}.svg") as temporary, mpl.rc_context({"svg.hashsalt": "xvolution"}):
            figure.savefig(temporary, format="svg", metadata={"Date": None})


def draw_gains(results: Path) -> Figure:
    """Gains in top-1 with their intervals, one line a row."""
    rows = [row for row in gains(results) if row.top1 is not None and row.top1[0] > -2]
    figure = Figure(figsize=(8, 0.36 * len(rows) + 1), layout="constrained")
    axes = figure.subplots()
    for place, row in enumerate(rows):
        assert row.top1 is not None
        gain, low, high = row.top1
        colour = _THEIRS if "without attention" in row.operator else _OURS
        axes.plot([low, high], [place, place], color=colour, linewidth=2)
        axes.plot(gain, place, "o", color=colour)
    axes.axvline(0, color=_LINE, linewidth=1)
    labels = [f"{row.operator.replace('*', '').replace('`', '')} ({row.recipe})" for row in rows]
    axes.set_yticks(range(len(rows)), labels)
    axes.invert_yaxis()
    axes.set_xlabel("gain in top-1, points (95 % interval)")
    axes.grid(axis="x", alpha=0.25)
    return figure


def draw_costs(results: Path) -> Figure:
    """Latencies of deployed networks as ratios: X-volution beside squeeze-and-excitation."""
    rows = list(costs(results))
    figure = Figure(figsize=(8, 3), layout="constrained")
    for axes, (runtime, title) in zip(figure.subplots(1, 2, sharey=True), RUNTIMES.items(), strict=True):
        for shift, colour, label, values in (
            (-0.2, _OURS, "X-volution, all stages", [row.ours[runtime] for row in rows]),
            (0.2, _THEIRS, "squeeze-and-excitation", [row.theirs[runtime] for row in rows]),
        ):
            places = [place + shift for place in range(len(rows))]
            bars = axes.barh(places, [value - 1 for value in values], 0.36, left=1, color=colour, label=label)
            axes.bar_label(bars, [f"{value:.2f}" for value in values], padding=2, fontsize=8)
        axes.set_yticks(range(len(rows)), [row.network for row in rows])
        axes.set(xlabel=f"time, plain network = 1 ({title})", xlim=(1, 1.35))
    figure.axes[0].invert_yaxis()
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
    return figure
