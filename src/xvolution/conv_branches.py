"""Further branches that are summed beside the first convolution; each merges into it for deployment.

Diverse Branch Block: Building a Convolution as an Inception-like Unit (Ding, Zhang, Han, Ding, CVPR 2021, arXiv 2103.13425).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import replace
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from xvolution.attention.base import zero_
from xvolution.convolutions import Kernel, conv_over, kernel_of, pointwise
from xvolution.folding import NormLayer, build_norm, normalized
from xvolution.geometry import ConvSite, Geometry


class ConvBranch(nn.Module, ABC):
    """A summand of a convolution branch: (N, C_in, H, W) -> (N, C_out, H', W')."""

    conv: Any
    norm: nn.Module

    @property
    def norms(self) -> tuple[nn.Module, ...]:
        """All norms; each has to fold into a scale and a shift."""
        return (self.norm,)

    @abstractmethod
    def kernel(self) -> Kernel:
        """The branch in eval mode as one convolution over a window that the operator's geometry has.

        Raises:
            FoldingError: a norm does not fold.
        """

    def zero_init_(self) -> None:
        """Start without effect."""
        zero_(self.conv if isinstance(self.norm, nn.Identity) else self.norm)


class NormalizedConvolution(ConvBranch):
    """``norm(conv(x))``, over the operator's window or at its centre."""

    def __init__(self, site: ConvSite, geometry: Geometry, bias: bool, norm_layer: NormLayer | None) -> None:
        super().__init__()
        channels = (site.in_channels, site.out_channels)
        self.conv = conv_over(geometry, *channels, groups=site.groups, bias=bias, **site.factory)
        self.norm = build_norm(norm_layer, site.out_channels, site.dims, site.factory)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))

    def kernel(self) -> Kernel:
        return normalized(kernel_of(self.conv), self.norm)


class PointwiseFirst(ConvBranch):
    """A branch that starts with a 1x1 convolution and a norm.

    The image is padded before it: padded behind it with zeros, the border would read something else than the shift of the norm,
    which a convolution of the image cannot. (The paper's code pads with that shift, which in training is the one of the running
    statistics, and not of the batch.)
    """

    def __init__(self, site: ConvSite, channels: int, norm_layer: NormLayer | None) -> None:
        super().__init__()
        self.geometry = site.geometry
        #: The window over what is padded already.
        self.window = replace(site.geometry, padding=((0, 0),) * site.dims, padding_mode="zeros", same_spans=None)
        options: dict[str, Any] = {"groups": site.groups, "bias": False, **site.factory}
        self.inner: Any = pointwise(site.dims, site.in_channels, channels, **options)
        self.inner_norm = build_norm(norm_layer, channels, site.dims, site.factory)
        self.norm = build_norm(norm_layer, site.out_channels, site.dims, site.factory)

    @property
    def norms(self) -> tuple[nn.Module, ...]:
        return (self.inner_norm, self.norm)

    def mixed(self, x: Tensor) -> Tensor:
        """The padded image behind the 1x1 convolution and its norm."""
        return self.inner_norm(self.inner(self.geometry.pad(x)))


class PointwiseThenConvolution(PointwiseFirst):
    """``norm(conv(inner_norm(inner(pad(x)))))``: a 1x1 convolution that starts as the identity, and one over the window."""

    def __init__(self, site: ConvSite, norm_layer: NormLayer | None) -> None:
        super().__init__(site, site.in_channels, norm_layer)
        options: dict[str, Any] = {"groups": site.groups, "bias": False, **site.factory}
        self.conv = conv_over(self.window, site.in_channels, site.out_channels, **options)
        with torch.no_grad():
            identity = torch.eye(site.in_channels // site.groups).repeat(site.groups, 1)
            self.inner.weight.copy_(identity.reshape(self.inner.weight.shape))

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(self.mixed(x)))

    def kernel(self) -> Kernel:
        inner, outer = normalized(kernel_of(self.inner), self.inner_norm), kernel_of(self.conv)
        groups = self.conv.groups
        by_group = outer.weight.flatten(2).unflatten(0, (groups, -1))
        weight = torch.einsum("gomt,gmi->goit", by_group, inner.weight.flatten(1).unflatten(0, (groups, -1)))
        bias = torch.einsum("gomt,gm->go", by_group, inner.bias.unflatten(0, (groups, -1))).flatten() + outer.bias
        weight = weight.flatten(0, 1).unflatten(2, self.geometry.kernel_size)
        return normalized(Kernel(self.geometry, weight, bias), self.norm)


class PointwiseThenPooling(PointwiseFirst):
    """``norm(mean over the window of inner_norm(inner(pad(x))))``."""

    def __init__(self, site: ConvSite, norm_layer: NormLayer | None) -> None:
        super().__init__(site, site.out_channels, norm_layer)

    @property
    def conv(self) -> Any:
        """The layer on which the output depends linearly."""
        return self.inner

    def forward(self, x: Tensor) -> Tensor:
        maps = self.mixed(x)
        sizes, channels = self.window.kernel_size, maps.shape[1]
        average = maps.new_full((channels, 1, *sizes), 1 / prod(sizes))
        return self.norm(self.window.convolve(maps, average, groups=channels))

    def kernel(self) -> Kernel:
        inner, sizes = normalized(kernel_of(self.inner), self.inner_norm), self.geometry.kernel_size
        weight = (inner.weight / prod(sizes)).expand(*inner.weight.shape[:2], *sizes)
        return normalized(Kernel(self.geometry, weight, inner.bias), self.norm)


def branches_beside(
    site: ConvSite, further: int, diverse: bool, bias: bool, norm_layer: NormLayer | None
) -> list[ConvBranch]:
    """The branches that are summed beside the first convolution.

    Args:
        site: of the first convolution.
        further: convolutions like it.
        diverse: a 1x1 convolution, one before a convolution over the window, and one before average pooling too; beside a 1x1
            convolution, where these are three times the same, the second alone.
        bias: whether convolutions without a layer behind them but a norm have one.
        norm_layer: of the norms.
    """
    branches: list[ConvBranch] = [NormalizedConvolution(site, site.geometry, bias, norm_layer) for _ in range(further)]
    if not diverse:
        return branches
    if not site.geometry.is_pointwise:
        branches += [NormalizedConvolution(site, site.geometry.centre(), bias, norm_layer)]
        branches += [PointwiseThenPooling(site, norm_layer)]
    return [*branches, PointwiseThenConvolution(site, norm_layer)]
