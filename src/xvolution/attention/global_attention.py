"""Exact global self-attention, the branch of the paper's X-volution(SA): what pixel shift attention approximates.

X-volution (arXiv 2106.02253, 2021), equation 1 and section 4; Vaswani et al., Attention Is All You Need, arXiv 1706.03762, 2017::

    a_0 = Σ_t softmax_t(<q_0, k_t>_h / √d) v_t^{(h)}
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from xvolution.attention.base import (
    AttentionBranch,
    AttentionConfig,
    attention_channels,
    check_heads,
    check_ratio,
    register,
)
from xvolution.attention.folded import Folded
from xvolution.convolutions import conv_over
from xvolution.folding import FoldedConvolution, NormLayer
from xvolution.geometry import ConvSite
from xvolution.numerics import narrow, widen, without_autocast

#: What the temperature of normalized queries and keys starts with: cosines of 1 and 0 then differ by it in the logits.
TEMPERATURE = 10.0


@register("global")
@dataclass(frozen=True)
class Global(AttentionConfig):
    """Exact multi-head softmax attention over all pixels. It does not merge; its cost grows with the square of the pixels.

    Attributes:
        attention_ratio: query and key channels as a fraction of the output channels, rounded up to a multiple of groups
            and heads.
        num_heads: number of heads in each group.
        qk_norm: use cosine similarity of query and key, times a learned temperature for each head, as logits, so that
            they stay bounded (Liu et al., Swin Transformer V2, arXiv 2111.09883, section 3.2). Otherwise logits are dot
            products divided by the square root of the channels.
    """

    attention_ratio: float = 0.25
    num_heads: int = 1
    qk_norm: bool = False

    def check(self) -> None:
        check_ratio(self.attention_ratio)

    def build(self, site: ConvSite, norm_layer: NormLayer | None = None) -> GlobalAttention:
        return GlobalAttention(self, site)


class GlobalAttention(AttentionBranch):
    """The branch of ``Global``: maps (N, C_in, H, W) to (N, C_out, H', W'), in O((H' W')²) time.

    Query, key and value are 1x1 convolutions of the pixels at the centres of the convolution's windows.
    """

    def __init__(self, config: Global, site: ConvSite) -> None:
        super().__init__(config, site)
        check_heads(config.num_heads, site.out_channels, site.groups)
        self.heads = site.groups * config.num_heads
        channels = attention_channels(site.out_channels, config.attention_ratio, site.groups, config.num_heads)
        centre, grouped = site.geometry.centre(), {"groups": site.groups, **site.factory}
        self.query = conv_over(centre, site.in_channels, channels, **grouped)
        self.key = conv_over(centre, site.in_channels, channels, **grouped)
        self.value = conv_over(centre, site.in_channels, site.out_channels, **grouped)
        self.temperature = None
        if config.qk_norm:
            self.temperature = nn.Parameter(torch.full((self.heads,), TEMPERATURE, **site.factory))

    def forward(self, x: Tensor) -> Tensor:
        """(N, C_in, H, W) -> (N, C_out, H', W')."""
        source = self.query(x)
        tokens = [
            maps.flatten(2).unflatten(1, (self.heads, -1)).transpose(-1, -2)
            for maps in widen(source, self.key(x), self.value(x))
        ]
        with without_autocast(x.device):
            attended = self._attend(*tokens)
        attended = attended.transpose(-1, -2).flatten(1, 2).unflatten(2, source.shape[2:])
        return attended if attended.dtype == source.dtype else narrow(attended, self.value.weight.dtype)

    def _attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Tokens (N, heads, H' W', A / heads), twice, and (N, heads, H' W', C_out / heads) -> the latter's shape."""
        if self.temperature is None:
            return F.scaled_dot_product_attention(query, key, value)
        query, key = F.normalize(query, dim=-1), F.normalize(key, dim=-1)
        query = query * self.temperature.to(query.dtype)[:, None, None]
        return F.scaled_dot_product_attention(query, key, value, scale=1.0)

    def fold(self, convolution: FoldedConvolution, norm: nn.Module) -> Folded:
        return self.fold_as_attention(convolution, norm)


def global_attention(
    query: Tensor, key: Tensor, value: Tensor, heads: int = 1, temperature: Tensor | None = None
) -> Tensor:
    """The reference of ``Global``, pair by pair: ``Σ_t softmax_t(<q_0, k_t>_h / √d) v_t``.

    Args:
        query, key: (N, A, H', W').
        value: (N, C, H', W').
        heads: number of heads; divides A and C.
        temperature: (heads,); with it the logits are cosines of query and key times it.

    Returns:
        (N, C, H', W').
    """
    queries, keys, values = (maps.flatten(2).unflatten(1, (heads, -1)) for maps in (query, key, value))
    logits = torch.einsum("nhap,nhat->nhpt", queries, keys)
    if temperature is None:
        logits = logits / sqrt(queries.shape[2])
    else:
        lengths = queries.square().sum(2).sqrt().unsqueeze(3) * keys.square().sum(2).sqrt().unsqueeze(2)
        logits = temperature.reshape(-1, 1, 1) * logits / lengths
    weights: Any = logits.exp() / logits.exp().sum(3, keepdim=True)
    return torch.einsum("nhpt,nhct->nhcp", weights, values).flatten(1, 2).unflatten(2, query.shape[2:])
