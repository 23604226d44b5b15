"""Squeeze-and-excitation behind a convolution: the attention to channels that most people would take instead."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from xvolution.conversion.register import register
from xvolution.convolutions import geometry_of
from xvolution.geometry import spatial
from xvolution.memory_format import with_format_of

#: Fewest channels between the two layers, as timm has it.
_LEAST = 8


@register(
    "se",
    "A convolution whose output channels are weighted by the mean of each over the image: squeeze-and-excitation.",
    "Hu, Shen, Sun: Squeeze-and-Excitation Networks, CVPR 2018, arXiv 1709.01507",
)
class SqueezeExcitation2d(nn.Module):
    """``y = z ⊙ sigmoid(W² relu(W¹ mean(z) + b¹) + b²)`` with ``z = conv(x)``.

    In the place of a convolution of a network it keeps the convolution with its weights, and the norm that follows, which then is
    a part of ``z``. So the norm still folds into the convolution.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, device, dtype: those of
            ``nn.Conv2d``; ``W¹`` and ``W²`` are not grouped.
        reduction: output channels for each channel between ``W¹`` and ``W²``, of which there are at least 8.

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
    ) -> None:
        super().__init__()
        geometry: tuple[Any, ...] = (kernel_size, stride, padding, dilation, groups, bias, padding_mode, device, dtype)
        self._assemble(nn.Conv2d(in_channels, out_channels, *geometry), nn.Identity(), reduction)

    @classmethod
    def from_conv(cls, conv: Any, conv_norm: nn.Module | None = None, *, reduction: int = 16) -> SqueezeExcitation2d:
        """Squeeze-and-excitation behind an existing convolution and the norm that follows it; both are kept, not copied.

        Args:
            conv: the convolution; its device, dtype, memory format and mode become the operator's.
            conv_norm: the norm between convolution and squeeze; none when None. It keeps its mode: a frozen norm stays frozen.
            reduction: that of the class.

        Raises:
            ValueError: a convolution of another number of dimensions, one that computes no plain convolution, or ``reduction``
                below 1.
        """
        if not isinstance(conv, nn.Conv2d):
            raise ValueError(f"{cls.__name__} goes in the place of an nn.Conv2d, not of {type(conv).__name__}")
        geometry_of(conv)
        operator = cls.__new__(cls)
        nn.Module.__init__(operator)
        operator._assemble(conv, nn.Identity() if conv_norm is None else conv_norm, reduction)
        operator.training = conv.training
        with_format_of(conv.weight, operator.excitation).train(conv.training)
        return operator

    def _assemble(self, conv: nn.Conv2d, conv_norm: nn.Module, reduction: int) -> None:
        if reduction < 1:
            raise ValueError(f"reduction is {reduction}; it must be a positive integer")
        channels, hidden = conv.out_channels, max(conv.out_channels // reduction, _LEAST)
        factory: dict[str, Any] = {"device": conv.weight.device, "dtype": conv.weight.dtype}
        self.conv, self.conv_norm = conv, conv_norm
        self.excitation = nn.Sequential(
            nn.Conv2d(channels, hidden, 1, **factory),
            nn.ReLU(),
            nn.Conv2d(hidden, channels, 1, **factory),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, C_in, H, W) -> (N, C_out, H', W')."""
        z = self.conv_norm(self.conv(x))
        return z * torch.sigmoid(self.excitation(z.mean(spatial(z), keepdim=True)))
