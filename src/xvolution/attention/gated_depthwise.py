"""Attention whose values are the outputs of the convolution beside it: a window over them, weighted by the image::

    a_0 = φ(q) ⊙ (Σ_ε w_ε ⊙ v_ε + g ⊙ mean(v)),      q = W^q mean(x) + b^q,      v = conv(x)

With the convolution beside it the branch is that convolution and a depthwise one, whose kernel is computed for each image:
``s + φ(q) ⊙ w_ε``, with ``s``, the convolution's norm, at the centre. It is ``PixelShift`` with the image's query in the place
of the pixel's, and with the convolution's outputs in the place of the keys.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from xvolution.attention.base import (
    AttentionBranch,
    AttentionConfig,
    check_gate,
    check_window,
    pooled_weight,
    register,
)
from xvolution.attention.deployed import DeployedOperator, TwoBranchOnConv, convolve_each, takes_kernels
from xvolution.attention.folded import Folded, StaysAttention, pixel_of
from xvolution.attention.reference import image_average, mixed, pad, windows
from xvolution.convolutions import conv_over, geometry_of, kernel_of, pointwise
from xvolution.folding import FoldedConvolution, NormLayer
from xvolution.geometry import ConvSite, Geometry, as_tuple, per_channel, spatial
from xvolution.numerics import CONVOLVE, GATES, bounded, computed_in, convolve_window, double, image_mean


@register("gated_depthwise")
@dataclass(frozen=True)
class GatedDepthwise(AttentionConfig):
    """A gated window over the convolution's outputs. It deploys as the convolution and one depthwise convolution.

    Attributes:
        gate: gate on the query: identity, sigmoid or tanh; one removes the query, as a control experiment.
        window: side length in pixels of the window over the convolution's outputs, or one for each dimension; the outputs
            are padded with zeros.
        pooled_value: add a term over all pixels: the mean of the values, with one weight for each channel.
        pooled_value_init: start value of the weights of the pooled value.
    """

    gate: str = "sigmoid"
    window: int | tuple[int, ...] = 5
    pooled_value: bool = False
    pooled_value_init: float = 1.0

    def check(self) -> None:
        check_gate(self.gate, (*GATES, "one"))
        check_window(self.window)
        if not self.pooled_value and self.pooled_value_init != 1.0:
            raise ValueError(
                f"pooled_value_init is {self.pooled_value_init}, but pooled_value is off; switch it on, or leave this out"
            )

    def build(self, site: ConvSite, norm_layer: NormLayer | None = None) -> GatedDepthwiseAttention:
        return GatedDepthwiseAttention(self, site)


class GatedDepthwiseAttention(AttentionBranch):
    """The branch of ``GatedDepthwise``: maps (N, C_in, H, W) and ``conv(x)``, (N, C_out, H', W'), to (N, C_out, H', W').

    The values are shared with the convolution, so the branch needs none of its own, and reaches further than the convolution.
    """

    reads_convolution = True

    def __init__(self, config: GatedDepthwise, site: ConvSite) -> None:
        super().__init__(config, site)
        channels = site.out_channels
        geometry = Geometry.create(as_tuple(config.window, site.dims), padding="same", dims=site.dims)
        self.gate, self.query = config.gate, None
        if config.gate != "one":
            self.query = pointwise(site.dims, site.in_channels, channels, groups=site.groups, **site.factory)
        self.window = conv_over(geometry, channels, channels, groups=channels, bias=False, **site.factory)
        start = config.pooled_value_init if config.pooled_value else None
        self.mean_weight = pooled_weight(channels, start, site.factory)

    def weights(self, x: Tensor) -> Tensor:
        """φ(q): (N, C_in, H, W) -> (N, C_out, 1, 1); (1, C_out, 1, 1) without a query."""
        if self.query is None:
            return x.new_ones(1, self.window.out_channels, *(1,) * self.dims)
        return GATES[self.gate].apply(self.query(image_mean(x)))

    def forward(self, x: Tensor, value: Tensor) -> Tensor:  # type: ignore[override]  # see reads_convolution
        """(N, C_in, H, W) and ``conv(x)``, (N, C_out, H', W') -> (N, C_out, H', W')."""
        value = bounded(value)
        attended = convolve_window(self.window, value)
        if self.mean_weight is not None:
            attended = attended + self.mean_value(value)
        return self.weights(x) * bounded(attended)

    def mean_value(self, value: Tensor) -> Tensor:
        """``g ⊙ mean(v)``: (N, C_out, H', W') -> (N, C_out, 1, 1)."""
        assert self.mean_weight is not None
        return per_channel(self.mean_weight.to(value.dtype), value) * image_mean(value)

    def zero_init_(self) -> None:
        for weight in self._linear_weights():
            nn.init.zeros_(weight)

    def scale_output_(self, scale: Tensor) -> None:
        for weight in self._linear_weights():
            weight.copy_(double(weight) * scale.reshape(-1, *(1,) * (weight.dim() - 1)))

    def _linear_weights(self) -> list[Tensor]:
        """What the output depends on linearly."""
        return [weight for weight in (self.window.weight, self.mean_weight) if weight is not None]

    def fold(self, convolution: FoldedConvolution, norm: nn.Module) -> Folded:
        scale, norm = convolution.absorb(norm)
        return FoldedGatedDepthwise(convolution, self, scale, norm)


def gated_depthwise_attention(
    x: Tensor,
    value: Tensor,
    query_weight: Tensor | None,
    query_bias: Tensor | None,
    window_weight: Tensor,
    mean_weight: Tensor | None = None,
    *,
    gate: Callable[[Tensor], Tensor] = torch.sigmoid,
    groups: int = 1,
) -> Tensor:
    """The reference of ``GatedDepthwise``, shift by shift: ``φ(q) ⊙ (Σ_ε w_ε ⊙ v_ε + g ⊙ mean(v))``.

    Args:
        x: (N, C_in, H, W).
        value: v, the convolution's output, (N, C_out, H', W'); zeros around it.
        query_weight, query_bias: ``W^q``, (C_out, C_in / groups, 1, 1), and ``b^q``, (C_out,); φ(q) is 1 when None.
        window_weight: w, (C_out, kh, kw).
        mean_weight: g, (C_out,); no term over all pixels when None.
        gate: φ.
        groups: of the query.

    Returns:
        (N, C_out, H', W'); one or three dimensions in the place of H, W work alike.
    """
    kernel_size, ones = tuple(window_weight.shape[1:]), (1,) * (x.dim() - 2)
    before, after = [(k - 1) // 2 for k in kernel_size], [k - 1 - (k - 1) // 2 for k in kernel_size]
    shifted = windows(pad(value, before, after), kernel_size, ones, ones)
    terms = (window_weight.flatten(1).reshape(-1, shifted.shape[2], *ones) * shifted).sum(2)
    if mean_weight is not None:
        terms = terms + mean_weight.reshape(-1, *ones) * image_average(value)
    if query_weight is None:
        return terms
    return gate(mixed(image_average(x), query_weight, query_bias, groups)) * terms


@dataclass
class FoldedGatedDepthwise(StaysAttention):
    """The convolution before its norm, and behind it one depthwise convolution for each image, or a static one and a product."""

    @property
    def layouts(self) -> tuple[str, ...]:
        folded = all(type(norm) is nn.Identity for norm in (self.convolution.norm, self.norm))
        return ("single", "split") if folded else ("split",)

    def build(self, layout: str, factory: dict[str, Any]) -> DeployedOperator:
        form = DepthwiseKernelConv if layout == "single" else TwoBranchOnConv
        return self.scaled(form(self.convolution, self.attention, self.norm, factory))

    def kernel_at(self, x: Tensor, position: Sequence[int]) -> tuple[Tensor, Tensor]:
        """``W^c_δ + Σ_ε diag(φ(q) ⊙ w_ε) W_{δ-ε}``, over the window that the convolution and the one behind it see together."""
        scale, convolution, attention = self.kernel_scale(), self.convolution, self.attention
        depthwise = kernel_of(attention.window)
        geometry, window = convolution.geometry, depthwise.geometry
        whole = geometry.followed_by(window)
        value = geometry.convolve(x, convolution.value_weight, convolution.value_bias, convolution.groups)
        pixel_of(value, position)  # refuses a position outside of the output
        weights = scale.unsqueeze(1) * depthwise.weight.flatten(1)
        kernel, bias = whole.embed(convolution.weight, geometry), convolution.bias
        attended, attended_bias = torch.zeros_like(kernel), torch.zeros_like(bias)
        for offsets, weight in zip(
            product(*(window.tap_offsets(dim) for dim in range(window.dims))), weights.unbind(1), strict=True
        ):
            # Around the convolution's outputs there is nothing to attend to.
            if all(0 <= p + o < n for p, o, n in zip(position, offsets, value.shape[2:], strict=True)):
                moved = geometry.moved([s * o for s, o in zip(geometry.stride, offsets, strict=True)])
                shifted = whole.embed(convolution.value_weight, moved)
                attended = attended + per_channel(weight[:, None], x) * shifted
                attended_bias = attended_bias + weight * convolution.value_bias
        if attention.mean_weight is not None:
            mean_value = value.mean(spatial(value))
            attended_bias = attended_bias + scale * double(attention.mean_weight) * mean_value
        query = self._query(x)
        return kernel + query.unsqueeze(2) * attended, bias + query.flatten(1) * attended_bias

    def _query(self, x: Tensor) -> Tensor:
        """φ(q): (N, C_out, 1, 1)."""
        attention = self.attention
        if attention.query is None:
            return x.new_ones(len(x), self.convolution.channels, *(1,) * attention.dims)
        query, mean = kernel_of(attention.query), x.mean(spatial(x), keepdim=True)
        maps = CONVOLVE[attention.dims](mean, query.weight, query.bias, groups=self.convolution.groups)
        return GATES[attention.gate].apply(maps)


class DepthwiseKernelConv(TwoBranchOnConv):
    """Layout ``single``: ``v = conv(x)``, then a depthwise convolution with a kernel computed from the image."""

    layout = "single"

    def compute(self, x: Tensor) -> Tensor:
        # In fp16 one sum over a window would spread a value that overflowed to pixels around it.
        if not takes_kernels(x) or computed_in(x) == torch.float16:
            return super().compute(x)
        attention, value = self.attention, self.conv(x)
        geometry, weights = geometry_of(attention.window), attention.weights(x)
        weights = weights.expand(x.shape[0], *weights.shape[1:])
        kernels = weights.unsqueeze(2) * attention.window.weight.to(x.dtype)
        kernels = kernels + geometry.embed(self.scale.unsqueeze(1), geometry.centre()).to(x.dtype)
        biases = self.shift.to(x.dtype).expand_as(weights)
        if attention.mean_weight is not None:
            biases = biases + weights * attention.mean_value(value)
        return convolve_each(geometry, value, kernels, biases, self.out_channels)
