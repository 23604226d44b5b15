"""The plain convolution, and two in parallel: the baseline and the control."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from xvolution.operators.registry import register

register("conv", "The plain convolution.", "torch.nn.Conv2d")(nn.Conv2d)


@register(
    "conv-conv",
    "Two parallel convolutions, each with a batch norm, summed: the branch structure of X-volution without attention.",
    "The control of X-volution's ablation (Chen, Wang, Ni: X-volution: On the unification of convolution and "
    "self-attention, arXiv 2106.02253, 2021, section 4)",
)
class ConvConv2d(nn.Module):
    """``y = norm_1(conv_1(x)) + norm_2(conv_2(x))``.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, device, dtype: those of
            ``nn.Conv2d``, of both convolutions.

    Shape:
        (N, C_in, H, W) -> (N, C_out, H', W').
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
    ) -> None:
        super().__init__()
        geometry: tuple[Any, ...] = (kernel_size, stride, padding, dilation, groups, bias, padding_mode)
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.convs = nn.ModuleList(nn.Conv2d(in_channels, out_channels, *geometry, **factory) for _ in range(2))
        self.norms = nn.ModuleList(nn.BatchNorm2d(out_channels, **factory) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        """(N, C_in, H, W) -> (N, C_out, H', W')."""
        first, second = (norm(conv(x)) for conv, norm in zip(self.convs, self.norms, strict=True))
        return first + second
