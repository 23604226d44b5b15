"""A branch in one file, as somebody else would write it: the average of a window under a tanh gate.

::

    a_0 = tanh(s q_0) ⊙ (1/|Δ|) Σ_δ W^v x_δ,      q_0 = W^q x_0 + b^q

All of the library works with it once it is registered; nothing else knows of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from xvolution.attention import ATTENTION, AttentionBranch, AttentionConfig, register
from xvolution.attention.deployed import DeployedOperator
from xvolution.attention.folded import Folded, query_at
from xvolution.convolutions import conv_of, conv_over, kernel_of, pointwise, pointwise_of
from xvolution.folding import FoldedConvolution, NormLayer
from xvolution.geometry import ConvSite, Geometry, as_tuple, per_channel
from xvolution.numerics import add

NAME = "toy_average"


@dataclass(frozen=True)
class ToyAverage(AttentionConfig):
    """The average of a window of values, weighed at every pixel by a query.

    Attributes:
        window: side length of the window; that of the convolution when None.
        sharpness: factor of the query before its tanh.
    """

    window: int | None = None
    sharpness: float = 1.0

    def check(self) -> None:
        if not self.sharpness > 0:
            raise ValueError(f"sharpness is {self.sharpness}; it must be a positive number")

    def build(self, site: ConvSite, norm_layer: NormLayer | None = None) -> ToyAverageAttention:
        return ToyAverageAttention(self, site)


@contextmanager
def registered() -> Iterator[None]:
    """The branch is in the register while this is entered; a package would decorate the class with ``register(NAME)``."""
    register(NAME)(ToyAverage)
    try:
        yield
    finally:
        del ATTENTION[NAME]


class ToyAverageAttention(AttentionBranch):
    """The branch: maps (N, C_in, H, W) to (N, C_out, H', W')."""

    def __init__(self, config: ToyAverage, site: ConvSite) -> None:
        super().__init__(config, site)
        self.sharpness, geometry = config.sharpness, site.geometry
        self.window = geometry.recentred(as_tuple(config.window or geometry.kernel_size, site.dims), geometry.dilation)
        grouped: dict[str, Any] = {"groups": site.groups, **site.factory}
        self.query = conv_over(geometry.centre(), site.in_channels, site.out_channels, **grouped)
        self.value = pointwise(site.dims, site.in_channels, site.out_channels, bias=False, **grouped)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C_in, H, W) -> (N, C_out, H', W')."""
        value = self.value(x)
        return (self.sharpness * self.query(x)).tanh() * average(self.window, value)

    def fold(self, convolution: FoldedConvolution, norm: nn.Module) -> Folded:
        scale, norm = convolution.absorb(norm)
        value, query = kernel_of(self.value).weight, kernel_of(self.query)
        value = value if scale is None else value * per_channel(scale[:, None], value)
        return FoldedToyAverage(
            convolution, self.window, self.sharpness * query.weight, self.sharpness * query.bias, value, norm
        )


def average(window: Geometry, maps: Tensor) -> Tensor:
    """(N, C, H, W) -> (N, C, H', W'), with zeros counted at a padded border."""
    channels = maps.shape[1]
    weight = maps.new_full((channels, 1, *window.kernel_size), 1 / prod(window.kernel_size))
    return window.convolve(maps, weight, groups=channels)


@dataclass
class FoldedToyAverage(Folded):
    """``conv(x) + norm( tanh(W^q x_0 + b^q) ⊙ average(W^v x) )``, the sharpness in W^q and b^q."""

    window: Geometry
    query_weight: Tensor
    query_bias: Tensor
    value_weight: Tensor
    norm: nn.Module

    @property
    def layouts(self) -> tuple[str, ...]:
        return ("split", "single")

    def build(self, layout: str, factory: dict[str, Any]) -> DeployedOperator:
        return SingleToyConv(self, factory) if layout == "single" else SplitToyConv(self, factory)

    @property
    def union(self) -> Geometry:
        """The window of both branches."""
        return self.convolution.geometry.union([self.window, self.convolution.geometry.centre()])

    @property
    def averaged(self) -> Tensor:
        """The average of the values as one kernel over ``union``: (C_out, C_in / groups, kh, kw)."""
        taps = self.value_weight.new_full(self.window.kernel_size, 1 / prod(self.window.kernel_size))
        return self.union.embed(self.value_weight * taps, self.window)

    def kernel_at(self, x: Tensor, position: Sequence[int]) -> tuple[Tensor, Tensor]:
        """``W^c_δ + diag(tanh(q_0)) W^v / |Δ|``."""
        self.require_folded(self.norm)
        query = query_at(x, self.query_weight, self.query_bias, self.convolution, position).tanh()
        kernel = self.union.embed(self.convolution.weight, self.convolution.geometry)
        attended = query.reshape(*query.shape, *(1,) * (kernel.dim() - 1)) * self.averaged
        return kernel + attended, self.convolution.bias.expand(len(x), -1)


class ToyConv(DeployedOperator):
    """What both layouts share: ``conv_norm(z_c) + attention_norm(tanh(z_q) ⊙ z_v)``."""

    def __init__(self, folded: FoldedToyAverage) -> None:
        super().__init__(folded.convolution)
        self.conv_norm, self.attention_norm = folded.convolution.norm, folded.norm

    def gated(self, y: Tensor, query: Tensor, value: Tensor) -> Tensor:
        return add(self.conv_norm(y), self.attention_norm(query.tanh() * value))


class SingleToyConv(ToyConv):
    """Layout ``single``: one convolution with 3 C_out output channels."""

    layout = "single"

    def __init__(self, folded: FoldedToyAverage, factory: dict[str, Any]) -> None:
        super().__init__(folded)
        convolution, union = folded.convolution, folded.union
        kernels = (
            union.embed(convolution.weight, convolution.geometry),
            union.embed(folded.query_weight, convolution.geometry.centre()),
            folded.averaged,
        )
        biases = (convolution.bias, folded.query_bias, torch.zeros_like(convolution.bias))
        # With groups, the output channels of a group lie side by side.
        weight, bias = (
            torch.stack([part.unflatten(0, (self.groups, -1)) for part in parts], 1).flatten(0, 2)
            for parts in (kernels, biases)
        )
        self.conv = conv_of(union, weight, bias, self.groups, factory)

    def compute(self, x: Tensor) -> Tensor:
        parts = self.conv(x).unflatten(1, (self.groups, 3, -1)).unbind(2)
        return self.gated(*(part.flatten(1, 2) for part in parts))


class SplitToyConv(ToyConv):
    """Layout ``split``: the convolution, and beside it a query and values by 1x1, which are averaged."""

    layout = "split"

    def __init__(self, folded: FoldedToyAverage, factory: dict[str, Any]) -> None:
        super().__init__(folded)
        convolution, groups = folded.convolution, self.groups
        centre, dims = convolution.geometry.centre(), convolution.geometry.dims
        self.window = folded.window
        self.conv = conv_of(convolution.geometry, convolution.weight, convolution.bias, groups, factory)
        self.query = conv_of(centre, folded.query_weight, folded.query_bias, groups, factory)
        self.value = pointwise_of(dims, folded.value_weight.flatten(1), None, groups, factory)

    def compute(self, x: Tensor) -> Tensor:
        return self.gated(self.conv(x), self.query(x), average(self.window, self.value(x)))
