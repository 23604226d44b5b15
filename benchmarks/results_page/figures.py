"""The two pictures of `docs/results.md`."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure

from benchmarks.results_page.rows import RUNTIMES, costs, gains
from xvolution.training.figures import COLOURS, GREY, INK, WIDTH, in_lines, style, svg_file
from xvolution.training.files import write_text

_OURS, _THEIRS = COLOURS[:2]


def draw(results: Path, folder: Path) -> None:
    """Write ``results-gains.svg`` and ``results-costs.svg``."""
    write_text(folder / "results-gains.svg", draw_gains(results))
    write_text(folder / "results-costs.svg", draw_costs(results))


def draw_gains(results: Path) -> str:
    """Gains in top-1 with their intervals, one line a row."""
    rows = [row for row in gains(results) if row.points is not None and row.points[0] > -2]
    names = [in_lines(f"{row.operator.replace('*', '').replace('`', '')} ({row.recipe})", 24) for row in rows]
    with style():
        figure = Figure(figsize=(WIDTH, 0.19 * sum(name.count("\n") + 1.6 for name in names) + 1), layout="constrained")
        axes = figure.subplots()
        for place, row in enumerate(rows):
            assert row.points is not None
            gain, low, high = row.points
            colour = GREY if "without attention" in row.operator else _OURS
            axes.plot([low, high], [place, place], color=colour, linewidth=2)
            axes.plot(gain, place, "o", color=colour)
        axes.axvline(0, color=INK, linewidth=0.8)
        axes.set_yticks(range(len(rows)), names, fontsize=10)
        axes.invert_yaxis()
        axes.set_xlabel("gain in top-1, points (95 % interval)")
        axes.grid(axis="x", color=INK, alpha=0.12)
        return svg_file(figure, "Gains in top-1 with their intervals")


def draw_costs(results: Path) -> str:
    """Latencies of deployed networks as ratios: X-volution beside squeeze-and-excitation."""
    rows = list(costs(results))
    with style():
        figure = Figure(figsize=(WIDTH, 3.4), layout="constrained")
        for axes, (runtime, title) in zip(figure.subplots(1, 2, sharey=True), RUNTIMES.items(), strict=True):
            for shift, colour, label, values in (
                (-0.2, _OURS, "X-volution, all stages", [row.ours[runtime] for row in rows]),
                (0.2, _THEIRS, "squeeze-and-excitation", [row.theirs[runtime] for row in rows]),
            ):
                places = [place + shift for place in range(len(rows))]
                bars = axes.barh(places, [value - 1 for value in values], 0.36, left=1, color=colour, label=label)
                axes.bar_label(bars, [f"{value:.2f}" for value in values], padding=2, fontsize=8.5)
            names = [in_lines(row.network, 13) for row in rows]
            axes.set_yticks(range(len(rows)), names, fontsize=10)
            axes.set(xlim=(1, 1.38), xticks=(1, 1.1, 1.2, 1.3), xlabel="time, plain network = 1")
            axes.set_title(title, fontsize=11)
        figure.axes[0].invert_yaxis()
        legend = figure.axes[0].get_legend_handles_labels()
        figure.legend(*legend, loc="outside lower center", ncols=2, frameon=False, fontsize=10)
        return svg_file(figure, "Time of deployed networks beside that of squeeze-and-excitation")
