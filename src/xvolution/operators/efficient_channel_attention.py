"""Efficient channel attention (ECA) behind a convolution: the weight of a channel from the means of its neighbours."""

from __future__ import annotations

from collections.abc import Sequence
from math import log2
from typing import Any

import torch
from torch import Tensor, nn

from xvolution.conversion.register import register
from xvolution.geometry import spatial
from xvolution.operators.around_convolution import AroundConvolution2d


@register(
    "eca",
    "A convolution with a weight for each output channel, computed from the means of neighbouring channels: ECA.",
    "Wang, Wu, Zhu, Li, Zuo, Hu: ECA-Net: Efficient Channel Attention for Deep Convolutional Neural Networks, CVPR 2020, "
    "arXiv 1910.03151",
)
class EfficientChannelAttention2d(AroundConvolution2d):
    """``y_c = z_c sigmoid(Σ_i w_i mean(z_{c+i}))`` with ``z = conv(x)``: one window of weights for all channels, without bias.

    In the place of a convolution of a network it keeps the convolution with its weights, and the norm that follows, which then is
    a part of ``z``.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, device, dtype: those of
            ``nn.Conv2d``.
        window: number of neighbouring channels from which a weight is computed, an odd number; by default the paper's
            choice, ⌊(log2(C) + 1) / 2⌋ rounded up to an odd number.

    Shape:
        (N, C_in, H, W) -> (N, C_out, H', W').

    Raises:
        ValueError: a window that is not odd.
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
        window: int | None = None,
    ) -> None:
        super().__init__()
        geometry: tuple[Any, ...] = (kernel_size, stride, padding, dilation, groups, bias, padding_mode, device, dtype)
        self._assemble(nn.Conv2d(in_channels, out_channels, *geometry), nn.Identity(), window=window)

    def _add(self, conv: nn.Conv2d, factory: dict[str, Any], window: int | None = None) -> None:
        if window is None:
            half = int((log2(conv.out_channels) + 1) / 2)
            window = half if half % 2 else half + 1
        if window < 1 or window % 2 == 0:
            raise ValueError(f"window is {window}; it must be a positive odd integer")
        self.attention = nn.Conv1d(1, 1, window, padding=window // 2, bias=False, **factory)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C_in, H, W) -> (N, C_out, H', W')."""
        z = self.convolved(x)
        weights = torch.sigmoid(self.attention(z.mean(spatial(z)).unsqueeze(1)))
        return z * weights.squeeze(1)[:, :, None, None]
