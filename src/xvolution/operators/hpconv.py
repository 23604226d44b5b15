"""Hierarchical pyramidal convolution: kernels of growing size, each of which also reads the smaller one's output."""

from __future__ import annotations

from collections.abc import Sequence
from math import gcd
from typing import Any

import torch
from torch import Tensor, nn

from xvolution.conversion.register import register

#: Groups of the levels, from the smallest kernel on, as in pyramidal convolution (Duta et al. 2020).
LEVEL_GROUPS = (1, 4, 8, 16)


def level_channels(out_channels: int, levels: int) -> tuple[int, ...]:
    """Output channels of each level: equal powers-of-two shares, and the rest for the last.

    Four levels take a quarter each, three take 1/4, 1/4 and 1/2, two a half each, as in pyramidal convolution.
    """
    share = out_channels // 2 ** (levels - 1).bit_length()
    return (share,) * (levels - 1) + (out_channels - share * (levels - 1),)


@register(
    "hpconv",
    "Hierarchical pyramidal convolution: levels of growing kernel size; each also reads the previous level's output.",
    "Chen, Du, Hu, Dai, Yin, Lee: Lip-reading with Hierarchical Pyramidal Convolution and Self-Attention, "
    "arXiv 2012.14360, 2020; its pyramid is that of Duta, Liu, Zhu, Shao: Pyramidal Convolution, arXiv 2006.11538, 2020",
)
class HPConv2d(nn.Module):
    """``y_1 = conv_1(x)``, ``y_l = conv_l([x, y_(l-1)])``; the output is ``[y_1, ..., y_L]``.

    Level l has the kernel size ``kernel_size + 2 (l - 1)``, its share of the output channels, and a number of groups that
    grows with the kernel (1, 4, 8, 16, at most what divides the channels), so that large kernels stay cheap. A group of
    level l sees its part of x and its part of y_(l-1).

    The pyramid, its groups and its shares are those of pyramidal convolution and of its official code. The hierarchy is the
    lip-reading paper's; its details were settled here without the full text of that paper, and are our choices: it
    runs from small kernels to large ones by concatenation, nothing non-linear stands between the levels, and with a stride
    the predecessor's output, which is strided already, is read with stride 1. The receptive field of level l is then
    ``1 + Σ_(i <= l) (K_i - 1)`` pixels at stride 1.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, device, dtype: those of
            ``nn.Conv2d``, of the first level; the others are centred on the same pixels, so that the output size is that
            of the convolution.
        levels: number of kernel sizes, from 1 to 4.
        hierarchical: each level also reads the output of the level before; without this the operator is a pyramidal
            convolution.

    Shape:
        (N, C_in, H, W) -> (N, C_out, H', W').

    Raises:
        ValueError: ``levels`` out of range, or output channels that do not divide into levels and groups.
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
        levels: int = 4,
        hierarchical: bool = True,
    ) -> None:
        super().__init__()
        channels = _checked_channels(out_channels, levels, groups)
        self.groups = groups
        self.input_convs = nn.ModuleList()
        self.level_convs = nn.ModuleList()
        shared: dict[str, Any] = {"padding_mode": padding_mode, "device": device, "dtype": dtype}
        for level, outputs in enumerate(channels):
            previous = channels[level - 1] if hierarchical and level else 0
            size = tuple(k + 2 * level for k in _pair(kernel_size))
            parts = groups * gcd(LEVEL_GROUPS[level], *(n // groups for n in (in_channels, outputs, previous)))
            window: tuple[Any, ...] = (size, stride, _grown(padding, dilation, level), dilation, parts, bias)
            self.input_convs.append(nn.Conv2d(in_channels, outputs, *window, **shared))
            if previous:
                inner: tuple[Any, ...] = (size, 1, "same", dilation, parts, False)
                self.level_convs.append(nn.Conv2d(previous, outputs, *inner, **shared))

    def forward(self, x: Tensor) -> Tensor:
        """(N, C_in, H, W) -> (N, C_out, H', W')."""
        outputs = [conv(x) for conv in self.input_convs]
        for level, conv in enumerate(self.level_convs, 1):
            outputs[level] = outputs[level] + conv(outputs[level - 1])
        # Of every level the part of each group: output group i depends on input group i, as in a convolution.
        return torch.cat([y.unflatten(1, (self.groups, -1)) for y in outputs], 2).flatten(1, 2)


def _checked_channels(out_channels: int, levels: int, groups: int) -> tuple[int, ...]:
    if not 1 <= levels <= len(LEVEL_GROUPS):
        raise ValueError(f"levels is {levels}; allowed are 1 to {len(LEVEL_GROUPS)}")
    channels = level_channels(out_channels, levels)
    if any(n == 0 or n % groups for n in channels):
        raise ValueError(
            f"the levels have {', '.join(map(str, channels))} output channels ({out_channels} in {levels} "
            f"levels), and groups={groups} does not divide each of them; use fewer levels or groups"
        )
    return channels


def _pair(value: int | Sequence[int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])


def _grown(padding: int | Sequence[int] | str, dilation: int | Sequence[int], level: int) -> tuple[int, int] | str:
    """The padding that keeps a kernel that reaches ``level`` taps further on the same pixels."""
    if isinstance(padding, str) and padding != "valid":
        return padding  # "same", and what nn.Conv2d refuses
    pads = (0, 0) if isinstance(padding, str) else _pair(padding)
    height, width = _pair(dilation)
    return (pads[0] + height * level, pads[1] + width * level)
