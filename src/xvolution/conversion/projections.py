"""The 1x1 convolution after a depthwise one, which mixes the channels.

Attention inside a depthwise convolution sees one channel of each pixel. At the projection after it, attention mixes channels,
and reads neighbouring pixels through its own window.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from xvolution.conversion.modules import call, evaluating
from xvolution.conversion.selection import convolutions


@dataclass(frozen=True)
class _Run:
    """One execution of a convolution: its name, and the sizes of the maps that it read and wrote."""

    name: str
    conv: Any
    read: tuple[int, ...]
    wrote: tuple[int, ...]


def is_depthwise(conv: Any) -> bool:
    """Whether a spatial convolution reads one channel for each output channel."""
    return conv.groups == conv.in_channels > 1 and max(conv.kernel_size) > 1


def at_projections_of(
    model: nn.Module, selected: Sequence[str], inputs: Callable[[], Any]
) -> tuple[list[str], dict[str, str]]:
    """The selection, with each depthwise convolution replaced by the projection after it if there is one.

    The order is recorded in one forward pass, which is run only if the selection has a depthwise convolution.

    Args:
        model: the network.
        selected: names of convolutions.
        inputs: returns inputs of the network, or None.

    Returns:
        The names, each once, in the order in which they were selected; and the projection by the name of its depthwise
        convolution.
    """
    found = dict(convolutions(model))
    depthwise = [name for name in selected if is_depthwise(found[name])]
    example = inputs() if depthwise else None
    if example is None:
        return list(selected), {}
    runs = _watch(model, example)
    behind = {name: after for name in depthwise if (after := _projection(runs, name)) is not None}
    return list(dict.fromkeys(behind.get(name, name) for name in selected)), behind


def _watch(model: nn.Module, inputs: Any) -> list[_Run]:
    """All convolutions in the order in which they run."""
    runs: list[_Run] = []

    def record(name: str, conv: Any) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
        def hook(_: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            if args and isinstance(args[0], Tensor):
                runs.append(_Run(name, conv, tuple(args[0].shape[2:]), tuple(output.shape[2:])))

        return hook

    handles = [
        model.get_submodule(name).register_forward_hook(record(name, conv)) for name, conv in convolutions(model)
    ]
    try:
        with evaluating(model):
            call(model, inputs)
    finally:
        for handle in handles:
            handle.remove()
    return runs


def _projection(runs: Sequence[_Run], name: str) -> str | None:
    """The first dense 1x1 convolution behind the depthwise one that reads a map of its size and channels.

    The size distinguishes it from the 1x1 convolutions of squeeze-and-excitation, which read one pixel. Convolutions after the
    next spatial convolution with another input belong to another block.
    """
    own = next((index for index, run in enumerate(runs) if run.name == name), None)
    if own is None:
        return None
    channels, size = runs[own].conv.out_channels, runs[own].wrote
    for run in runs[own + 1 :]:
        conv = run.conv
        pointwise = max(conv.kernel_size) == 1 and conv.groups == 1
        if pointwise and conv.in_channels == channels and run.read == size and max(size) > 1:
            return run.name
        if max(conv.kernel_size) > 1 and not (is_depthwise(conv) and conv.out_channels == channels):
            return None
    return None
