"""The window that both branches of an X-volution look through, and convolutions laid over it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import gcd
from typing import Any

from torch import Tensor, nn

from xvolution.functional import PaddingPairs, as_pair, centre_of, pad, padding_pairs


@dataclass(frozen=True)
class Geometry:
    """Kernel size, stride, dilation and explicit padding of a 2-d window.

    ``padding`` is ((top, bottom), (left, right)) in pixels; negative numbers crop, which happens when a window smaller
    than the convolution's is centred on the same pixels.
    """

    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    padding: PaddingPairs
    dilation: tuple[int, ...]
    padding_mode: str = "zeros"

    @classmethod
    def create(
        cls,
        kernel_size: int | Sequence[int],
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] | str = 0,
        dilation: int | Sequence[int] = 1,
        padding_mode: str = "zeros",
    ) -> Geometry:
        """Geometry from the arguments of ``nn.Conv2d``."""
        kernel_size, stride, dilation = as_pair(kernel_size), as_pair(stride), as_pair(dilation)
        return cls(kernel_size, stride, padding_pairs(padding, kernel_size, dilation), dilation, padding_mode)

    @classmethod
    def of(cls, conv: nn.Conv2d) -> Geometry:
        """Geometry of an existing convolution."""
        if isinstance(conv, ExplicitlyPaddedConv2d):
            return cls(conv.kernel_size, conv.stride, conv.padding_pairs, conv.dilation, conv.padding_mode)
        return cls.create(conv.kernel_size, conv.stride, conv.padding, conv.dilation, conv.padding_mode)

    @property
    def reach(self) -> tuple[tuple[int, int], ...]:
        """Pixels that the window reaches before and after its centre, in each dimension."""
        centre = centre_of(self.kernel_size)
        return tuple((d * c, d * (k - 1 - c)) for k, c, d in zip(self.kernel_size, centre, self.dilation, strict=True))

    def recentred(self, kernel_size: Sequence[int], dilation: Sequence[int]) -> Geometry:
        """A window of another size around the same centre pixels: the output has the same height and width."""
        window = Geometry(tuple(kernel_size), self.stride, self.padding, tuple(dilation), self.padding_mode)
        padding = tuple(
            (pads[0] - old[0] + new[0], pads[1] - old[1] + new[1])
            for pads, old, new in zip(self.padding, self.reach, window.reach, strict=True)
        )
        return Geometry(window.kernel_size, self.stride, padding, window.dilation, self.padding_mode)

    def centre(self) -> Geometry:
        """The 1x1 window on the centre pixels."""
        ones = (1,) * len(self.kernel_size)
        return self.recentred(ones, ones)

    def pad(self, x: Tensor) -> Tensor:
        """(..., H, W) with this geometry's padding around it."""
        return pad(x, self.padding, self.padding_mode)

    def tap_offsets(self, dim: int) -> list[int]:
        """Offsets of the taps from the centre along one dimension, in pixels."""
        centre = centre_of(self.kernel_size)[dim]
        return [self.dilation[dim] * (tap - centre) for tap in range(self.kernel_size[dim])]

    def union(self, others: Sequence[Geometry]) -> Geometry:
        """The smallest regular window that has all taps of this one and of ``others``, around the same centre."""
        kernel_size, dilation, padding = [], [], []
        for dim, pads in enumerate(self.padding):
            offsets = sorted({offset for window in (self, *others) for offset in window.tap_offsets(dim)})
            step = gcd(*offsets) or 1
            before, after = self.reach[dim]
            kernel_size.append((offsets[-1] - offsets[0]) // step + 1)
            dilation.append(step)
            padding.append((pads[0] - before - offsets[0], pads[1] - after + offsets[-1]))
        return Geometry(tuple(kernel_size), self.stride, tuple(padding), tuple(dilation), self.padding_mode)

    def tap_slices(self, window: Geometry) -> tuple[slice, ...]:
        """Where the taps of ``window`` lie in the kernel of this geometry, which must contain it (see ``union``)."""
        slices = []
        for dim, step in enumerate(self.dilation):
            offsets = window.tap_offsets(dim)
            # The centre of a union need not be its middle tap, so positions are counted from its first tap.
            first = self._first_offset(dim, window)
            stride = max(window.dilation[dim] // step, 1) if len(offsets) > 1 else 1
            start = (offsets[0] - first) // step
            slices.append(slice(start, start + stride * (len(offsets) - 1) + 1, stride))
        return tuple(slices)

    def _first_offset(self, dim: int, window: Geometry) -> int:
        centre_padding = window.padding[dim][0] - window.reach[dim][0]
        return centre_padding - self.padding[dim][0]


class ExplicitlyPaddedConv2d(nn.Conv2d):
    """``nn.Conv2d`` whose padding is ((top, bottom), (left, right)), negative numbers cropping."""

    def __init__(self, in_channels: int, out_channels: int, geometry: Geometry, **options: Any) -> None:
        super().__init__(in_channels, out_channels, **_window(geometry, 0), **options)
        self.padding_pairs = geometry.padding

    def forward(self, x: Tensor) -> Tensor:
        padded = pad(x, self.padding_pairs, self.padding_mode)
        return nn.functional.conv2d(padded, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, padding_pairs={self.padding_pairs}"


def conv2d_over(geometry: Geometry, in_channels: int, out_channels: int, **options: Any) -> nn.Conv2d:
    """A convolution over ``geometry``: a plain ``nn.Conv2d`` wherever that can express the padding.

    Args:
        geometry: the window.
        in_channels, out_channels: channels.
        options: ``groups``, ``bias``, ``device``, ``dtype`` of ``nn.Conv2d``.
    """
    if any(before != after or before < 0 for before, after in geometry.padding):
        return ExplicitlyPaddedConv2d(in_channels, out_channels, geometry, **options)
    padding = tuple(before for before, _ in geometry.padding)
    return nn.Conv2d(in_channels, out_channels, **_window(geometry, padding), **options)


def _window(geometry: Geometry, padding: int | tuple[int, ...]) -> dict[str, Any]:
    return {
        "kernel_size": geometry.kernel_size,
        "stride": geometry.stride,
        "padding": padding,
        "dilation": geometry.dilation,
        "padding_mode": geometry.padding_mode,
    }
