"""Pictures of what attention does, as SVG that takes its text colour from the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from torch import Tensor, nn

from xvolution.analysis import BranchMaps, attending_operator, attending_operators, attention_kernel, branch_maps
from xvolution.training.data.transforms import Preprocessing
from xvolution.training.figures import COLOURS, GREY, INK, WIDTH, in_lines, style, svg

#: Orders of magnitude below the largest that the picture of a receptive field shows.
DECADES = 4


def as_pictures(pixels: Tensor, preprocessing: Preprocessing) -> Tensor:
    """Undo the normalization: (n, C, H, W) -> (n, 3, H, W) in [0, 1]."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (preprocessing.mean, preprocessing.std))
    return (pixels.cpu() * std + mean).clamp(0, 1).expand(-1, 3, -1, -1)


def loss_bars(rows: Sequence[dict[str, Any]], loss: float) -> str:
    """Increase of the loss when the attention of each operator is set to its average.

    Args:
        rows: an operator each, with ``operator`` and the ``loss`` without its attention.
        loss: of the network as it was trained.
    """
    with style():
        names = [in_lines(row["operator"], 24) for row in rows]
        lines = sum(name.count("\n") + 1 for name in names)
        figure = Figure(figsize=(WIDTH, 0.2 * lines + 0.1 * len(rows) + 0.8), layout="constrained")
        axes = figure.add_subplot()
        added = [row["loss"] - loss for row in rows]
        colours = [COLOURS[0] if value > 0 else GREY for value in added]
        axes.barh(range(len(rows)), added, height=0.62, color=colours)
        axes.set_yticks(range(len(rows)), names)
        axes.axvline(0, color=INK, linewidth=0.6)
        axes.set(xlabel="loss without its attention,\nminus the loss as trained")
        axes.spines["left"].set_visible(False)
        axes.tick_params(left=False)
        axes.invert_yaxis()
        return svg(figure, "Increase of the loss when the attention of each operator is set to its average")


def receptive_field_picture(fields: Mapping[str, Tensor]) -> str:
    """Receptive fields (H, W) side by side on one logarithmic scale: with attention, and without."""
    titles = {"with": "with attention", "without": "attention at its average"}
    highest = max(float(field.max()) for field in fields.values())
    scale = LogNorm(highest * 10.0**-DECADES, highest)
    with style():
        figure = Figure(figsize=(WIDTH, 2.6), layout="constrained")
        grid = figure.subplots(1, len(fields), squeeze=False)[0]
        for axes, (key, field) in zip(grid, fields.items(), strict=True):
            shown = axes.imshow(field.clamp(min=scale.vmin).numpy(), cmap="viridis", norm=scale)
            axes.set_title(titles[key], fontsize=11)
            _bare(axes)
        figure.colorbar(shown, ax=grid.tolist(), pad=0.01, shrink=0.9).outline.set_visible(False)
        return svg(figure, "How strongly each pixel of the image influences the central pixel of the operator's output")


def finest_operator(model: nn.Module, image: Tensor) -> str:
    """The last X-volution of those with the largest maps, which has both learned features and a fine map."""
    sizes = {name: branch_maps(model, image, name).share.shape[-1] for name in attending_operators(model)}
    return [name for name, size in sizes.items() if size == max(sizes.values())][-1]


def attention_picture(model: nn.Module, pixels: Tensor, pictures: Tensor, name: str) -> str:
    """For each image: the image, attention's share at each pixel, and the kernel where attention is strongest.

    Args:
        model: in evaluation mode and training form.
        pixels: (n, C, H, W), what the model takes.
        pictures: (n, 3, H, W) in [0, 1], the same images to look at.
        name: of the operator.
    """
    maps = branch_maps(model, pixels, name)
    positions = maps.strongest()
    kernels = _kernels(model, maps, positions, name)
    with style():
        return svg(
            _draw(pictures, maps, positions, kernels),
            "Images, the share of the attention branch, and its kernel at one pixel",
        )


def _kernels(
    model: nn.Module, maps: BranchMaps, positions: Sequence[tuple[int, int]], name: str
) -> list[Tensor] | None:
    """Attention's kernel at the marked pixel of each image; None where the branch is no convolution over a window."""
    operator = attending_operator(model, name)
    operands = maps.operand.split(1)
    try:
        return [
            attention_kernel(operator, x, position)[0].cpu() for x, position in zip(operands, positions, strict=True)
        ]
    except ValueError:
        return None


def _draw(
    pictures: Tensor, maps: BranchMaps, positions: Sequence[tuple[int, int]], kernels: list[Tensor] | None
) -> Figure:
    titles = ["input image", "attention's share of\nthe operator's output"]
    if kernels is not None:
        titles.append("attention kernel at\nthe marked pixel")
    figure = Figure(figsize=(WIDTH, 1.25 * len(titles)), layout="constrained")
    grid = figure.subplots(len(titles), len(pictures), squeeze=False)
    share = maps.share.cpu()
    height, width = share.shape[1:]
    extent = (-0.5, width - 0.5, height - 0.5, -0.5)
    scales = [(grid[1], mpl.cm.ScalarMappable(mpl.colors.Normalize(0, float(share.max())), "viridis"))]
    for column, (row, col) in enumerate(positions):
        grid[0, column].imshow(pictures[column].movedim(0, -1).numpy(), extent=extent)
        grid[1, column].imshow(share[column].numpy(), cmap="viridis", vmin=0, vmax=float(share.max()))
        for axes in grid[:2, column]:
            axes.plot(
                col,
                row,
                marker="s",
                markersize=6,
                markerfacecolor="none",
                markeredgecolor="#ff5a36",
                markeredgewidth=1.6,
            )
    if kernels is not None:
        for axes, kernel in zip(grid[2], kernels, strict=True):
            axes.imshow((kernel / kernel.max().clamp_min(1e-12)).numpy(), cmap="magma", vmin=0, vmax=1)
        scales.append((grid[2], mpl.cm.ScalarMappable(cmap="magma")))
    for axes in grid.flat:
        _bare(axes)
    for axes, title in zip(grid[:, 0], titles, strict=True):
        axes.set_title(" ")  # keeps the room above the row for a title that is wider than the first picture
        above = {"xycoords": "axes fraction", "textcoords": "offset points", "annotation_clip": False}
        axes.annotate(title, (0, 1), xytext=(0, 5), fontsize=11, **above).set_in_layout(False)
    for place, (row, colours) in enumerate(scales):
        marks: dict[str, Any] = {"ticks": [0, 1]} if place else {"format": lambda value, _: f"{value:.0%}"}
        figure.colorbar(colours, ax=np.asarray(row).tolist(), pad=0.01, shrink=0.8, **marks).outline.set_visible(False)
    return figure


def _bare(axes: Axes) -> None:
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
