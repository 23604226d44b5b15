"""1x1 convolutions computed as matrix products where that is faster than torch's convolution."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from xvolution.convolutions import CONVOLUTIONS, is_hooked
from xvolution.numerics import add, is_captured, owned

_DTYPES = (torch.float32, torch.float64, torch.bfloat16)


def project(conv: Any, x: Tensor, parts: int = 1) -> tuple[Tensor, ...]:
    """``conv(x).chunk(parts, 1)`` of a 1x1 convolution of stride 1.

    Args:
        conv: the convolution.
        x: (N, C, H, W), in any number of dimensions.
        parts: into how many maps the output channels are divided.

    Returns:
        ``parts`` maps of (N, C_out / parts, H, W), in the memory format of ``x``.
    """
    if not _is_product(conv, x):
        y = conv(x)
        return y.chunk(parts, 1) if parts > 1 else (y,)
    weight = conv.weight.flatten(1)
    if x.is_contiguous():
        weights = weight.expand(len(x), -1, -1)
        y = torch.baddbmm(conv.bias[:, None], weights, x.flatten(2)) if _has_bias(conv) else weights @ x.flatten(2)
        return y.unflatten(2, x.shape[2:]).chunk(parts, 1)
    # One product for each part: with the channels innermost, a chunk of them would be read with gaps.
    biases = conv.bias.chunk(parts) if _has_bias(conv) else (None,) * parts
    pixels = x.movedim(1, -1)
    return tuple(F.linear(pixels, w, b).movedim(-1, 1) for w, b in zip(weight.chunk(parts), biases, strict=True))


def project_onto(y: Tensor, conv: Any, x: Tensor) -> Tensor:
    """``y + conv(x)`` of a 1x1 convolution of stride 1 without bias, in one matrix product that adds to ``y``.

    Args:
        y: (N, C_out, H, W), in any number of dimensions.
        conv: the convolution.
        x: (N, C, H, W).

    Returns:
        (N, C_out, H, W), in the memory format of ``x``; in that of ``y`` where ``x`` has one channel, and so is in both.
    """
    if not _is_product(conv, x) or y.dtype != x.dtype:
        return add(y, conv(x))
    weight = conv.weight.flatten(1)
    in_both = x.is_contiguous() and x.movedim(1, -1).is_contiguous()
    if x.is_contiguous() and not (in_both and y.stride(1) == 1):
        return owned(torch.baddbmm(y.flatten(2), weight.expand(len(x), -1, -1), x.flatten(2)).unflatten(2, x.shape[2:]))
    pixels = x.movedim(1, -1)
    rows = torch.addmm(y.movedim(1, -1).flatten(0, -2), pixels.flatten(0, -2), weight.t())
    return owned(rows.unflatten(0, pixels.shape[:-1]).movedim(-1, 1))


def _has_bias(conv: Any) -> bool:
    return conv.bias is not None


def _is_product(conv: Any, x: Tensor) -> bool:
    """Whether to compute ``conv(x)`` as a matrix product: eagerly on the CPU, on maps that need no copy for it.

    A captured graph keeps its convolution, which compilers and other runtimes know best, and so does a module that
    somebody hooked, replaced or parametrized.
    """
    return (
        type(conv) in CONVOLUTIONS.values()
        and conv.groups == 1
        and not is_hooked(conv)
        and x.device.type == "cpu"
        and x.dtype == conv.weight.dtype
        and x.dtype in _DTYPES
        and x.numel() > 0
        and not is_captured()
        and (x.is_contiguous() or x.movedim(1, -1).is_contiguous())
    )
