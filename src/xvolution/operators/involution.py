"""Involution: one kernel for each pixel, computed from that pixel and shared by a group of channels."""

from __future__ import annotations

from collections.abc import Sequence
from math import gcd, prod
from typing import Any

from torch import Tensor, nn

from xvolution.conversion.register import register
from xvolution.operators.local_attention import check_ungrouped, geometry_of, taps_of, weighted_sum


@register(
    "involution",
    "One kernel for each pixel, computed from that pixel and shared by a group of channels.",
    "Li, Hu, Wang, Li, She, Zhu, Zhang, Chen: Involution: Inverting the Inherence of Convolution for Visual Recognition, "
    "CVPR 2021, arXiv 2103.06255",
)
class Involution2d(nn.Module):
    """Equations 4 and 6 of the paper::

        y_0 = Σ_δ H_{g,δ}(x_0) x_δ,      H(x_0) = W^1 relu( norm( W^0 x_0 ) )

    where ``g`` is the group of the channel. With a stride the kernels are computed from the average over the stride x stride
    pixels that begin at the centre of each window. Where in_channels and out_channels differ, a 1x1 convolution goes first,
    since an involution keeps the channels.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, padding_mode, device, dtype: those of ``nn.Conv2d``;
            the paper's kernel is 7.
        groups: must be 1.
        bias: of the 1x1 convolution in front, where there is one; the involution itself adds nothing.
        reduction: factor r of the paper by which the channels shrink while the kernel is computed.
        group_channels: number of channels that share a kernel; by default 16, the paper's number, or its largest divisor
            that divides the channels.

    Shape:
        (N, C_in, H, W) -> (N, C_out, H', W').

    Raises:
        ValueError: groups other than 1, or a reduction or group_channels that do not fit the channels.
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
        reduction: int = 4,
        group_channels: int | None = None,
    ) -> None:
        super().__init__()
        window = (kernel_size, stride, padding, dilation, groups, padding_mode)
        self.window = geometry_of(in_channels, out_channels, *window)
        check_ungrouped(groups, "involution")
        group_channels = gcd(16, out_channels) if group_channels is None else group_channels
        if group_channels < 1 or out_channels % group_channels:
            raise ValueError(
                f"group_channels is {group_channels}; it must be positive and divide the {out_channels} output channels"
            )
        if not 1 <= reduction <= out_channels:
            raise ValueError(f"reduction is {reduction}; it must be between 1 and the {out_channels} output channels")
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        reduced, kernels = out_channels // reduction, out_channels // group_channels
        self.group_channels = group_channels
        same = in_channels == out_channels
        self.project = nn.Identity() if same else nn.Conv2d(in_channels, out_channels, 1, bias=bias, **factory)
        self.reduce = nn.Conv2d(out_channels, reduced, 1, bias=False, **factory)
        self.norm = nn.BatchNorm2d(reduced, **factory)
        self.span = nn.Conv2d(reduced, kernels * prod(self.window.kernel_size), 1, **factory)

    def kernels(self, x: Tensor) -> Tensor:
        """(N, C_out, H, W) -> (N, C_out / group_channels, T, H', W'), with the T taps in row-major order."""
        centres = self.window.centre().pad(x)
        if max(self.window.stride) > 1:
            # Windows that a map's odd edge cuts off average what is left of them, so that no output lacks a kernel.
            centres = nn.functional.avg_pool2d(centres, self.window.stride, ceil_mode=True)
        kernels = self.span(nn.functional.relu(self.norm(self.reduce(centres))))
        return kernels.unflatten(1, (-1, prod(self.window.kernel_size)))

    def forward(self, x: Tensor) -> Tensor:
        """(N, C_in, H, W) -> (N, C_out, H', W')."""
        x = self.project(x)
        kernels = self.kernels(x)
        return weighted_sum(kernels, taps_of(x.to(kernels.dtype), self.window))

    def extra_repr(self) -> str:
        return (
            f"kernel_size={self.window.kernel_size}, stride={self.window.stride}, group_channels={self.group_channels}"
        )
