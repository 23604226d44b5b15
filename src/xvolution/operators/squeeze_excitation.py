"""Squeeze-and-excitation after a convolution: the most common channel attention."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from xvolution.conversion.register import register
from xvolution.geometry import spatial
from xvolution.operators.around_convolution import AroundConvolution2d, hidden_channels


@register(
    "se",
    "A convolution with a weight for each output channel, computed from the means over the image: squeeze-and-excitation.",
    "Hu, Shen, Sun: Squeeze-and-Excitation Networks, CVPR 2018, arXiv 1709.01507",
)
class SqueezeExcitation2d(AroundConvolution2d):
    """``y = s z ⊙ sigmoid(W² relu(W¹ mean(z) + b¹) + b²)`` with ``z = conv(x)``; s is 1, or 2 with ``zero_init``.

    In the place of a convolution of a network it keeps the convolution with its weights, and the norm that follows, which then is
    a part of ``z``. So the norm still folds into the convolution.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, device, dtype: those of
            ``nn.Conv2d``; ``W¹`` and ``W²`` are not grouped.
        reduction: number of output channels for each hidden channel between W¹ and W²; there are at least 8 hidden
            channels.
        zero_init: ``W²`` and ``b²`` start at zero and s is 2, so that the operator starts as its convolution. For networks
            with pretrained weights, whose features a weight of about one half would change. Not in the paper.

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
        reduction: int = 16,
        zero_init: bool = False,
    ) -> None:
        super().__init__()
        geometry: tuple[Any, ...] = (kernel_size, stride, padding, dilation, groups, bias, padding_mode, device, dtype)
        conv = nn.Conv2d(in_channels, out_channels, *geometry)
        self._assemble(conv, nn.Identity(), reduction=reduction, zero_init=zero_init)

    def _add(self, conv: nn.Conv2d, factory: dict[str, Any], reduction: int = 16, zero_init: bool = False) -> None:
        channels, hidden = conv.out_channels, hidden_channels(conv.out_channels, reduction)
        self.excitation = nn.Sequential(
            nn.Conv2d(channels, hidden, 1, **factory),
            nn.ReLU(),
            nn.Conv2d(hidden, channels, 1, **factory),
        )
        self.scale = 1.0
        if zero_init:
            self.scale = 2.0
            for parameter in self.excitation[2].parameters():
                nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C_in, H, W) -> (N, C_out, H', W')."""
        z = self.convolved(x)
        weights = torch.sigmoid(self.excitation(z.mean(spatial(z), keepdim=True)))
        return z * (weights if self.scale == 1 else self.scale * weights)
