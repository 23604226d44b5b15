"""Exact global self-attention in the place of a convolution."""

from __future__ import annotations

from collections.abc import Sequence
from math import gcd
from typing import Any

from xvolution.attention import Global, GlobalAttention
from xvolution.conversion.register import register
from xvolution.geometry import ConvSite
from xvolution.operators.local_attention import geometry_of


@register(
    "global-attention",
    "Exact multi-head self-attention over all pixels.",
    "Vaswani, Shazeer, Parmar, Uszkoreit, Jones, Gomez, Kaiser, Polosukhin: Attention Is All You Need, NeurIPS 2017, "
    "arXiv 1706.03762, equation 1; over the pixels of a feature map as in X-volution (arXiv 2106.02253), equation 1",
    pixels="n²",
)
def global_attention(
    in_channels: int,
    out_channels: int,
    kernel_size: int | Sequence[int],
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] | str = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    bias: bool = True,
    padding_mode: str = "zeros",
    device: Any = None,
    dtype: Any = None,
    *,
    attention_ratio: float = 1.0,
    num_heads: int | None = None,
    qk_norm: bool = False,
) -> GlobalAttention:
    """The branch of ``Global`` on the centres of the convolution's windows, with softmax and without positions.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, padding_mode, device, dtype: those of
            ``nn.Conv2d``; they place the pixels that attend to each other.
        bias: whether the value has a bias; it is the bias of the output, because the weights of a softmax sum to one.
        attention_ratio: query and key channels as a fraction of the output channels.
        num_heads: number of heads in each group; by default 8, or its largest divisor that divides the output channels.
        qk_norm: use cosine similarity of query and key, times a learned temperature, as logits.

    Returns:
        A module of (N, C_in, H, W) -> (N, C_out, H', W').

    Raises:
        ValueError: heads that do not divide the channels, or a ratio that is not positive.
    """
    geometry = geometry_of(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, padding_mode)
    heads = gcd(8, out_channels // groups) if num_heads is None else num_heads
    site = ConvSite(in_channels, out_channels, geometry, groups, device, dtype)
    attention = Global(attention_ratio, heads, qk_norm).build(site)
    if not bias:
        attention.value.register_parameter("bias", None)
    return attention
