"""Softmax-free attention over all pixels, equation 3 of X-volution (arXiv 2106.02253, 2021) as it stands, in O(H W)::

    a_0 = (1/n) Σ_t v_t <q_0, k_t>_h  =  M_h(x) q_0^{(h)},      M_h(x) = (1/n) Σ_t v_t^{(h)} k_t^{(h)T}

``M(x)`` is one small matrix for each image and head, so the branch is a 1x1 convolution on the centre pixels of the window,
with a kernel that depends on the image.
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
    attention_channels,
    check_heads,
    check_ratio,
    register,
)
from xvolution.attention.deployed import ContentConv, DeployedOperator
from xvolution.attention.folded import Folded, StaysAttention, query_at
from xvolution.convolutions import as_kernel, conv_over, kernel_of, pointwise
from xvolution.folding import FoldedConvolution, NormLayer
from xvolution.geometry import ConvSite, centre_of
from xvolution.numerics import narrow, widen, without_autocast


@register("linear")
@dataclass(frozen=True)
class Linear(AttentionConfig):
    """Attention over all pixels without softmax. It deploys as a convolution with a centre tap computed for each image.

    Attributes:
        attention_ratio: query and key channels as a fraction of the output channels, rounded up to a multiple of groups
            and heads.
        num_heads: number of heads in each group.
    """

    attention_ratio: float = 0.25
    num_heads: int = 1

    def check(self) -> None:
        check_ratio(self.attention_ratio)

    def build(self, site: ConvSite, norm_layer: NormLayer | None = None) -> LinearAttention:
        return LinearAttention(self, site)


class LinearAttention(AttentionBranch):
    """The branch of ``Linear``: maps (N, C_in, H, W) to (N, C_out, H', W').

    Queries are read at the centres of the convolution's windows, keys and values at every pixel of the input.
    """

    def __init__(self, config: Linear, site: ConvSite) -> None:
        super().__init__(config, site)
        check_heads(config.num_heads, site.out_channels, site.groups)
        self.heads = site.groups * config.num_heads
        channels = attention_channels(site.out_channels, config.attention_ratio, site.groups, config.num_heads)
        grouped: dict[str, Any] = {"groups": site.groups, **site.factory}
        self.query = conv_over(site.geometry.centre(), site.in_channels, channels, **grouped)
        self.key = pointwise(site.dims, site.in_channels, channels, **grouped)
        self.value = pointwise(site.dims, site.in_channels, site.out_channels, **grouped)

    def mixing_matrix(self, x: Tensor) -> Tensor:
        """``M(x)``: (N, C_in, H, W) -> (N, heads, C_out / heads, A / heads), heads counted over all groups."""
        key, value = (_by_head(maps, self.heads) for maps in widen(self.key(x), self.value(x)))
        # Of the input, since torch's tracing exporter takes the size of a reshaped map for a constant.
        pixels = prod(x.shape[2:])
        with without_autocast(x.device):
            return value @ key.transpose(-1, -2) / pixels

    def forward(self, x: Tensor) -> Tensor:
        """(N, C_in, H, W) -> (N, C_out, H', W')."""
        query = self.query(x)
        (wide,) = widen(query)
        mixing = self.mixing_matrix(x)
        with without_autocast(x.device):
            attended = mixing @ _by_head(wide, self.heads)
        attended = attended.flatten(1, 2).unflatten(2, query.shape[2:])
        return attended if attended.dtype == query.dtype else narrow(attended, self.value.weight.dtype)

    def fold(self, convolution: FoldedConvolution, norm: nn.Module) -> Folded:
        scale, norm = convolution.absorb(norm)
        return FoldedLinear(convolution, self, scale, norm)


def _by_head(maps: Tensor, heads: int) -> Tensor:
    """(N, C, H, W) -> (N, heads, C / heads, H W)."""
    return maps.flatten(2).unflatten(1, (heads, -1))


def linear_attention(query: Tensor, key: Tensor, value: Tensor, heads: int = 1) -> Tensor:
    """The reference of ``Linear``, term by term: ``(1/n) Σ_t v_t <q_0, k_t>_h``, in O((H W)²).

    Args:
        query: (N, A, H', W').
        key: (N, A, H, W).
        value: (N, C, H, W).
        heads: number of heads; divides A and C.

    Returns:
        (N, C, H', W').
    """
    queries, keys, values = (maps.flatten(2).unflatten(1, (heads, -1)) for maps in (query, key, value))
    scores = torch.einsum("nhap,nhat->nhpt", queries, keys)
    mixed = torch.einsum("nhpt,nhct->nhcp", scores, values) / keys.shape[3]
    return mixed.flatten(1, 2).unflatten(2, query.shape[2:])


@dataclass
class FoldedLinear(StaysAttention):
    """The folded convolution beside the branch, or both as one convolution for each image."""

    @property
    def layouts(self) -> tuple[str, ...]:
        return ("split", "single") if type(self.norm) is nn.Identity else ("split",)

    def build(self, layout: str, factory: dict[str, Any]) -> DeployedOperator:
        if layout == "split":
            return super().build(layout, factory)
        return self.scaled(MixedConv(self.convolution, self.attention, self.norm, factory))

    def kernel_at(self, x: Tensor, position: Sequence[int]) -> tuple[Tensor, Tensor]:
        """``W^c_δ + [δ = 0] M(x) W^q``, the same at every pixel of an image."""
        scale, convolution, attention = self.kernel_scale(), self.convolution, self.attention
        query, key, value = (kernel_of(conv) for conv in (attention.query, attention.key, attention.value))
        query_at(x, query.weight, query.bias, convolution, position)  # refuses a position outside of the output
        keys, values = (
            _by_head(part.geometry.convolve(x, part.weight, part.bias, convolution.groups), attention.heads)
            for part in (key, value)
        )
        mixing = values @ keys.transpose(-1, -2) / keys.shape[-1] * scale.reshape(attention.heads, -1, 1)
        centre = (mixing @ query.weight.flatten(1).unflatten(0, (attention.heads, -1))).flatten(1, 2)
        bias = (mixing @ query.bias.unflatten(0, (attention.heads, -1)).unsqueeze(-1)).flatten(1)
        kernel = convolution.weight.repeat(len(x), *(1,) * convolution.weight.dim())
        pixel: Any = (..., *centre_of(convolution.geometry.kernel_size))
        kernel[pixel] += centre
        return kernel, convolution.bias + bias


class MixedConv(ContentConv):
    """Layout ``single``: the kernel of each image is ``W^c + M(x) W^q`` at the centre."""

    def kernels(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """In fp32 for features in fp16, since ``M(x)`` grows with their square."""
        conv, attention, geometry = self.conv, self.attention, self.geometry
        mixing, query = attention.mixing_matrix(x), attention.query
        dtype = torch.promote_types(mixing.dtype, x.dtype)
        query_weight = query.weight.flatten(1).unflatten(0, (attention.heads, -1)).to(dtype)
        query_bias = query.bias.unflatten(0, (attention.heads, -1)).unsqueeze(-1).to(dtype)
        with without_autocast(x.device):
            mixed, bias = (mixing.to(dtype) @ part for part in (query_weight, query_bias))
        centre = geometry.embed(as_kernel(mixed.flatten(1, 2), geometry.dims), geometry.centre())
        return conv.weight.to(dtype) + centre, conv.bias.to(dtype) + bias.flatten(1)
