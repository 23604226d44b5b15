"""Windows and a convolution with one kernel for each pixel, written for readability: the references of the attention branches
use them. They are slow; no operator of the library is computed by them.

Shapes are written for images, (N, C, H, W). Signals (N, C, L) and videos (N, C, D, H, W) work alike: a window has as many
sizes as there are dimensions after the channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def shift(x: Tensor, offset: Sequence[int], padding_mode: str = "zeros") -> Tensor:
    """Shift a feature map: ``shift(x, (dy, dx))[..., i, j] = x[..., i + dy, j + dx]``.

    Args:
        x: (N, C, H, W).
        offset: (dy, dx) in pixels; either may be negative.
        padding_mode: what is read outside of the image, as in ``nn.Conv2d``.

    Returns:
        (N, C, H, W), the pixel at offset ``(dy, dx)`` of every pixel.
    """
    reach = [abs(distance) for distance in offset]
    padded = pad(x, reach, reach, padding_mode)
    for dim, (distance, pixels) in enumerate(zip(offset, reach, strict=True), start=2):
        padded = padded.narrow(dim, pixels + distance, x.shape[dim])
    return padded


def pad(x: Tensor, before: Sequence[int], after: Sequence[int], mode: str = "zeros") -> Tensor:
    """``x`` with so many pixels before and after it in each dimension, none negative, as ``nn.Conv2d`` pads."""
    widths = [pixels for pair in zip(reversed(before), reversed(after), strict=True) for pixels in pair]
    return F.pad(x, widths, mode="constant" if mode == "zeros" else mode)


def padded_for(
    x: Tensor, padding: int | Sequence[int] | str, kernel_size: Sequence[int], dilation: Sequence[int], mode: str
) -> Tensor:
    """``x`` padded by ``padding`` of ``nn.Conv2d``."""
    reach = [d * (k - 1) for k, d in zip(kernel_size, dilation, strict=True)]
    if padding == "same":
        return pad(x, [r // 2 for r in reach], [r - r // 2 for r in reach], mode)
    pixels: Any = 0 if padding == "valid" else padding
    pixels = [pixels] * len(reach) if isinstance(pixels, int) else list(pixels)
    return pad(x, pixels, pixels, mode)


def windows(x: Tensor, kernel_size: Sequence[int], stride: Sequence[int], dilation: Sequence[int]) -> Tensor:
    """(N, C, H, W), padded already -> (N, C, T, H', W'): the T = kh * kw pixels of every window, row by row."""
    taps = []
    for tap in product(*(range(k) for k in kernel_size)):
        view = x
        for dim, (t, k, s, d) in enumerate(zip(tap, kernel_size, stride, dilation, strict=True), start=2):
            outputs = (x.shape[dim] - d * (k - 1) - 1) // s + 1
            view = view.index_select(dim, t * d + s * torch.arange(outputs, device=x.device))
        taps.append(view)
    return torch.stack(taps, dim=2)


def centres(x: Tensor, kernel_size: Sequence[int], stride: Sequence[int], dilation: Sequence[int]) -> Tensor:
    """(N, C, H, W), padded already -> (N, C, H', W'): the pixel under the tap (K - 1) // 2 of every window."""
    middle = 0
    for k in kernel_size:
        middle = middle * k + (k - 1) // 2
    return windows(x, kernel_size, stride, dilation)[:, :, middle]


def mixed(x: Tensor, weight: Tensor, bias: Tensor | None = None, groups: int = 1) -> Tensor:
    """The 1x1 convolution by ``weight``, (C_out, C_in / groups, 1, 1): (N, C_in, ...) -> (N, C_out, ...)."""
    matrix = weight.flatten(1).unflatten(0, (groups, -1))
    y = torch.einsum("goi,ngi...->ngo...", matrix, x.unflatten(1, (groups, -1))).flatten(1, 2)
    return y if bias is None else y + bias.reshape(-1, *(1,) * (x.dim() - 2))


def image_average(x: Tensor) -> Tensor:
    """(N, C, H, W) -> (N, C, 1, 1)."""
    return x.flatten(2).sum(2).reshape(*x.shape[:2], *(1,) * (x.dim() - 2)) / x[0, 0].numel()


def each(value: int | Sequence[int], dims: int) -> tuple[int, ...]:
    """``3 -> (3, 3)``."""
    return (value,) * dims if isinstance(value, int) else tuple(value)


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
    kernel_size, spaces = tuple(kernel.shape[3 : 3 + dims]), each(dilation, dims)
    pixels = windows(padded_for(x, padding, kernel_size, spaces, padding_mode), kernel_size, each(stride, dims), spaces)
    y = torch.einsum(
        "ngitp,ngoitp->ngop",
        pixels.flatten(3).unflatten(1, (groups, -1)),
        kernel.flatten(3 + dims).flatten(3, 2 + dims).unflatten(1, (groups, -1)),
    )
    y = y.flatten(1, 2).unflatten(2, pixels.shape[3:])
    if bias is None:
        return y
    return y + (bias if bias.dim() > 1 else bias.reshape(-1, *(1,) * dims))
