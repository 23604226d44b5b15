"""What a training step computes as one operator."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from xvolution.kernels.operator import add_attention as _add_attention
from xvolution.kernels.operator import value_statistics


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

    One operator, ``xvolution::add_attention``, computes it as suits the device; for its gradient it keeps query and key.

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
