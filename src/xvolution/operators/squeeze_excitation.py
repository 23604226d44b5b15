"""Squeeze-and-excitation after a convolution: the most common channel attention."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from xvolution.conversion.register import register
from xvolution.geometry import spatial
from xvolution.operators.around_convolution import WithBottleneck2d, hidden_channels


@register(
    "se",
    "A convolution with a weight for each output channel, computed from the means over the image: squeeze-and-excitation.",
    "Hu, Shen, Sun: Squeeze-and-Excitation Networks, CVPR 2018, arXiv 1709.01507",
)
class SqueezeExcitation2d(WithBottleneck2d):
    """``y = z ⊙ sigmoid(W² relu(W¹ mean(z) + b¹) + b²)`` with ``z = conv(x)``.

    In the place of a convolution of a network it keeps the convolution with its weights, and the norm that follows, which then is
    a part of ``z``. So the norm still folds into the convolution.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, device, dtype: those of
            ``nn.Conv2d``; ``W¹`` and ``W²`` are not grouped.
        reduction: number of output channels for each hidden channel between W¹ and W²; there are at least 8 hidden
            channels.

    Shape:
        (N, C_in, H, W) -> (N, C_out, H', W').

    Raises:
        ValueError: ``reduction`` below 1.
    """

    def _add(self, conv: nn.Conv2d, factory: dict[str, Any], reduction: int = 16) -> None:
        channels, hidden = conv.out_channels, hidden_channels(conv.out_channels, reduction)
        self.excitation = nn.Sequential(
            nn.Conv2d(channels, hidden, 1, **factory),
            nn.ReLU(),
            nn.Conv2d(hidden, channels, 1, **factory),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, C_in, H, W) -> (N, C_out, H', W')."""
        z = self.convolved(x)
        return z * torch.sigmoid(self.excitation(z.mean(spatial(z), keepdim=True)))
