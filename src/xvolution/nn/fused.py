"""Training a convolution's norm and the Hadamard branch beside it in one operator (``functional.add_attention``).

Whether an operator is computed in this way is decided here alone: see ``serves``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from xvolution.functional import add_attention, convolution
from xvolution.nn.convolution import is_hooked
from xvolution.nn.geometry import CONVOLUTIONS
from xvolution.nn.pixel_shift import PixelShiftAttention1d, PixelShiftAttention2d, PixelShiftAttention3d

_BRANCHES = (PixelShiftAttention1d, PixelShiftAttention2d, PixelShiftAttention3d)
#: Where one operator is worth it. On a GPU it took more time than the modules and hardly less memory (``docs/architecture.md``).
DEVICES = {"cpu"}
#: Elements of the output from which on what is kept is worth an operator's overhead: below, the modules are faster.
SMALLEST = 2**19

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def serves(attention: Any, norm: nn.Module, y: Tensor) -> bool:
    """Whether ``add_branch`` computes ``y + norm(attention(x))``.

    It does for the Hadamard branch with one window over zero padding, where each of the three norms is a batch norm that
    takes the statistics of the batch, on a CPU and where the output is large (``DEVICES``, ``SMALLEST``). Modules that
    somebody hooked, replaced or parametrized run as they are, and so does everything in a graph that is exported, and under
    ``torch.func``, whose gradients torch does not give to operators of ``torch.library``.
    """
    return (
        type(attention) in _BRANCHES
        and attention.similarity == "hadamard"
        and len(attention.windows) == 1
        and not is_hooked(attention)
        and all(_takes_batch_statistics(each) for each in (attention.query_norm, attention.window_norm, norm))
        and all(_is_plain(conv) for conv in (attention.windows[0], attention.value))
        and y.device.type in DEVICES
        and y.numel() > max(y.shape[1], SMALLEST - 1)
        and not torch.compiler.is_exporting()
        and not torch._C._are_functorch_transforms_active()
    )


def add_branch(y: Tensor, x: Tensor, attention: Any, norm: Any) -> Tensor:
    """``y + norm(attention(x))``, where ``serves`` says so; updates the running statistics of the three norms.

    Args:
        y: (N, C_out, H', W'), the convolution branch.
        x: (N, C_in, H, W).
        attention: a ``PixelShiftAttention``.
        norm: the batch norm that follows it.

    Returns:
        (N, C_out, H', W') in the dtype of ``y``.
    """
    query, key = _query_and_key(attention, x)
    query = attention.in_context(query, x)
    window, norms = attention.windows[0], (attention.query_norm, attention.window_norm, norm)
    query_affine, sum_affine, output_affine = (torch.stack([each.weight, each.bias]) for each in norms)
    output, statistics = add_attention(
        y,
        query,
        key,
        window.weight,
        attention.mean_weight,
        query_affine,
        sum_affine,
        attention.value.weight,
        output_affine,
        gate=attention.gate,
        stride=window.stride,
        padding=window.padding,
        dilation=window.dilation,
        eps=[each.eps for each in norms],
    )
    for each, taken in zip(norms, statistics, strict=True):
        _track(each, taken, y.numel() // y.shape[1])
    return output


def _takes_batch_statistics(norm: Any) -> bool:
    return (
        type(norm) in _NORMS
        and (norm.training or norm.running_mean is None)
        and norm.momentum is not None
        and norm.affine
        and not is_hooked(norm)
    )


def _is_plain(conv: Any) -> bool:
    """Whether a convolution's weight and numbers say all that it computes, over zero padding."""
    return type(conv) in CONVOLUTIONS.values() and conv.padding_mode == "zeros" and not is_hooked(conv)


def _query_and_key(attention: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """One convolution computes both where they read the same pixels: one gradient of ``x`` instead of two to be added."""
    query, key = attention.query, attention.key
    ones = (1,) * attention.dims
    same = (query.kernel_size, query.stride, query.padding) == (ones, ones, (0,) * attention.dims)
    if not same or attention.groups > 1 or not _is_plain(query) or not _is_plain(key):
        return query(x), key(x)
    bias = torch.cat([query.bias, torch.zeros_like(query.bias)])
    query_map, key_map = convolution(x, torch.cat([query.weight, key.weight]), bias).chunk(2, 1)
    # Each is read several times, and a part of a map is read with gaps.
    return query_map.clone(), key_map.clone()


def _track(norm: Any, statistics: Tensor, count: int) -> None:
    """Update running statistics from the mean and the biased variance of ``count`` values for each channel."""
    if norm.running_mean is None:
        return
    mean, variance = statistics.to(norm.running_mean.dtype)
    with torch.no_grad():
        norm.num_batches_tracked.add_(1)
        norm.running_mean.lerp_(mean, norm.momentum)
        norm.running_var.lerp_(variance * (count / (count - 1)), norm.momentum)
