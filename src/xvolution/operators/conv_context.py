"""A convolution and a global context beside it: a control for attention over the whole image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from xvolution.attention.base import attention_channels
from xvolution.conversion.register import register
from xvolution.geometry import spatial


@register(
    "conv-context",
    "The sum of a convolution and a context vector of the whole image: X-volution's structure without attention.",
    "Cao, Xu, Lin, Wei, Hu: GCNet: Non-local Networks Meet Squeeze-Excitation Networks and Beyond, arXiv 1904.11492, 2019, "
    "with the mean in the place of the learned pooling",
)
class ConvContext2d(nn.Module):
    """``y = norm_c(conv(x)) + norm_g(W² relu(W¹ mean(x)))``.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, device, dtype: those of
            ``nn.Conv2d``; the context is not grouped.
        ratio: number of channels between W¹ and W², as a fraction of the output channels.

    Shape:
        (N, C_in, H, W) -> (N, C_out, H', W'). In training N must be at least 2, since ``norm_g`` normalizes one vector for
        each image over the batch.
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
        ratio: float = 0.25,
    ) -> None:
        super().__init__()
        geometry: tuple[Any, ...] = (kernel_size, stride, padding, dilation, groups, bias, padding_mode)
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        hidden = attention_channels(out_channels, ratio, 1)
        self.conv = nn.Conv2d(in_channels, out_channels, *geometry, **factory)
        self.conv_norm = nn.BatchNorm2d(out_channels, **factory)
        self.context = nn.Sequential(
            nn.Conv2d(in_channels, hidden, 1, **factory),
            nn.ReLU(),
            nn.Conv2d(hidden, out_channels, 1, bias=False, **factory),
        )
        self.context_norm = nn.BatchNorm2d(out_channels, **factory)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C_in, H, W) -> (N, C_out, H', W')."""
        context = self.context_norm(self.context(x.mean(spatial(x), keepdim=True)))
        return self.conv_norm(self.conv(x)) + context
