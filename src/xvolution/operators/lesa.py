"""LESA: global self-attention whose local part is a convolution, the two coupled by a learned gate."""

from __future__ import annotations

from collections.abc import Sequence
from math import gcd
from typing import Any

import torch
from torch import Tensor, nn

from xvolution.conversion.register import register
from xvolution.convolutions import conv_over
from xvolution.geometry import Geometry
from xvolution.operators.local_attention import check_ungrouped, geometry_of


@register(
    "lesa",
    "Global self-attention whose local (unary) term is a convolution, coupled to the context (binary) term by a gate.",
    "Yang, Qiao, Kortylewski, Yuille: Locally Enhanced Self-Attention: Combining Self-Attention and Convolution as Local and "
    "Context Terms, arXiv 2107.05637, 2021",
    pixels="n²",
)
class LESA2d(nn.Module):
    """The paper's local and context terms, and the dynamic fusion of the two::

        u = norm( W^u conv(x) )                                               unary: a convolution in groups and a 1x1
        b_i = norm( Σ_j softmax_j( norm(<q_i, k_j>) + norm(<q_i, r_(j-i)>) ) v_j )      binary: attention to all pixels
        y = u + g ⊙ b,     g = sigmoid( norm W^2 relu( norm W^1 relu([u ; b]) ) )

    with ``q, k, v = norm(W x)`` and ``r`` the sum of a row and a column embedding. The layout is that of the authors' code with
    its ``detection`` positions, which know rows and columns; those of its classification models are tied to one image size.
    As there, the sum runs over all pixels, the pixel itself included, and a stride averages the outputs of stride 1.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, padding_mode, device, dtype: those of ``nn.Conv2d``,
            of the convolution of the unary term; the attention is over the centres of its windows.
        groups: must be 1; the convolution has ``num_heads`` groups.
        bias: has no effect, since both terms end in a norm, which has one.
        num_heads: number of attention heads and of groups of the convolution; by default 8, the authors' number, or its
            largest divisor that divides the input channels and half of the output channels.
        map_size: side length in pixels of the maps for which positions are learned, 14 in the authors' models; positions
            are interpolated for other sizes. None uses no positions.

    Shape:
        (N, C_in, H, W) -> (N, C_out, H', W').

    Raises:
        ValueError: groups other than 1, heads that do not divide the channels, odd output channels, ``map_size`` below 1.
    """

    def __init__(
        self,
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
        num_heads: int | None = None,
        map_size: int | None = 14,
    ) -> None:
        super().__init__()
        geometry = geometry_of(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, padding_mode)
        check_ungrouped(groups, "lesa")
        heads = _checked_heads(num_heads, in_channels, out_channels)
        if map_size is not None and map_size < 1:
            raise ValueError(f"map_size is {map_size}; it must be positive, or None to leave positions out")
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        dense = _unstrided(geometry)
        self.heads, self.stride = heads, geometry.stride
        self.unary = nn.Sequential(
            conv_over(dense, in_channels, out_channels, groups=heads, bias=False, **factory),
            nn.Conv2d(out_channels, out_channels, 1, bias=False, **factory) if heads > 1 else nn.Identity(),
            nn.BatchNorm2d(out_channels, **factory),
        )
        self.binary = ContextAttention2d(dense.centre(), in_channels, out_channels, heads, map_size, factory)
        self.fusion = nn.Sequential(
            nn.ReLU(),
            nn.Conv2d(2 * out_channels, out_channels, 1, bias=False, **factory),
            nn.BatchNorm2d(out_channels, **factory),
            nn.ReLU(),
            nn.Conv2d(out_channels, out_channels, 1, bias=False, **factory),
            nn.BatchNorm2d(out_channels, **factory),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, C_in, H, W) -> (N, C_out, H', W')."""
        unary, binary = self.unary(x), self.binary(x)
        y = unary + self.fusion(torch.cat([unary, binary], 1)) * binary
        return nn.functional.avg_pool2d(y, self.stride, ceil_mode=True) if max(self.stride) > 1 else y

    def extra_repr(self) -> str:
        return f"heads={self.heads}, stride={self.stride}"


class ContextAttention2d(nn.Module):
    """The binary term: softmax attention over the pixels of ``centre``, each kind of score with a norm of its own.

    Maps (N, C_in, H, W) to (N, C_out, H', W').
    """

    def __init__(
        self,
        centre: Geometry,
        in_channels: int,
        out_channels: int,
        heads: int,
        map_size: int | None,
        factory: dict[str, Any],
    ) -> None:
        super().__init__()
        channels = out_channels // heads
        self.heads, self.split = heads, [channels // 2, channels // 2, channels]
        self.project = conv_over(centre, in_channels, 2 * out_channels, bias=False, **factory)
        self.project_norm = nn.BatchNorm2d(2 * out_channels, **factory)
        self.content_norm = nn.BatchNorm2d(heads, **factory)
        self.norm = nn.BatchNorm2d(out_channels, **factory)
        self.row_embedding: nn.Parameter | None = None
        self.column_embedding: nn.Parameter | None = None
        nn.init.normal_(self.project.weight, std=in_channels**-0.5)
        if map_size is not None:
            scale = (channels // 2) ** -0.5
            self.row_embedding = nn.Parameter(scale * torch.randn(channels // 2, 2 * map_size - 1, **factory))
            self.column_embedding = nn.Parameter(scale * torch.randn(channels // 2, 2 * map_size - 1, **factory))
            self.position_norm = nn.BatchNorm2d(heads, **factory)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C_in, H, W) -> (N, C_out, H', W')."""
        maps = self.project_norm(self.project(x))
        query, key, value = maps.unflatten(1, (self.heads, -1)).split(self.split, dim=2)
        scores = self.content_norm(query.flatten(3).transpose(-1, -2) @ key.flatten(3))
        if self.row_embedding is not None and self.column_embedding is not None:
            scores = scores + self.position_norm(_position_scores(query, self.row_embedding, self.column_embedding))
        attended = value.flatten(3) @ scores.softmax(-1).to(value.dtype).transpose(-1, -2)
        return self.norm(attended.flatten(1, 2).unflatten(2, maps.shape[2:]))


def _position_scores(query: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """``<q_i, r_(j-i)>``: (N, heads, d, H, W) and two embeddings (d, 2 size - 1) -> (N, heads, H W, H W)."""
    height, width = query.shape[3:]
    by_row = torch.einsum("nhdyx,dyj->nhyxj", query, _relative(rows, height))
    by_column = torch.einsum("nhdyx,dxj->nhyxj", query, _relative(columns, width))
    return (by_row.unsqueeze(-1) + by_column.unsqueeze(-2)).flatten(4).flatten(2, 3)


def _relative(embedding: Tensor, size: int) -> Tensor:
    """(d, 2 m - 1) -> (d, size, size): at [:, i, j] the embedding of the offset j - i, interpolated where size is not m."""
    offsets = 2 * size - 1
    if embedding.shape[1] != offsets:
        embedding = nn.functional.interpolate(embedding[None], size=offsets, mode="linear", align_corners=True)[0]
    positions = torch.arange(size, device=embedding.device)
    return embedding[:, positions - positions.unsqueeze(1) + size - 1]


def _unstrided(geometry: Geometry) -> Geometry:
    """The same window at every pixel."""
    if geometry.same_spans is not None:
        return Geometry.create(geometry.kernel_size, 1, "same", geometry.dilation, geometry.padding_mode)
    return Geometry(geometry.kernel_size, (1, 1), geometry.padding, geometry.dilation, geometry.padding_mode)


def _checked_heads(heads: int | None, in_channels: int, out_channels: int) -> int:
    if out_channels % 2:
        raise ValueError(f"out_channels is {out_channels}; it must be even, because queries have half as many channels")
    most = gcd(in_channels, out_channels // 2)
    heads = gcd(8, most) if heads is None else heads
    if heads < 1 or most % heads:
        raise ValueError(
            f"num_heads is {heads}; it must be positive and divide the {in_channels} input channels and half of the "
            f"{out_channels} output channels, that is, divide {most}"
        )
    return heads
