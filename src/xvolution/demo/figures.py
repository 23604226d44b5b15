"""The page's pictures, as SVG that takes its text colour from the page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn

from xvolution import XVolution2d
from xvolution.analysis import BranchMaps, attention_kernel, branch_maps
from xvolution.compare.figures import INK, style, svg
from xvolution.demo.measure import FORMS, RUNTIMES, Images

COLOURS = {"conv": "#8b93a1", "training": "#e0902f", "xvolution": "#129c93", "deployed": "#129c93"}
NAMES = {"conv": "plain convolution", "xvolution": "X-volution"}


def accuracy_curves(curves: dict[str, list[list[float]]]) -> str:
    """Top-1 by epoch: a thin line for each seed, a thick one for their mean.

    Args:
        curves: operator -> seed -> epoch, fractions.
    """
    with style():
        figure = Figure(figsize=(7.2, 3.4))
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
        figure = Figure(figsize=(7.2, 1.05 * len(panels) + 0.4), layout="constrained")
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
        [FORMS[row["form"]] for row in rows],
        medians,
        xerr=errors,
        height=0.62,
        color=[COLOURS[row["form"]] for row in rows],
        error_kw={"ecolor": INK, "elinewidth": 0.8, "capsize": 2},
    )
    for place, row in enumerate(rows):
        text = f"{row['median_ms']:.2f} ms  ({row['ratio_to_conv']:.2f}x)"
        axes.text(1, place, text, va="center", ha="right", fontsize=10, transform=axes.get_yaxis_transform())
    axes.set_xlim(0, 1.4 * quartiles.max())
    axes.invert_yaxis()
    axes.spines[["left", "bottom"]].set_visible(False)
    axes.tick_params(left=False, bottom=False, labelbottom=False)


def attention_picture(model: nn.Module, images: Images, shown: int = 6) -> str:
    """For one image of each of some classes: the image, attention's share at each pixel, and the kernel where it is strongest."""
    name, operator = _finest_operator(model, images.pixels[:1])
    chosen = [int((images.labels == label).nonzero()[0]) for label in images.labels.unique()[:shown]]
    pixels = images.pixels[chosen]
    maps = branch_maps(model, pixels, name)
    positions = maps.strongest()
    kernels = [attention_kernel(operator, maps.operand[i : i + 1], position)[0] for i, position in enumerate(positions)]
    with style():
        return svg(
            _draw(pixels, maps, positions, kernels), "Images, the attention branch's share, its kernel at one pixel"
        )


def _finest_operator(model: nn.Module, image: Tensor) -> tuple[str, XVolution2d]:
    """The last X-volution of those with the largest maps: deep enough to have learned, fine enough to be looked at."""
    operators = {name: module for name, module in model.named_modules() if isinstance(module, XVolution2d)}
    sizes = {name: branch_maps(model, image, name).share.shape[-1] for name in operators}
    name = [name for name, size in sizes.items() if size == max(sizes.values())][-1]
    return name, operators[name]


def _draw(pixels: Tensor, maps: BranchMaps, positions: list[tuple[int, int]], kernels: list[Tensor]) -> Figure:
    titles = (
        "what the network sees",
        "attention's share of\nthe operator's answer",
        "what it weighs around\nthe marked pixel",
    )
    figure = Figure(figsize=(7.2, 3.6), layout="constrained")
    grid = figure.subplots(3, len(pixels), squeeze=False)
    height, width = maps.share.shape[1:]
    extent = (-0.5, width - 0.5, height - 0.5, -0.5)
    highest = float(maps.share.max())
    for column, (row, col) in enumerate(positions):
        grid[0, column].imshow(pixels[column].mean(0).numpy(), cmap="gray", extent=extent)
        share = grid[1, column].imshow(maps.share[column].numpy(), cmap="viridis", vmin=0, vmax=highest)
        for axes in grid[:2, column]:
            axes.plot(
                col,
                row,
                marker="s",
                markersize=7,
                markerfacecolor="none",
                markeredgecolor="#ff5a36",
                markeredgewidth=1.6,
            )
        kernel = kernels[column] / kernels[column].max().clamp_min(1e-12)
        grid[2, column].imshow(kernel.numpy(), cmap="magma", vmin=0, vmax=1)
    for axes in grid.flat:
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
    for axes, title in zip(grid[:, 0], titles, strict=True):
        axes.set_ylabel(title, rotation=0, ha="right", va="center", labelpad=10)
    scales = (
        figure.colorbar(share, ax=grid[1].tolist(), format=lambda value, _: f"{value:.0%}", pad=0.01, shrink=0.8),
        figure.colorbar(mpl.cm.ScalarMappable(cmap="magma"), ax=grid[2].tolist(), ticks=[0, 1], pad=0.01, shrink=0.8),
    )
    for scale in scales:
        scale.outline.set_visible(False)
    return figure
