"""The base of the deployed forms, the convolutions they are made of, and the form of an operator without attention."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from xvolution.deploy.fold import FoldedConvolution
from xvolution.nn.geometry import Geometry, conv_over


def conv_of(geometry: Geometry, weight: Tensor, bias: Tensor | None, groups: int, factory: dict[str, Any]) -> Any:
    """A convolution with these fp64 weights, cast to the deployed dtype."""
    conv = conv_over(
        geometry, weight.shape[1] * groups, weight.shape[0], groups=groups, bias=bias is not None, **factory
    )
    conv.weight.copy_(weight)
    if conv.bias is not None and bias is not None:
        conv.bias.copy_(bias)
    return conv


def pointwise_of(dims: int, weight: Tensor, bias: Tensor | None, groups: int, factory: dict[str, Any]) -> Any:
    """A 1x1 convolution with the weight (out, in / groups)."""
    return conv_of(Geometry.create(1, dims=dims), kernel_of_matrix(weight, dims), bias, groups, factory)


def kernel_of_matrix(weight: Tensor, dims: int) -> Tensor:
    """(out, in) -> (out, in, 1, 1)."""
    return weight.reshape(*weight.shape, *(1,) * dims)


class DeployedXVolution(nn.Module):
    """Base of the deployed forms; ``layout`` names which one. Maps (N, C_in, H, W) to (N, C_out, H', W'), in any dimension."""

    layout: str
    conv: Any

    def __init__(self, convolution: FoldedConvolution) -> None:
        super().__init__()
        # Some networks read the geometry of their convolutions, to pad before them for instance.
        geometry, self.groups = convolution.geometry, convolution.groups
        self.out_channels, self.in_channels = convolution.weight.shape[0], convolution.weight.shape[1] * self.groups
        self.kernel_size, self.stride, self.dilation = geometry.kernel_size, geometry.stride, geometry.dilation
        self.padding, self.padding_mode = tuple(before for before, _ in geometry.padding), geometry.padding_mode

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() == self.conv.weight.dim() - 1:
            return self.compute(x.unsqueeze(0)).squeeze(0)
        return self.compute(x)

    def compute(self, x: Tensor) -> Tensor:
        """(N, C_in, H, W) -> (N, C_out, H', W')."""
        raise TypeError(f"{type(self).__name__} does not define how it computes")

    def extra_repr(self) -> str:
        return f"layout={self.layout}"


class MergedConv(DeployedXVolution):
    """An operator without attention: its convolutions as one."""

    layout = "single"

    def __init__(self, convolution: FoldedConvolution, factory: dict[str, Any]) -> None:
        super().__init__(convolution)
        self.conv = conv_of(convolution.geometry, convolution.weight, convolution.bias, convolution.groups, factory)
        self.conv_norm = convolution.norm

    def compute(self, x: Tensor) -> Tensor:
        return self.conv_norm(self.conv(x))
