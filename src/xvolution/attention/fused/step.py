"""A training step of ``PixelShift`` with its norms in one operator of torch's dispatcher (``add_attention``).

It takes about a tenth off the step of a network in fp32 and up to a third off its peak memory (docs/architecture.md).

Whether an operator is computed in this way is decided here alone: see ``serves``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from xvolution.attention.fused.operator import add_attention as _add_attention
from xvolution.attention.fused.operator import value_statistics
from xvolution.convolutions import CONVOLUTIONS, is_hooked
from xvolution.numerics import CONVOLVE

#: Elements of the output from which on what is kept is worth an operator's overhead: below, the modules are faster.
SMALLEST = 2**19

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def serves(attention: Any, norm: nn.Module, y: Tensor) -> bool:
    """Whether ``add_branch`` computes ``y + norm(attention(x))``.

    It does for a ``PixelShiftAttention`` with one window over zero padding, where each of the three norms is a batch norm that
    takes the statistics of the batch, on a CPU (on a GPU the modules are as fast) and where the output is large. Modules that
    somebody hooked, patched, replaced or parametrized run as they are, and so does everything in a graph that is exported or
    traced, and under ``torch.func``, whose gradients torch does not give to operators of ``torch.library``.
    """
    return (
        len(attention.windows) == 1
        and not is_hooked(attention)
        and "forward" not in attention.__dict__
        and all(_takes_batch_statistics(each) for each in (attention.query_norm, attention.window_norm, norm))
        and all(_is_plain(conv) for conv in (attention.windows[0], attention.value))
        and y.device.type == "cpu"
        and y.numel() > max(y.shape[1], SMALLEST - 1)
        and not torch.compiler.is_exporting()
        and not torch.jit.is_tracing()
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


def add_attention(
    y: Tensor,
    query: Tensor,
    key: Tensor,
    window_weight: Tensor,
    mean_weight: Tensor | None,
    query_affine: Tensor,
    sum_affine: Tensor,
    value_weight: Tensor,
    output_affine: Tensor,
    *,
    gate: str,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    eps: Sequence[float],
) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
    """The training step's sum of both branches, with the statistics of the batch in the place of running ones::

        y + norm_a( W^v ( φ(norm_q(q_0)) ⊙ norm_k(Σ_δ w_δ ⊙ k_δ + g ⊙ mean(k)) ) )

    One operator, ``xvolution::add_attention``; for its gradient it keeps query and key.

    Args:
        y: (N, C_out, H', W'), the convolution branch.
        query: (N, A, H', W'), at the centre of each window.
        key: (N, A, H, W).
        window_weight: ``w``, (A, 1, kh, kw).
        mean_weight: ``g``, (A,), or None without the term over all pixels.
        query_affine, sum_affine: (2, A), scale and shift of norm_q and norm_k.
        value_weight: (C_out, A / groups, 1, 1).
        output_affine: (2, C_out), scale and shift of norm_a.
        gate: φ, ``identity``, ``sigmoid`` or ``tanh``.
        stride, padding, dilation: of the window, for each dimension; the padding is zeros.
        eps: of norm_q, norm_k and norm_a.

    Returns:
        (N, C_out, H', W') in the dtype and memory format of ``y``, and means and biased variances of what the three norms
        normalized: (2, A), (2, A), (2, C_out), in at least fp32 and without gradient.
    """
    output, query_statistics, sum_statistics, mean, covariance = _add_attention(
        y, query, key, window_weight, mean_weight, query_affine, sum_affine, value_weight, output_affine,
        gate, stride, padding, dilation, eps,
    )  # fmt: skip
    with torch.no_grad():
        return output, (query_statistics, sum_statistics, value_statistics(value_weight, mean, covariance))


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
    maps = CONVOLVE[attention.dims](x, torch.cat([query.weight, key.weight]), bias)
    query_map, key_map = maps.chunk(2, 1)
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
