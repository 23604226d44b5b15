"""Coordinate attention (CA) behind a convolution: weights from the means of each row and of each column."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from xvolution.conversion.register import register
from xvolution.operators.around_convolution import AroundConvolution2d, hidden_channels


@register(
    "ca",
    "A convolution whose outputs are weighted by the means of their row and their column: coordinate attention.",
    "Hou, Zhou, Feng: Coordinate Attention for Efficient Mobile Network Design, CVPR 2021, arXiv 2103.02907",
)
class CoordinateAttention2d(AroundConvolution2d):
    """``y_ij = z_ij ⊙ sigmoid(W^r r_i + b^r) ⊙ sigmoid(W^c c_j + b^c)`` with ``z = conv(x)``.

    ``r`` and ``c`` are ``h_swish(norm(W¹ m + b¹))`` of the means of z over each row and over each column; a batch norm takes
    the statistics of both together. In the place of a convolution of a network it keeps the convolution with its weights, and
    the norm that follows, which then is a part of ``z``.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, device, dtype: those of
            ``nn.Conv2d``; the three layers are not grouped.
        reduction: number of output channels for each hidden channel after W¹; there are at least 8 hidden channels.

    Shape:
        (N, C_in, H, W) -> (N, C_out, H', W').

    Raises:
        ValueError: ``reduction`` below 1.
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
        reduction: int = 32,
    ) -> None:
        super().__init__()
        geometry: tuple[Any, ...] = (kernel_size, stride, padding, dilation, groups, bias, padding_mode, device, dtype)
        self._assemble(nn.Conv2d(in_channels, out_channels, *geometry), nn.Identity(), reduction=reduction)

    def _add(self, conv: nn.Conv2d, factory: dict[str, Any], reduction: int = 32) -> None:
        channels, hidden = conv.out_channels, hidden_channels(conv.out_channels, reduction)
        self.squeeze = nn.Conv2d(channels, hidden, 1, **factory)
        self.squeeze_norm = nn.BatchNorm2d(hidden, **factory)
        self.activation = nn.Hardswish()
        self.rows = nn.Conv2d(hidden, channels, 1, **factory)
        self.columns = nn.Conv2d(hidden, channels, 1, **factory)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C_in, H, W) -> (N, C_out, H', W')."""
        z = self.convolved(x)
        means = torch.cat([z.mean(3, keepdim=True), z.mean(2, keepdim=True).transpose(2, 3)], 2)
        rows, columns = self.activation(self.squeeze_norm(self.squeeze(means))).split(list(z.shape[2:]), 2)
        return z * torch.sigmoid(self.rows(rows)) * torch.sigmoid(self.columns(columns.transpose(2, 3)))
