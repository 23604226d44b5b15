"""The operators of ``xvolution::`` in torch's own functions: the reference of their tests, and the second derivative."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from xvolution.geometry import per_channel
from xvolution.numerics import CONVOLVE, GATES


def add_attention(
    y: Tensor,
    query: Tensor,
    key: Tensor,
    window: Tensor,
    mean_weight: Tensor | None,
    query_affine: Tensor,
    sum_affine: Tensor,
    value: Tensor,
    affine: Tensor,
    function: str,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    eps: Sequence[float],
) -> Tensor:
    """``y + norm(W^v (φ(norm(q)) ⊙ norm(Σ_δ w_δ ⊙ k_δ + g ⊙ mean(k))))``"""
    convolve, channels = CONVOLVE[key.dim() - 2], key.shape[1]
    window_sum = convolve(key, window, None, stride, padding, dilation, channels)
    if mean_weight is not None:
        mean_key = key.mean(tuple(range(2, key.dim())), keepdim=True)
        window_sum = window_sum + per_channel(mean_weight, key) * mean_key
    opened = GATES[function].apply(_normalize(query, query_affine, eps[0]))
    product = opened * _normalize(window_sum, sum_affine, eps[1])
    return y + _normalize(convolve(product, value, groups=channels // value.shape[1]), affine, eps[2])


def _normalize(x: Tensor, affine: Tensor, eps: float) -> Tensor:
    return F.batch_norm(x, None, None, affine[0], affine[1], training=True, eps=eps)
