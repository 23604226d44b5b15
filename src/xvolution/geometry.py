"""Windows of pixels in any number of dimensions, for convolutions and the attention beside them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from math import gcd
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from xvolution.numerics import CONVOLVE, is_captured, multiply_channels

PaddingPairs = tuple[tuple[int, int], ...]


def as_tuple(value: int | Sequence[int], dims: int) -> tuple[int, ...]:
    """``3 -> (3, 3)`` for two dimensions; a sequence of ``dims`` numbers stays what it is.

    Raises:
        ValueError: a sequence of another length.
    """
    if isinstance(value, int):
        return (value,) * dims
    numbers = tuple(int(number) for number in value)
    if len(numbers) != dims:
        raise ValueError(f"{value} has {len(numbers)} numbers for {dims} dimensions; give one number, or one for each")
    return numbers


def padding_pairs(
    padding: int | Sequence[int] | str, kernel_size: Sequence[int], dilation: Sequence[int]
) -> PaddingPairs:
    """Padding of ``nn.Conv2d`` as ((top, bottom), (left, right)) pixels.

    ``"same"`` puts the odd pixel of an even kernel after the image, as ``torch.nn.functional.conv2d`` does.
    """
    if padding == "valid":
        return ((0, 0),) * len(kernel_size)
    if padding == "same":
        totals = [d * (k - 1) for k, d in zip(kernel_size, dilation, strict=True)]
        return tuple((total // 2, total - total // 2) for total in totals)
    if isinstance(padding, str):
        raise ValueError(f"padding is {padding!r}; allowed are 'valid', 'same', an integer or one for each dimension")
    return tuple((pixels, pixels) for pixels in as_tuple(padding, len(kernel_size)))


def centre_of(kernel_size: Sequence[int]) -> tuple[int, ...]:
    """Index of the centre tap, ``(K - 1) // 2`` in each dimension: under ``padding='same'`` it reads the pixel itself."""
    return tuple((k - 1) // 2 for k in kernel_size)


def pad(x: Tensor, pairs: PaddingPairs, mode: str = "zeros") -> Tensor:
    """Pad ``x`` (..., H, W) by ((top, bottom), (left, right)) pixels; a negative number crops.

    Args:
        x: (N, C, H, W).
        pairs: pixels before and after, for each spatial dimension in order.
        mode: ``zeros``, ``reflect``, ``replicate`` or ``circular``, as in ``nn.Conv2d``.

    Raises:
        ValueError: the map is not larger than what is cropped, or is smaller than what is reflected or repeated around it.
    """
    if torch.jit.is_tracing():
        # Widths may follow the size of the image; whether a graph pads or crops would else be fixed by the one it is traced with.
        widths = [width for pair in reversed(pairs) for width in pair]
        if mode == "zeros":
            return F.pad(x, widths)
        padded = [_not_negative(width) for width in widths]
        x = F.pad(x, padded, mode=mode)
        return F.pad(x, [width - there for width, there in zip(widths, padded, strict=True)])
    if any(before > 0 or after > 0 for before, after in pairs):
        _check_repeats(x, pairs, mode)
        widths = [max(width, 0) for pair in reversed(pairs) for width in pair]
        x = F.pad(x, widths) if mode == "zeros" else F.pad(x, widths, mode=mode)
    for dim, (before, after) in enumerate(pairs, start=x.dim() - len(pairs)):
        if before < 0 or after < 0:
            cropped = -min(before, 0) - min(after, 0)
            if x.shape[dim] <= cropped:
                raise ValueError(
                    f"the input of {x.shape[dim]} pixels is smaller than the window, which crops {cropped} "
                    "at the border; use larger images or more padding"
                )
            x = x.narrow(dim, max(-before, 0), x.shape[dim] + min(before, 0) + min(after, 0))
    return x


def _check_repeats(x: Tensor, pairs: PaddingPairs, mode: str) -> None:
    """Raise ValueError if padding needs more pixels than the map has; torch has the same limits."""
    if mode not in ("reflect", "circular") or is_captured():
        return
    for size, pair in zip(x.shape[-len(pairs) :], pairs, strict=True):
        there = size - 1 if mode == "reflect" else size
        if max(pair) > there:
            raise ValueError(
                f"padding_mode={mode!r} can pad a map of {size} pixels by at most {there}, but the window "
                f"reaches {max(pair)} pixels beyond it; use larger images, a smaller window or dilation (of "
                "the attention too), or padding_mode='zeros'"
            )


def _not_negative(pixels: Any) -> Any:
    """``max(pixels, 0)``, which is a part of the graph where sizes are traced as tensors."""
    return pixels.clamp(min=0) if isinstance(pixels, Tensor) else max(pixels, 0)


def per_channel(weight: Tensor, like: Tensor) -> Tensor:
    """(C,) -> (C, 1, 1), or (C, T) -> (C, T, 1, 1), to multiply maps with the dimensions of ``like`` (N, C, H, W)."""
    return weight.reshape(*weight.shape, *(1,) * (like.dim() - 2))


def spatial(x: Tensor) -> tuple[int, ...]:
    """The dimensions of ``x`` after batch and channels."""
    return tuple(range(2, x.dim()))


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

    @property
    def dims(self) -> int:
        """Number of spatial dimensions."""
        return len(self.kernel_size)

    @property
    def is_pointwise(self) -> bool:
        """Whether the window is one pixel, of any stride."""
        return max(self.kernel_size) == 1

    @property
    def repeats_pixels(self) -> bool:
        """Whether the padding consists of pixels of the image, which may have too few."""
        return self.padding_mode in ("reflect", "circular") and max(max(pair) for pair in self.padding) > 0

    @property
    def skips_pixels(self) -> bool:
        """Whether this is a 1x1 window with a stride, which reads every s-th pixel."""
        return self.is_pointwise and max(self.stride) > 1

    def is_product(self, groups: int, in_channels: int) -> bool:
        """Whether the convolution only multiplies channels by numbers, for which torch's convolution is much slower."""
        return self.is_pointwise and groups == in_channels > 1

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
            total = _not_negative((-(-size // s) - 1) * s + span + 1 - size)
            pairs.append((before + total // 2, after + total - total // 2))
        return pad(x, tuple(pairs), self.padding_mode)

    def convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None = None, groups: int = 1) -> Tensor:
        """The convolution of (N, C_in, H, W) over this window: (N, C_out, H', W')."""
        return self.convolve_padded(self.pad(x), weight, bias, groups)

    def convolve_padded(self, x: Tensor, weight: Tensor, bias: Tensor | None = None, groups: int = 1) -> Tensor:
        """The same for a map that is already padded."""
        stride = self.stride
        if self.skips_pixels:
            # torch writes outside of its memory in the gradient of such a convolution on processors with AVX2 alone
            # (docs/execution.md), so the pixels are picked first.
            pick: Any = (Ellipsis, *(slice(None, None, step) for step in stride))
            x, stride = x[pick], (1,) * self.dims
        if self.is_pointwise and weight.shape[1] == 1 < groups:
            return multiply_channels(x, weight, bias)
        return CONVOLVE[self.dims](x, weight, bias, stride, 0, self.dilation, groups)

    def taps(self, x: Tensor) -> list[Tensor]:
        """The pixels of every window, tap by tap: views (N, C, H', W') of an already padded map, in row-major order.

        Raises:
            ValueError: the padded map is smaller than the window.
        """
        reach = [d * (k - 1) for k, d in zip(self.kernel_size, self.dilation, strict=True)]
        sizes = [(n - r - 1) // s + 1 for n, r, s in zip(x.shape[2:], reach, self.stride, strict=True)]
        if min(sizes) < 1:
            raise ValueError(
                f"the padded input of {tuple(x.shape[2:])} pixels is smaller than the window of "
                f"{tuple(r + 1 for r in reach)}; use larger images or more padding"
            )
        views = []
        for tap in product(*map(range, self.kernel_size)):
            firsts = [t * d for t, d in zip(tap, self.dilation, strict=True)]
            reads = [slice(f, f + (n - 1) * s + 1, s) for f, n, s in zip(firsts, sizes, self.stride, strict=True)]
            window: Any = (slice(None), slice(None), *reads)
            views.append(x[window])
        return views

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
        """The same window shifted by this number of pixels."""
        padding = tuple((before - n, after + n) for (before, after), n in zip(self.padding, pixels, strict=True))
        return replace(self, padding=padding)

    def embed(self, kernel: Tensor, window: Geometry) -> Tensor:
        """A kernel (..., kh, kw) over ``window`` as one over this geometry, which has all its taps; zeros elsewhere."""
        larger = kernel.new_zeros(*kernel.shape[: -self.dims], *self.kernel_size)
        slices = []
        for dim, step in enumerate(self.dilation):
            offsets = window.tap_offsets(dim)
            # The centre of a union need not be its middle tap, so positions are counted from its first tap.
            first = window.padding[dim][0] - window.reach[dim][0] - self.padding[dim][0]
            stride = max(window.dilation[dim] // step, 1) if len(offsets) > 1 else 1
            start = (offsets[0] - first) // step
            slices.append(slice(start, start + stride * (len(offsets) - 1) + 1, stride))
        index: Any = (..., *slices)
        larger[index] = kernel
        return larger


@dataclass(frozen=True)
class ConvSite:
    """The place of an attention branch: the convolution beside it, with the device and the dtype of its parameters."""

    in_channels: int
    out_channels: int
    geometry: Geometry
    groups: int = 1
    device: torch.device | str | None = None
    dtype: torch.dtype | None = None

    @property
    def dims(self) -> int:
        """Number of spatial dimensions."""
        return self.geometry.dims

    @property
    def factory(self) -> dict[str, Any]:
        """``device`` and ``dtype``, as keyword arguments of torch's modules."""
        return {"device": self.device, "dtype": self.dtype}
