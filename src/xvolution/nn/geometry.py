"""The window that both branches of an X-volution look through, and convolutions laid over it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import gcd
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xvolution.functional import PaddingPairs, as_tuple, centre_of, convolution, pad, padding_pairs, spatial

CONVOLUTIONS: dict[int, Any] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


@dataclass(frozen=True)
class Geometry:
    """Kernel size, stride, dilation and explicit padding of a window in one, two or three dimensions.

    ``padding`` is ((top, bottom), (left, right)) in pixels; negative numbers crop, which happens when a window smaller
    than the convolution's is centred on the same pixels. ``same_spans`` is set for ``padding="same_upper"``: the reach
    ``d (k - 1)`` of the window whose outputs, at each image size, number ``ceil(n / stride)``; that many pixels of padding
    are added when the image is there, the odd one after it.
    """

    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    padding: PaddingPairs
    dilation: tuple[int, ...]
    padding_mode: str = "zeros"
    same_spans: tuple[int, ...] | None = None

    @classmethod
    def create(
        cls,
        kernel_size: int | Sequence[int],
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] | str = 0,
        dilation: int | Sequence[int] = 1,
        padding_mode: str = "zeros",
        dims: int = 2,
    ) -> Geometry:
        """Geometry from the arguments of ``nn.Conv2d``; ``dims`` is needed where all of them are single numbers.

        ``padding="same_upper"`` pads to ``ceil(n / stride)`` outputs, as TensorFlow's ``SAME`` and ONNX's ``SAME_UPPER`` do.
        """
        window, steps, spaces = (as_tuple(value, dims) for value in (kernel_size, stride, dilation))
        if padding != "same_upper":
            return cls(window, steps, padding_pairs(padding, window, spaces), spaces, padding_mode)
        if max(steps) == 1:
            return cls(window, steps, padding_pairs("same", window, spaces), spaces, padding_mode)
        spans = tuple(d * (k - 1) for k, d in zip(window, spaces, strict=True))
        return cls(window, steps, ((0, 0),) * dims, spaces, padding_mode, spans)

    @classmethod
    def of(cls, conv: Any) -> Geometry:
        """Geometry of an existing convolution of any dimension."""
        if isinstance(conv, ExplicitPadding):
            return conv.geometry
        dims = len(conv.kernel_size)
        return cls.create(conv.kernel_size, conv.stride, conv.padding, conv.dilation, conv.padding_mode, dims)

    @property
    def dims(self) -> int:
        """Number of spatial dimensions."""
        return len(self.kernel_size)

    @property
    def skips_pixels(self) -> bool:
        """Whether this is a 1x1 window with a stride: a 1x1 convolution of every s-th pixel."""
        return max(self.kernel_size) == 1 < max(self.stride)

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
        return replace(window, padding=padding, same_spans=self.same_spans)

    def centre(self) -> Geometry:
        """The 1x1 window on the centre pixels."""
        ones = (1,) * self.dims
        return self.recentred(ones, ones)

    def pad(self, x: Tensor) -> Tensor:
        """(..., H, W) with this geometry's padding around it."""
        if self.same_spans is None:
            return pad(x, self.padding, self.padding_mode)
        pairs = []
        for size, s, span, (before, after) in zip(
            x.shape[-self.dims :], self.stride, self.same_spans, self.padding, strict=True
        ):
            total = max((-(-size // s) - 1) * s + span + 1 - size, 0)
            pairs.append((before + total // 2, after + total - total // 2))
        return pad(x, tuple(pairs), self.padding_mode)

    def convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None = None, groups: int = 1) -> Tensor:
        """The convolution of (N, C_in, H, W) over this window: (N, C_out, H', W')."""
        x = self.pad(x)
        if not self.skips_pixels:
            return convolution(x, weight, bias, self.stride, self.dilation, groups)
        # On CPUs with AVX2 alone torch (2.14) writes past its memory in the gradients of a strided 1x1 convolution of
        # less than 8 channels in channels_last.
        pixels: tuple[Any, ...] = (..., *(slice(None, None, s) for s in self.stride))
        return convolution(x[pixels], weight, bias, groups=groups)

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
        return replace(self, kernel_size=tuple(kernel_size), padding=tuple(padding), dilation=tuple(dilation))

    def followed_by(self, window: Geometry) -> Geometry:
        """The window, over the input, of this convolution and one of stride 1 over its outputs."""
        kernel_size, dilation, padding = [], [], []
        for dim, (pads, s) in enumerate(zip(self.padding, self.stride, strict=True)):
            offsets = [o + s * further for o in self.tap_offsets(dim) for further in window.tap_offsets(dim)]
            first = min(offsets)
            step = gcd(*(offset - first for offset in offsets)) or 1
            kernel_size.append((max(offsets) - first) // step + 1)
            dilation.append(step)
            padding.append((pads[0] + s * window.padding[dim][0], pads[1] + s * window.padding[dim][1]))
        return replace(self, kernel_size=tuple(kernel_size), padding=tuple(padding), dilation=tuple(dilation))

    def moved(self, pixels: Sequence[int]) -> Geometry:
        """The same window that many pixels further on."""
        padding = tuple((before - n, after + n) for (before, after), n in zip(self.padding, pixels, strict=True))
        return replace(self, padding=padding)

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


class ExplicitPadding(nn.Module):
    """Mixin of the convolutions that a ``Geometry`` computes: it pads before and after, or crops, and skips pixels."""

    geometry: Geometry
    groups: int

    def __init__(self, in_channels: int, out_channels: int, geometry: Geometry, **options: Any) -> None:
        window: dict[str, Any] = {**_window(geometry, 0), **options}
        super().__init__(in_channels, out_channels, **window)
        self.geometry = geometry

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """What ``forward`` of torch's convolutions calls: (N, C_in, H, W) -> (N, C_out, H', W')."""
        return self.geometry.convolve(x, weight, bias, self.groups)

    def extra_repr(self) -> str:
        padding = self.geometry.padding if self.geometry.same_spans is None else ("same_upper", self.geometry.padding)
        return f"{super().extra_repr()}, explicit_padding={padding}"


class ExplicitlyPaddedConv1d(ExplicitPadding, nn.Conv1d):
    """``nn.Conv1d`` over a ``Geometry``."""


class ExplicitlyPaddedConv2d(ExplicitPadding, nn.Conv2d):
    """``nn.Conv2d`` over a ``Geometry``."""


class ExplicitlyPaddedConv3d(ExplicitPadding, nn.Conv3d):
    """``nn.Conv3d`` over a ``Geometry``."""


_EXPLICITLY_PADDED: dict[int, Any] = {1: ExplicitlyPaddedConv1d, 2: ExplicitlyPaddedConv2d, 3: ExplicitlyPaddedConv3d}


def conv_over(geometry: Geometry, in_channels: int, out_channels: int, **options: Any) -> Any:
    """A convolution over ``geometry``: a plain ``nn.Conv1d``, ``2d`` or ``3d`` wherever that can express the padding.

    A 1x1 window with a stride is computed by ``Geometry.convolve`` too, which says why.

    Args:
        geometry: the window.
        in_channels, out_channels: channels.
        options: ``groups``, ``bias``, ``device``, ``dtype`` of ``nn.Conv2d``.
    """
    explicit = any(before != after or before < 0 for before, after in geometry.padding)
    if explicit or geometry.same_spans is not None or geometry.skips_pixels:
        return _EXPLICITLY_PADDED[geometry.dims](in_channels, out_channels, geometry, **options)
    padding = tuple(before for before, _ in geometry.padding)
    return CONVOLUTIONS[geometry.dims](in_channels, out_channels, **_window(geometry, padding), **options)


def pointwise(dims: int, in_channels: int, out_channels: int, **options: Any) -> Any:
    """A 1x1 convolution in ``dims`` dimensions."""
    return CONVOLUTIONS[dims](in_channels, out_channels, 1, **options)


def _window(geometry: Geometry, padding: int | tuple[int, ...]) -> dict[str, Any]:
    return {
        "kernel_size": geometry.kernel_size,
        "stride": geometry.stride,
        "padding": padding,
        "dilation": geometry.dilation,
        "padding_mode": geometry.padding_mode,
    }


def image_mean(x: Tensor) -> Tensor:
    """Mean over all pixels of each image: (N, C, H, W) -> (N, C, 1, 1), whose gradient is laid out like ``x``.

    It is the same at every pixel, so torch's own is row-major whatever ``x`` is, and adding that to a gradient that is
    channels-last takes as long as a convolution.
    """
    channels_last = x.stride(1) == 1
    if torch.compiler.is_compiling() or not channels_last:
        return x.mean(spatial(x), keepdim=True)
    if x.device.type == "cpu" and x.dim() == 4:
        return F.avg_pool2d(x, x.shape[2:])  # in half precision torch's mean copies the map to fp32 here
    return x.movedim(1, -1).mean(tuple(range(1, x.dim() - 1)), keepdim=True).movedim(-1, 1)
