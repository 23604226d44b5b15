"""Where half precision would overflow: products of features are computed in fp32 and come back saturated."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from xvolution.functional import convolution


def without_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """A context in which autocast is off; the meta device has none to switch off."""
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)


def widen(*tensors: Tensor) -> tuple[Tensor, ...]:
    """fp16 tensors become fp32, all others stay what they are.

    A product of two features of magnitude 1e3 is beyond fp16's 65504; bfloat16 has the range of fp32.
    """
    return tuple(tensor.float() if tensor.dtype == torch.float16 else tensor for tensor in tensors)


def narrow(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Cast to ``dtype``; beyond the range of fp16 the result is its largest finite number, never an infinity."""
    if dtype == torch.float16 and x.dtype != dtype:
        limit = torch.finfo(dtype).max
        return x.clamp(-limit, limit).to(dtype)
    return x.to(dtype)


def add(y: Tensor, attended: Tensor) -> Tensor:
    """``y + attended`` in the dtype of ``y``, saturated like ``narrow``."""
    if y.dtype == torch.float16:
        return narrow(y.float() + attended.float(), y.dtype)
    return y + attended.to(y.dtype)


def apply_wide(conv: Any, x: Tensor, source: torch.dtype) -> Tensor:
    """``conv(x)`` for a bias-free 1x1 convolution; in fp32, even under autocast, when ``x`` was widened from fp16.

    Args:
        conv: 1x1 convolution without bias.
        x: (N, A, H, W).
        source: dtype of the features before they were widened.

    Returns:
        (N, C, H, W), saturated to the range of the parameters' dtype.
    """
    if source != torch.float16:
        return conv(x)
    with without_autocast(x.device):
        y = convolution(x, conv.weight.to(x.dtype), groups=conv.groups)
    return narrow(y, conv.weight.dtype)
