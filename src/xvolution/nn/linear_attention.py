"""Exact softmax-free attention over all pixels, in O(H W), by associativity."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from xvolution.nn.geometry import Geometry, conv_over, pointwise
from xvolution.nn.pixel_shift import attention_channels, check_heads
from xvolution.nn.precision import narrow, widen, without_autocast


class LinearAttention(nn.Module):
    """Maps (N, C_in, H, W) to (N, C_out, H', W')::

        a_0 = (1/n) Σ_t v_t <q_0, k_t>_h  =  M_h(x) q_0^{(h)},      M_h(x) = (1/n) Σ_t v_t^{(h)} k_t^{(h)T}

    ``M(x)`` is one small matrix for each image and head, so the branch is a 1x1 convolution with a content-dependent kernel
    on the centre pixels of the window.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, padding_mode: the geometry of the
            convolution beside it; it places the queries. Keys and values are read at every pixel of the input.
        attention_ratio: attention channels A as a fraction of the output channels.
        heads: heads in each group.
        device, dtype: of the parameters.

    Raises:
        ValueError: heads that do not divide the channels, or a ratio that is not positive.

    Source: X-volution, equation 3, summed over all of Ω.
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
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_heads(heads, out_channels, groups)
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        channels = attention_channels(out_channels, attention_ratio, groups, heads)
        geometry = Geometry.create(kernel_size, stride, padding, dilation, padding_mode, self.dims)
        self.groups, self.heads = groups, heads
        self.query = conv_over(geometry.centre(), in_channels, channels, groups=groups, **factory)
        self.key = pointwise(self.dims, in_channels, channels, groups=groups, **factory)
        self.value = pointwise(self.dims, in_channels, out_channels, groups=groups, **factory)

    def mixing_matrix(self, x: Tensor) -> Tensor:
        """``M(x)``: (N, C_in, H, W) -> (N, groups * heads, C_out / (groups * heads), A / (groups * heads))."""
        key, value = (_by_head(maps, self.groups * self.heads) for maps in widen(self.key(x), self.value(x)))
        with without_autocast(x.device):
            return value @ key.transpose(-1, -2) / key.shape[-1]

    def forward(self, x: Tensor) -> Tensor:
        """(N, C_in, H, W) -> (N, C_out, H', W')."""
        query = self.query(x)
        (wide,) = widen(query)
        mixing = self.mixing_matrix(x)
        with without_autocast(x.device):
            attended = mixing @ _by_head(wide, self.groups * self.heads)
        attended = attended.flatten(1, 2).unflatten(2, query.shape[2:])
        return attended if attended.dtype == query.dtype else narrow(attended, self.value.weight.dtype)

    def extra_repr(self) -> str:
        return f"heads={self.heads}, groups={self.groups}"


class LinearAttention1d(LinearAttention):
    """``LinearAttention`` of signals: (N, C_in, L) -> (N, C_out, L')."""

    dims = 1


class LinearAttention2d(LinearAttention):
    """``LinearAttention`` of images: (N, C_in, H, W) -> (N, C_out, H', W')."""

    dims = 2


class LinearAttention3d(LinearAttention):
    """``LinearAttention`` of videos and volumes: (N, C_in, D, H, W) -> (N, C_out, D', H', W')."""

    dims = 3


def _by_head(maps: Tensor, heads: int) -> Tensor:
    """(N, C, H, W) -> (N, heads, C / heads, H W)."""
    return maps.flatten(2).unflatten(1, (heads, -1))
