"""A low-rank map from the means of all channels, independent of the convolution's groups; a pooled term mixes channels by it."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from xvolution.convolutions import kernel_of, pointwise, pointwise_of
from xvolution.numerics import bounded

#: Smallest rank, as of squeeze-and-excitation.
_LEAST = 8


class LowRank(nn.Module):
    """``U (V m) + b``: (N, C_in, 1, 1) -> (N, C_out, 1, 1), where ``V`` has ``rank_of`` rows; neither is grouped."""

    def __init__(self, inner: Any, outer: Any) -> None:
        super().__init__()
        self.inner, self.outer = inner, outer

    @classmethod
    def create(
        cls, dims: int, channels: tuple[int, int], reduction: int, bias: bool, factory: dict[str, Any]
    ) -> LowRank:
        """From (C_in, C_out) channels, with a new ``V`` and ``U``."""
        (in_channels, out_channels), rank = channels, rank_of(*channels, reduction)
        inner = pointwise(dims, in_channels, rank, bias=False, **factory)
        return cls(inner, pointwise(dims, rank, out_channels, bias=bias, **factory))

    @classmethod
    def of(cls, dims: int, inner: Tensor, outer: Tensor, factory: dict[str, Any]) -> LowRank:
        """From the matrices V (R, C_in) and U (C_out, R), without bias."""
        return cls(pointwise_of(dims, inner, None, 1, factory), pointwise_of(dims, outer, None, 1, factory))

    def forward(self, mean: Tensor) -> Tensor:
        return self.outer(bounded(self.inner(mean)))


def affine_map(layer: Any, groups: int) -> tuple[Tensor, Tensor, int]:
    """A 1x1 convolution with so many groups, or a ``LowRank``, as one weight (C_out, C_in / groups, 1, 1), bias and groups."""
    if not isinstance(layer, LowRank):
        kernel = kernel_of(layer)
        return kernel.weight, kernel.bias, groups
    inner, outer = kernel_of(layer.inner).weight, kernel_of(layer.outer)
    weight = (outer.weight.flatten(1) @ inner.flatten(1)).reshape(len(outer.weight), *inner.shape[1:])
    return weight, outer.bias, 1


def rank_of(in_channels: int, out_channels: int, reduction: int) -> int:
    """``C_in / reduction``, at least 8 and at most ``C_out``."""
    return min(max(in_channels // reduction, _LEAST), out_channels)


def check_reduction(reduction: int | None) -> None:
    """Raise ValueError unless a reduction is None or positive."""
    if reduction is not None and reduction < 1:
        raise ValueError(f"reduction is {reduction}; it must be a positive integer, or None for no reduction")
