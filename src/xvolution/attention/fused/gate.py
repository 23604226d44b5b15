"""The gate ``φ(norm(q)) ⊙ norm(Σ_δ w_δ ⊙ k_δ + g ⊙ mean(k))`` and its gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from xvolution.geometry import per_channel
from xvolution.numerics import CONVOLVE, GATES, wants_single_precision


@dataclass(frozen=True)
class Gate:
    """The inputs of a gate.

    Args:
        query: (N, A, H', W'), at the centre of each window.
        key: (N, A, H, W).
        window: ``w``, (A, 1, kh, kw).
        mean_weight: ``g``, (A,), or None without the term over all pixels.
        query_affine, sum_affine: (2, A), scale and shift after the normalization of q, of the window sum.
        query_eps, sum_eps: of the two normalizations.
        function: φ: ``identity``, ``sigmoid`` or ``tanh``.
        stride, padding, dilation: of the window; the padding is zeros.
    """

    query: Tensor
    key: Tensor
    window: Tensor
    mean_weight: Tensor | None
    query_affine: Tensor
    sum_affine: Tensor
    query_eps: float
    sum_eps: float
    function: str
    stride: Sequence[int]
    padding: Sequence[int]
    dilation: Sequence[int]

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the products: a product of two features of magnitude 1e3 is beyond the range of fp16."""
        return torch.float32 if self.query.dtype == torch.float16 else self.query.dtype

    @property
    def wide(self) -> torch.dtype:
        """The dtype of statistics."""
        return torch.promote_types(self.query.dtype, torch.float32)


class GateGradients(NamedTuple):
    """Gradients of the inputs of a ``Gate``, in the same order; None for ``mean_weight`` if there is none."""

    query: Tensor
    key: Tensor
    window: Tensor
    mean_weight: Tensor | None
    query_affine: Tensor
    sum_affine: Tensor


def products(gate: Gate) -> tuple[Tensor, Tensor, Tensor]:
    """The gated window sums, with the statistics of this batch.

    Returns:
        (N, A, H', W') in ``gate.dtype``, and mean and biased variance of q and of the window sum, each (2, A).
    """
    query, query_statistics = _normalize(gate.query.to(gate.dtype), gate.query_affine, gate.query_eps)
    normalized_sum, sum_statistics = _normalize(_window_sum(gate), gate.sum_affine, gate.sum_eps)
    return GATES[gate.function].apply_(query).mul_(normalized_sum), query_statistics, sum_statistics


def gradients(
    gate: Gate, query_statistics: Tensor, sum_statistics: Tensor, product_gradient: Callable[[Tensor], Tensor]
) -> GateGradients:
    """Gradients of the gate's inputs; the products are recomputed from their statistics.

    Args:
        gate: the gate.
        query_statistics, sum_statistics: what ``products`` returned.
        product_gradient: gives the gradient (N, A, H', W') of the products from the products.
    """
    query, window_sum = gate.query.to(gate.dtype), _window_sum(gate)
    opened = GATES[gate.function].apply_(_normalize_by(query, query_statistics, gate.query_affine, gate.query_eps))
    normalized_sum = _normalize_by(window_sum, sum_statistics, gate.sum_affine, gate.sum_eps)
    grad = product_gradient(opened * normalized_sum)
    # Freed as soon as may be: these are the largest tensors of the backward pass in half precision.
    sum_grad = grad * opened
    query_grad = GATES[gate.function].backward(grad.mul_(normalized_sum), opened)
    del grad, normalized_sum, opened
    sum_grad, sum_affine_grad = _normalize_backward(sum_grad, window_sum, sum_statistics, gate.sum_affine, gate.sum_eps)
    del window_sum
    query_grad, query_affine_grad = _normalize_backward(
        query_grad, query, query_statistics, gate.query_affine, gate.query_eps
    )
    del query
    query_grad = query_grad.to(gate.query.dtype)
    return GateGradients(query_grad, *_window_sum_backward(gate, sum_grad), query_affine_grad, sum_affine_grad)


def _window_sum(gate: Gate) -> Tensor:
    """``Σ_δ w_δ ⊙ k_δ + g ⊙ mean(k)``, (N, A, H', W') in ``gate.dtype``."""
    key, channels = gate.key, gate.key.shape[1]
    convolve = CONVOLVE[key.dim() - 2]
    window = gate.window.to(key.dtype)
    window_sum = convolve(key, window, None, gate.stride, gate.padding, gate.dilation, channels).to(gate.dtype)
    if gate.mean_weight is None:
        return window_sum
    return window_sum.add_((per_channel(gate.mean_weight.to(gate.wide), key) * _mean_key(gate)).to(gate.dtype))


def _mean_key(gate: Gate) -> Tensor:
    """(N, A, 1, 1)."""
    return gate.key.mean(tuple(range(2, gate.key.dim())), keepdim=True).to(gate.wide)


def _window_sum_backward(gate: Gate, grad: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    key, dims = gate.key, gate.key.dim() - 2
    carrier = torch.float32 if wants_single_precision(key, gate.window, gate.stride, gate.dilation) else key.dtype
    operands = (each.to(carrier) for each in (grad, key, gate.window))
    key_grad, window_grad, _ = torch.ops.aten.convolution_backward(
        *operands, None, gate.stride, gate.padding, gate.dilation, False, [0] * dims,
        key.shape[1], [True, True, False],
    )  # fmt: skip
    if gate.mean_weight is None:
        return key_grad, window_grad, None
    totals = grad.sum(tuple(range(2, grad.dim())), keepdim=True).to(gate.wide)
    shares = per_channel(gate.mean_weight.to(gate.wide), key) * totals / key[0, 0].numel()
    return key_grad.add_(shares.to(carrier)), window_grad, (totals * _mean_key(gate)).flatten(1).sum(0)


def _normalize(x: Tensor, affine: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Batch normalization of ``x`` and the mean and biased variance that it took, (2, C)."""
    scale, shift = affine.to(_wide(x))
    mean, variance = torch.zeros_like(scale), torch.zeros_like(scale)
    # With momentum 1 the running statistics become those of the batch.
    y = F.batch_norm(x, mean, variance, scale, shift, training=True, momentum=1.0, eps=eps)
    count = x.numel() // x.shape[1]
    return y, torch.stack([mean, variance * ((count - 1) / count)])


def _normalize_by(x: Tensor, statistics: Tensor, affine: Tensor, eps: float) -> Tensor:
    scale, shift = affine.to(_wide(x))
    return F.batch_norm(x, statistics[0], statistics[1], scale, shift, training=False, eps=eps)


def _normalize_backward(
    grad: Tensor, x: Tensor, statistics: Tensor, affine: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    mean, variance = statistics
    x_grad, scale_grad, shift_grad = torch.ops.aten.native_batch_norm_backward(
        grad, x, affine[0].to(_wide(x)), None, None, mean, (variance + eps).rsqrt(), True, eps, [True, True, True]
    )
    return x_grad, torch.stack([scale_grad, shift_grad])


def _wide(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)
