"""Exact global self-attention: the accuracy reference that pixel shift attention approximates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from xvolution.nn.geometry import Geometry, conv_over
from xvolution.nn.pixel_shift import attention_channels, check_heads
from xvolution.nn.precision import narrow, widen, without_autocast

#: What the temperature of normalized queries and keys starts with: cosines of 1 and 0 then differ by it in the logits.
TEMPERATURE = 10.0


class GlobalAttention(nn.Module):
    """Multi-head softmax attention over all H' * W' positions: the branch of the paper's X-volution(SA).

    Maps (N, C_in, H, W) to (N, C_out, H', W'), in O((H' W')²) time. Query, key and value are 1x1 convolutions of the pixels
    at the centres of the convolution's windows.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, padding_mode: the geometry of the
            convolution beside it; it places the H' * W' positions.
        attention_ratio: query and key channels A as a fraction of the output channels.
        heads: heads in each group.
        query_key_norm: logits are cosines of query and key times a temperature that each head learns, so that they stay bounded
            (Liu et al., Swin Transformer V2, arXiv 2111.09883, section 3.2); else products over the root of the channels.
        device, dtype: of the parameters.

    Raises:
        ValueError: heads that do not divide the channels, or a ratio that is not positive.

    Source: X-volution, equation 1 and section 4 (the SA branch).
    """

    dims: ClassVar[int]

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int] = 1,
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] | str = 0,
        dilation: int | Sequence[int] = 1,
        groups: int = 1,
        padding_mode: str = "zeros",
        *,
        attention_ratio: float = 0.25,
        heads: int = 1,
        query_key_norm: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_heads(heads, out_channels, groups)
        channels = attention_channels(out_channels, attention_ratio, groups, heads)
        centre = Geometry.create(kernel_size, stride, padding, dilation, padding_mode, self.dims).centre()
        options: dict[str, Any] = {"groups": groups, "device": device, "dtype": dtype}
        self.groups, self.heads = groups, heads
        self.query = conv_over(centre, in_channels, channels, **options)
        self.key = conv_over(centre, in_channels, channels, **options)
        self.value = conv_over(centre, in_channels, out_channels, **options)
        self.temperature = None
        if query_key_norm:
            self.temperature = nn.Parameter(torch.full((groups * heads,), TEMPERATURE, device=device, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        """(N, C_in, H, W) -> (N, C_out, H', W')."""
        source = self.query(x)
        tokens = [
            maps.flatten(2).unflatten(1, (self.groups * self.heads, -1)).transpose(-1, -2)
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

    def extra_repr(self) -> str:
        return f"heads={self.heads}, groups={self.groups}, query_key_norm={self.temperature is not None}"


class GlobalAttention1d(GlobalAttention):
    """``GlobalAttention`` of signals: (N, C_in, L) -> (N, C_out, L')."""

    dims = 1


class GlobalAttention2d(GlobalAttention):
    """``GlobalAttention`` of images: (N, C_in, H, W) -> (N, C_out, H', W')."""

    dims = 2


class GlobalAttention3d(GlobalAttention):
    """``GlobalAttention`` of videos and volumes: (N, C_in, D, H, W) -> (N, C_out, D', H', W')."""

    dims = 3
