"""Stand-alone self-attention (SASA): softmax attention over the window of a convolution, and the windows' arithmetic."""

from __future__ import annotations

from collections.abc import Sequence
from math import gcd
from typing import Any

import torch
from torch import Tensor, nn

from xvolution.attention.base import check_heads
from xvolution.conversion.register import register
from xvolution.convolutions import conv_over
from xvolution.geometry import Geometry


def geometry_of(
    in_channels: int,
    out_channels: int,
    kernel_size: int | Sequence[int],
    stride: int | Sequence[int],
    padding: Any,
    dilation: int | Sequence[int],
    groups: int,
    padding_mode: str,
) -> Geometry:
    """The window of the ``nn.Conv2d`` of these arguments, with the errors of its constructor; ``"same_upper"`` is allowed."""
    checked = 0 if padding == "same_upper" else padding
    window: tuple[Any, ...] = (kernel_size, stride, checked, dilation, groups, False, padding_mode)
    with torch.device("meta"):
        nn.Conv2d(in_channels, out_channels, *window)
    return Geometry.create(kernel_size, stride, padding, dilation, padding_mode)


def check_ungrouped(groups: int, operator: str) -> None:
    """Raise for an operator that has no form with the groups of a convolution."""
    if groups != 1:
        raise ValueError(
            f"groups is {groups}; {operator} can replace only convolutions with groups=1; leave grouped "
            "convolutions out"
        )


def taps_of(x: Tensor, geometry: Geometry) -> list[Tensor]:
    """The pixels of every window: T views of (N, C, H', W') for a map (N, C, H, W), which is padded first."""
    return geometry.taps(geometry.pad(x))


def window_scores(query: Tensor, taps: Sequence[Tensor], heads: int) -> Tensor:
    """Products of a query with the keys of its window.

    One tap at a time: unfolding would write T copies of the map. Half precision is widened to fp32.

    Args:
        query: (N, C, H', W').
        taps: T keys of (N, C, H', W').
        heads: number of heads; divides C.

    Returns:
        (N, heads, T, H', W').
    """
    wide = query.to(torch.promote_types(query.dtype, torch.float32)).unflatten(1, (heads, -1))
    return torch.stack([(wide * tap.unflatten(1, (heads, -1))).sum(2) for tap in taps], dim=2)


def weighted_sum(weights: Tensor, taps: Sequence[Tensor]) -> Tensor:
    """Sum of the pixels of a window with one weight for each group of channels, summed in fp32 or wider.

    Args:
        weights: (N, groups, T, H', W').
        taps: T maps of (N, C, H', W'); the groups divide C.

    Returns:
        (N, C, H', W') in the dtype of the taps.
    """
    groups, dtype = weights.shape[1], taps[0].dtype
    by_tap = weights.to(torch.promote_types(dtype, torch.float32)).unsqueeze(2).unbind(3)
    first, *others = (weight * tap.unflatten(1, (groups, -1)) for weight, tap in zip(by_tap, taps, strict=True))
    for other in others:
        first = first + other
    return first.flatten(1, 2).to(dtype)


@register(
    "sasa",
    "Stand-alone self-attention: softmax attention over the window of the convolution, with relative positions.",
    "Ramachandran, Parmar, Vaswani, Bello, Levskaya, Shlens: Stand-Alone Self-Attention in Vision Models, NeurIPS 2019, "
    "arXiv 1906.05909",
)
class LocalAttention2d(nn.Module):
    """Multi-head attention of each pixel to the window around it (equations 2 and 3 of the paper)::

        y_0 = Σ_δ softmax_δ( <q_0, k_δ> + <q_0, r_δ> ) v_δ,      r_δ = [ row_δ ; column_δ ]

    in each head, with ``q = W^q x``, ``k = W^k x``, ``v = W^v x``. The first half of a head's channels carries the embedding
    of the row offset, the second that of the column offset. As in the paper, there is no 1/√d before the softmax.

    With a stride, the queries are the centres of the windows of the strided convolution. (The paper attends at every pixel
    and averages 2 x 2 outputs afterwards, at four times the work.) The padding is that of the convolution: zeros are pixels
    like others and take part in the softmax.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, device, dtype: those of
            ``nn.Conv2d``; the paper's window is 7. ``groups`` are groups of the projections.
        num_heads: number of heads in each group; by default 8, the paper's number, or its largest divisor that leaves
            every head an even number of channels.

    Shape:
        (N, C_in, H, W) -> (N, C_out, H', W').

    Raises:
        ValueError: heads that do not divide the channels into even numbers.
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
    ) -> None:
        super().__init__()
        window = (kernel_size, stride, padding, dilation, groups, padding_mode)
        self.window = geometry_of(in_channels, out_channels, *window)
        group_channels = out_channels // groups
        if group_channels % 2:
            raise ValueError(
                f"each of the {groups} groups has {group_channels} output channels; sasa needs an even number, half of "
                "them for the rows and half for the columns"
            )
        heads = gcd(8, group_channels // 2) if num_heads is None else num_heads
        check_heads(heads, out_channels, groups)
        if group_channels // heads % 2:
            raise ValueError(
                f"num_heads is {heads}, which leaves {group_channels // heads} channels to each; sasa needs an even number, half "
                f"of them for the rows and half for the columns: num_heads must divide {group_channels // 2}"
            )
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        options: dict[str, Any] = {"groups": groups, "bias": False, **factory}
        self.heads = heads * groups
        self.query = conv_over(self.window.centre(), in_channels, out_channels, **options)
        self.key = nn.Conv2d(in_channels, out_channels, 1, **options)
        self.value = nn.Conv2d(in_channels, out_channels, 1, **options)
        half = out_channels // self.heads // 2
        rows, columns = self.window.kernel_size
        self.row_embedding = nn.Parameter(torch.empty(self.heads, half, rows, **factory))
        self.column_embedding = nn.Parameter(torch.empty(self.heads, half, columns, **factory))
        self.bias = nn.Parameter(torch.zeros(out_channels, **factory)) if bias else None
        for embedding in (self.row_embedding, self.column_embedding):
            nn.init.normal_(embedding, std=(2 * half) ** -0.5)

    def weights(self, x: Tensor) -> Tensor:
        """(N, C_in, H, W) -> (N, groups * heads, T, H', W'): positive, and one in sum over the window."""
        query = self.query(x)
        scores = window_scores(query, taps_of(self.key(x), self.window), self.heads)
        return (scores + self._position_scores(query)).softmax(2)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C_in, H, W) -> (N, C_out, H', W')."""
        y = weighted_sum(self.weights(x), taps_of(self.value(x), self.window))
        return y if self.bias is None else y + self.bias.to(y.dtype).reshape(-1, 1, 1)

    def _position_scores(self, query: Tensor) -> Tensor:
        """``<q_0, r_δ>``: (N, C_out, H', W') -> (N, heads, T, H', W')."""
        row_half, column_half = query.unflatten(1, (self.heads, -1)).chunk(2, dim=2)
        rows = torch.einsum("nhcyx,hcr->nhryx", row_half, self.row_embedding)
        columns = torch.einsum("nhcyx,hcs->nhsyx", column_half, self.column_embedding)
        return (rows.unsqueeze(3) + columns.unsqueeze(2)).flatten(2, 3)

    def extra_repr(self) -> str:
        return f"kernel_size={self.window.kernel_size}, stride={self.window.stride}, heads={self.heads}"
