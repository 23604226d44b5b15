"""Pixel shift self-attention by dot products, equation 9 of X-volution (Chen, Wang, Ni, arXiv 2106.02253, 2021) taken literally::

    a_0 = Σ_δ w_{δ,h} <q_0, k_δ>_h v_δ^{(h)},      q = W^q x + b^q,   k = W^k x,   v = W^v x

The score of a shift is one number for each head and multiplies all values of the head. The branch therefore does not merge.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from xvolution.attention.base import (
    AttentionBranch,
    AttentionConfig,
    Window,
    attention_channels,
    check_heads,
    check_ratio,
    check_window,
    register,
    window_of,
)
from xvolution.attention.folded import Folded, StaysAttention, pixel_of, query_at
from xvolution.attention.reference import centres, each, mixed, padded_for, windows
from xvolution.convolutions import conv_over, kernel_of, pointwise
from xvolution.folding import FoldedConvolution, NormLayer
from xvolution.geometry import ConvSite, per_channel
from xvolution.numerics import double, narrow, widen


@register("pixel_shift_dot")
@dataclass(frozen=True)
class PixelShiftDot(AttentionConfig):
    """The paper's attention over a window, with one dot product for each head and shift. It does not merge.

    Attributes:
        attention_ratio: query and key channels as a fraction of the output channels, rounded up to a multiple of groups
            and heads.
        num_heads: number of heads in each group.
        window: side length of the attention window in pixels, one for each dimension, or conv for that of the
            convolution. By default that of the convolution, and 3 beside a 1x1 convolution.
        dilation: distance between neighbouring taps of the window in pixels; by default that of the convolution.
    """

    attention_ratio: float = 0.25
    num_heads: int = 1
    window: Window = None
    dilation: int | None = None

    def check(self) -> None:
        check_ratio(self.attention_ratio)
        check_window(self.window)
        if self.dilation is not None and self.dilation < 1:
            raise ValueError(f"dilation is {self.dilation}; it must be a positive integer")

    def build(self, site: ConvSite, norm_layer: NormLayer | None = None) -> PixelShiftDotAttention:
        return PixelShiftDotAttention(self, site)


class PixelShiftDotAttention(AttentionBranch):
    """The branch of ``PixelShiftDot``: maps (N, C_in, H, W) to (N, C_out, H', W')."""

    def __init__(self, config: PixelShiftDot, site: ConvSite) -> None:
        super().__init__(config, site)
        check_heads(config.num_heads, site.out_channels, site.groups)
        self.heads = site.groups * config.num_heads
        channels = attention_channels(site.out_channels, config.attention_ratio, site.groups, config.num_heads)
        geometry, grouped = site.geometry, {"groups": site.groups, **site.factory}
        dilation = geometry.dilation if config.dilation is None else (config.dilation,) * site.dims
        self.shifts = geometry.recentred(window_of(config.window, geometry), dilation)
        taps = self.shifts.kernel_size
        self.query = conv_over(geometry.centre(), site.in_channels, channels, **grouped)
        self.key = pointwise(site.dims, site.in_channels, channels, bias=False, **grouped)
        self.value = pointwise(site.dims, site.in_channels, site.out_channels, bias=False, **grouped)
        self.window_weight = nn.Parameter(torch.full((self.heads, 1, *taps), 1 / prod(taps), **site.factory))

    def forward(self, x: Tensor) -> Tensor:
        """(N, C_in, H, W) -> (N, C_out, H', W')."""
        source = self.query(x)
        query, key, value = widen(source, self.key(x), self.value(x))
        key_taps, value_taps = (self.shifts.taps(self.shifts.pad(maps)) for maps in (key, value))
        weights = per_channel(self.window_weight.to(query.dtype).flatten(1), key)
        query = query.unflatten(1, (self.heads, -1))
        attended = torch.zeros_like(value_taps[0])
        for tap, (key_tap, value_tap) in enumerate(zip(key_taps, value_taps, strict=True)):
            scores = weights[:, tap] * (query * key_tap.unflatten(1, (self.heads, -1))).sum(2)
            attended = attended + (scores.unsqueeze(2) * value_tap.unflatten(1, (self.heads, -1))).flatten(1, 2)
        return attended if attended.dtype == source.dtype else narrow(attended, self.value.weight.dtype)

    def fold(self, convolution: FoldedConvolution, norm: nn.Module) -> Folded:
        scale, norm = convolution.absorb(norm)
        return FoldedPixelShiftDot(convolution, self, scale, norm)


def pixel_shift_dot_attention(
    x: Tensor,
    query_weight: Tensor,
    key_weight: Tensor,
    value_weight: Tensor,
    window_weight: Tensor,
    query_bias: Tensor | None = None,
    *,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] | str = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    padding_mode: str = "zeros",
) -> Tensor:
    """The reference of ``PixelShiftDot``, shift by shift: ``a_0 = Σ_δ w_{δ,h} <q_0, k_δ>_h v_δ^{(h)}``.

    Args:
        x: (N, C_in, H, W), padded first, so that query, key and value see the same pixels as a convolution of this geometry.
        query_weight, key_weight: (A, C_in / groups, 1, 1).
        value_weight: (C_out, C_in / groups, 1, 1).
        window_weight: ``w``, (heads, kh, kw), heads counted over all groups.
        query_bias: ``b^q``, (A,).
        stride, padding, dilation, groups, padding_mode: as in ``nn.Conv2d``.

    Returns:
        (N, C_out, H', W').
    """
    kernel_size, dims, heads = tuple(window_weight.shape[1:]), x.dim() - 2, len(window_weight)
    steps, spaces = each(stride, dims), each(dilation, dims)
    padded = padded_for(x, padding, kernel_size, spaces, padding_mode)
    query = centres(mixed(padded, query_weight, query_bias, groups), kernel_size, steps, spaces)
    key, value = (
        windows(mixed(padded, weight, None, groups), kernel_size, steps, spaces)
        for weight in (key_weight, value_weight)
    )
    scores = (query.unsqueeze(2) * key).unflatten(1, (heads, -1)).sum(2)
    weighted = scores * window_weight.flatten(1).reshape(heads, -1, *(1,) * dims)
    return (weighted.unsqueeze(2) * value.unflatten(1, (heads, -1))).sum(3).flatten(1, 2)


@dataclass
class FoldedPixelShiftDot(StaysAttention):
    """The folded convolution beside the branch, which stays attention."""

    def kernel_at(self, x: Tensor, position: Sequence[int]) -> tuple[Tensor, Tensor]:
        """``W^c_δ + Σ_h w_{δ,h} <q_0, k_δ>_h W^v_h``."""
        scale, convolution = self.kernel_scale(), self.convolution
        attention: PixelShiftDotAttention = self.attention
        shifts, heads = attention.shifts, attention.heads
        query, key, value = (kernel_of(conv) for conv in (attention.query, attention.key, attention.value))
        query_map = query_at(x, query.weight, query.bias, convolution, position)
        key_map = key.geometry.convolve(x, key.weight, groups=convolution.groups)
        keys = torch.stack([pixel_of(tap, position) for tap in shifts.taps(shifts.pad(key_map))], 2)
        scores = torch.einsum(
            "nha,nhat->nht", query_map.unflatten(1, (heads, -1)), keys.unflatten(1, (heads, -1))
        ) * double(attention.window_weight).flatten(1)
        values = (value.weight.flatten(1) * scale.unsqueeze(1)).unflatten(0, (heads, -1))
        attended: Any = torch.einsum("nht,hoi->nhoit", scores, values).flatten(1, 2).unflatten(3, shifts.kernel_size)
        union = convolution.geometry.union([shifts])
        kernel = union.embed(convolution.weight, convolution.geometry) + union.embed(attended, shifts)
        return kernel, convolution.bias.expand(len(x), -1)
