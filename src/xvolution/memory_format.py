"""The memory format of weights, on which depends whether torch reorders them in every call."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor, nn

#: With the channels innermost, by the number of dimensions of a weight (C_out, C_in, kh, kw).
_CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}

ModuleT = TypeVar("ModuleT", bound=nn.Module)


def memory_format_of(weight: Tensor) -> torch.memory_format:
    """``torch.channels_last``, or ``channels_last_3d``, where the weight's strides are exactly those; else the contiguous format.

    Strides are used because ``is_contiguous`` is true in both formats for kernels of 1x1 and depthwise convolutions.
    """
    memory_format = _CHANNELS_LAST.get(weight.dim())
    if memory_format is None:
        return torch.contiguous_format
    strides = {
        each: torch.empty(weight.shape, device="meta").to(memory_format=each).stride()
        for each in (torch.contiguous_format, memory_format)
    }
    last = weight.stride() == strides[memory_format] != strides[torch.contiguous_format]
    return memory_format if last else torch.contiguous_format


def with_format_of(like: Tensor, module: ModuleT) -> ModuleT:
    """``module`` with its weights and buffers of as many dimensions as ``like`` in the memory format of that; in place.

    ``module.to(memory_format=...)`` would refuse a vector of a video's operator, (C, 1, 1, 1).
    """
    memory_format = memory_format_of(like)
    if memory_format is not torch.contiguous_format:
        for tensor in (*module.parameters(), *module.buffers()):
            if tensor.dim() == like.dim():
                tensor.data = tensor.data.to(memory_format=memory_format)
    return module
