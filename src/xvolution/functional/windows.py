"""Windows of pixels: padding, shifts, taps, and convolutions with one kernel or with one for each pixel."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

PaddingPairs = tuple[tuple[int, int], ...]

_CONVOLUTIONS: dict[int, Callable[..., Tensor]] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


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


def convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> Tensor:
    """``conv1d``, ``conv2d`` or ``conv3d`` of an already padded ``x``, by the dimensions of ``weight``."""
    return _CONVOLUTIONS[weight.dim() - 2](x, weight, bias, stride, 0, dilation, groups)


def centre_of(kernel_size: Sequence[int]) -> tuple[int, ...]:
    """Index of the centre tap, ``(K - 1) // 2`` in each dimension: under ``padding='same'`` it reads the pixel itself."""
    return tuple((k - 1) // 2 for k in kernel_size)


def pad(x: Tensor, pairs: PaddingPairs, mode: str = "zeros") -> Tensor:
    """Pad ``x`` (..., H, W) by ((top, bottom), (left, right)) pixels; a negative number crops.

    Args:
        x: (N, C, H, W).
        pairs: pixels before and after, for each spatial dimension in order.
        mode: ``zeros``, ``reflect``, ``replicate`` or ``circular``, as in ``nn.Conv2d``.
    """
    if any(before > 0 or after > 0 for before, after in pairs):
        widths = [max(width, 0) for pair in reversed(pairs) for width in pair]
        x = F.pad(x, widths) if mode == "zeros" else F.pad(x, widths, mode=mode)
    for dim, (before, after) in enumerate(pairs, start=x.dim() - len(pairs)):
        if before < 0 or after < 0:
            cropped = -min(before, 0) - min(after, 0)
            if x.shape[dim] <= cropped:
                raise ValueError(
                    f"{x.shape[dim]} pixels are smaller than the window, which leaves out {cropped} at the border; "
                    "use larger images or more padding"
                )
            x = x.narrow(dim, max(-before, 0), x.shape[dim] + min(before, 0) + min(after, 0))
    return x


def shift(x: Tensor, offset: Sequence[int], padding_mode: str = "zeros") -> Tensor:
    """Shift a feature map: ``shift(x, (dy, dx))[..., i, j] = x[..., i + dy, j + dx]``.

    Args:
        x: (N, C, H, W).
        offset: (dy, dx) in pixels; either may be negative.
        padding_mode: what is read outside of the image, as in ``nn.Conv2d``.

    Returns:
        (N, C, H, W), the pixel at offset ``(dy, dx)`` of every pixel.
    """
    return pad(x, tuple((-distance, distance) for distance in offset), padding_mode)


def window_taps(x: Tensor, kernel_size: Sequence[int], stride: Sequence[int], dilation: Sequence[int]) -> list[Tensor]:
    """The pixels of every window, tap by tap, as views of an already padded map.

    Args:
        x: (N, C, H, W), padded.
        kernel_size, stride, dilation: the window.

    Returns:
        T = kh * kw views of (N, C, H', W'), in row-major order of the taps.

    Raises:
        ValueError: the padded map is smaller than the window.
    """
    size = [
        (n - d * (k - 1) - 1) // s + 1 for n, k, s, d in zip(x.shape[2:], kernel_size, stride, dilation, strict=True)
    ]
    if min(size) < 1:
        raise ValueError(
            f"the padded input of {tuple(x.shape[2:])} pixels is smaller than the window of "
            f"{tuple(d * (k - 1) + 1 for k, d in zip(kernel_size, dilation, strict=True))}; use larger images or more padding"
        )
    taps = []
    for tap in product(*(range(k) for k in kernel_size)):
        firsts = [t * d for t, d in zip(tap, dilation, strict=True)]
        reads = [slice(f, f + (n - 1) * s + 1, s) for f, n, s in zip(firsts, size, stride, strict=True)]
        window: Any = (slice(None), slice(None), *reads)
        taps.append(x[window])
    return taps


def all_windows(x: Tensor, kernel_size: Sequence[int], stride: Sequence[int], dilation: Sequence[int]) -> Tensor:
    """(N, C, H, W) -> (N, C, T, H', W')."""
    return torch.stack(window_taps(x, kernel_size, stride, dilation), dim=2)


def window_centres(x: Tensor, kernel_size: Sequence[int], stride: Sequence[int], dilation: Sequence[int]) -> Tensor:
    """(N, C, H, W) -> (N, C, H', W'): the centre pixel of each window of an already padded map."""
    tap = 0
    for k, centre in zip(kernel_size, centre_of(kernel_size), strict=True):
        tap = tap * k + centre
    return window_taps(x, kernel_size, stride, dilation)[tap]


def per_channel(weight: Tensor, like: Tensor) -> Tensor:
    """(C,) -> (C, 1, 1), or (C, T) -> (C, T, 1, 1), to multiply maps with the dimensions of ``like`` (N, C, H, W)."""
    return weight.reshape(*weight.shape, *(1,) * (like.dim() - 2))


def spatial(x: Tensor) -> tuple[int, ...]:
    """The dimensions of ``x`` after batch and channels."""
    return tuple(range(2, x.dim()))


def dynamic_conv(
    x: Tensor,
    kernel: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] | str = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    padding_mode: str = "zeros",
) -> Tensor:
    """Convolution with a kernel of its own at every output pixel.

    Args:
        x: (N, C_in, H, W).
        kernel: (N, C_out, C_in / groups, kh, kw, H', W').
        bias: (N, C_out, H', W') or (C_out,).
        stride, padding, dilation, groups, padding_mode: as in ``nn.Conv2d``.

    Returns:
        (N, C_out, H', W'); one or three dimensions in the place of H, W work alike.
    """
    dims = x.dim() - 2
    kernel_size = tuple(kernel.shape[3 : 3 + dims])
    stride, dilation = as_tuple(stride, dims), as_tuple(dilation, dims)
    windows = all_windows(
        pad(x, padding_pairs(padding, kernel_size, dilation), padding_mode), kernel_size, stride, dilation
    )
    y = torch.einsum(
        "ngitp,ngoitp->ngop",
        windows.flatten(3).unflatten(1, (groups, -1)),
        kernel.flatten(3 + dims).flatten(3, 2 + dims).unflatten(1, (groups, -1)),
    )
    y = y.flatten(1, 2).unflatten(2, windows.shape[3:])
    if bias is None:
        return y
    return y + (bias if bias.dim() > 1 else per_channel(bias, x))


#: The names of the family; the dimensions are those of ``x``.
dynamic_conv1d = dynamic_conv2d = dynamic_conv3d = dynamic_conv
