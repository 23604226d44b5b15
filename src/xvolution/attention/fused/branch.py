"""``y + norm(W^v p)`` for gated window sums ``p``, with the statistics of the batch.

``a = W^v p`` is never stored, since its statistics follow from those of ``p``, which has a quarter of its channels::

    mean(a) = W mean(p),     var(a) = diag(W cov(p) W^T)

The normalized projection is then one 1x1 convolution onto ``y``. Its gradient is two: with G the gradient of the output,
``M = G (p - mean(p))^T`` summed over all pixels, ``S = diag(M W^T) / std(a)`` and ``α`` the norm's scale over ``std(a)``::

    dW = α (M - S W cov(p) / std(a)),     dp = (α W)^T (G - mean(G)) - W^T diag(α S / (n std(a))) W (p - mean(p))
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from xvolution.attention.fused import gate as gates
from xvolution.attention.fused.gate import Gate, GateGradients
from xvolution.numerics import CONVOLVE, narrow


class Statistics(NamedTuple):
    """Of one batch: means and biased variances (2, A) of q and of the window sum, and the moments of the products.

    ``covariance`` is (groups, A / groups, A / groups).
    """

    query: Tensor
    window_sum: Tensor
    mean: Tensor
    covariance: Tensor


@dataclass(frozen=True)
class Branch:
    """A gate, and the projection of its products with the norm after it.

    Args:
        gate: what is projected.
        value: ``W^v``, (C, A / groups, 1, 1).
        affine: (2, C), scale and shift of the norm.
        eps: of the norm.
    """

    gate: Gate
    value: Tensor
    affine: Tensor
    eps: float

    @property
    def groups(self) -> int:
        return self.gate.query.shape[1] // self.value.shape[1]

    @property
    def weight(self) -> Tensor:
        """``W``, (groups, C / groups, A / groups)."""
        return self.value.to(self.gate.wide).reshape(self.groups, -1, self.value.shape[1])

    def inverse_deviation(self, covariance: Tensor) -> Tensor:
        """``1 / std(a)``, (C,)."""
        return (projected_variance(self.weight, covariance) + self.eps).rsqrt()


def projected_variance(weight: Tensor, covariance: Tensor) -> Tensor:
    """Variances (C,) of ``W p``, from W (groups, C / groups, A / groups) and ``cov(p)``."""
    return ((weight @ covariance) * weight).sum(2).flatten()


def add_to(y: Tensor, branch: Branch) -> tuple[Tensor, Statistics]:
    """``y + norm(W^v p)``, (N, C, H', W') in the dtype and memory format of ``y``, and the statistics taken."""
    product, query_statistics, sum_statistics = gates.products(branch.gate)
    mean = _total(product) / _pixels(product)
    product = _centred(product, mean)
    covariance = _outer(product, product, branch.groups) / _pixels(product)
    scale = branch.affine[0].to(mean.dtype) * branch.inverse_deviation(covariance)
    carrier = _carrier(y)
    attended = _pointwise(product.to(carrier), _scaled(branch.weight, scale), branch.affine[1].to(carrier))
    return like(narrow(attended.add_(y), y.dtype), y), Statistics(query_statistics, sum_statistics, mean, covariance)


def gradients(branch: Branch, grad: Tensor, statistics: Statistics) -> tuple[GateGradients, Tensor, Tensor]:
    """Gradients of what the gate reads, of ``value`` and of ``affine`` from ``grad``, that of the output.

    Everything between the query, the key and the output is computed again.
    """
    weight, pixels, carrier = branch.weight, _pixels(grad), _carrier(grad)
    grad = grad.to(carrier)
    inverse = branch.inverse_deviation(statistics.covariance)
    scale = branch.affine[0].to(inverse.dtype) * inverse
    shift_grad = _total(grad)
    parameter_grads: list[Tensor] = []

    def product_gradient(product: Tensor) -> Tensor:
        centred = _centred(product, statistics.mean).to(carrier)
        outer = _outer(grad, centred, branch.groups)
        scale_grad = (outer * weight).sum(2).flatten() * inverse
        value_grad = _scaled(outer - _scaled(weight @ statistics.covariance, scale_grad * inverse), scale)
        parameter_grads.extend((value_grad.reshape(branch.value.shape), torch.stack([scale_grad, shift_grad])))
        scaled = _scaled(weight, scale)
        from_scale = -weight.mT @ _scaled(weight, scale * scale_grad * inverse / pixels)
        from_shift = -(scaled.mT @ shift_grad.reshape(branch.groups, -1, 1)).flatten() / pixels
        product_grad = _pointwise(grad, scaled.mT, from_shift.to(carrier)).add_(_pointwise(centred, from_scale))
        return product_grad.to(branch.gate.dtype)

    inputs = gates.gradients(branch.gate, statistics.query, statistics.window_sum, product_gradient)
    value_grad, affine_grad = parameter_grads
    return inputs, value_grad, affine_grad


def like(x: Tensor, template: Tensor) -> Tensor:
    """``x`` with the strides of ``torch.empty_like(template)``."""
    expected = torch.empty_like(template, device="meta").stride()
    return x if x.stride() == expected else torch.empty_like(template, dtype=x.dtype).copy_(x)


def _centred(x: Tensor, mean: Tensor) -> Tensor:
    """``x - mean`` by channel: torch's normalization takes a fraction of its broadcast subtraction's time on a CPU."""
    vanishing = 1e-30  # some versions of torch refuse 0, and 1 + 1e-30 is 1
    return F.batch_norm(x, mean, torch.ones_like(mean), eps=vanishing)


def _carrier(x: Tensor) -> torch.dtype:
    """The dtype of the projection: that of the features, but fp32 where fp16 would overflow."""
    return torch.float32 if x.dtype == torch.float16 else x.dtype


def _pointwise(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """The 1x1 convolution of ``x`` by ``weight``, (groups, out / groups, in / groups)."""
    kernel = weight.to(x.dtype).flatten(0, 1).reshape(-1, weight.shape[2], *(1,) * (x.dim() - 2))
    return CONVOLVE[x.dim() - 2](x, kernel, bias, groups=weight.shape[0])


def _outer(a: Tensor, b: Tensor, groups: int) -> Tensor:
    """``Σ a_c b_d`` over batch and pixels for the channels of each group: (groups, C_a / groups, C_b / groups)."""
    a, b = (x.flatten(2).unflatten(1, (groups, -1)) for x in (a, b))
    return (a @ b.mT).sum(0, dtype=torch.promote_types(a.dtype, torch.float32))


def _total(x: Tensor) -> Tensor:
    """Sum over batch and pixels in at least fp32, image by image, so that no wider copy of ``x`` is needed: (C,)."""
    return x.flatten(2).sum(2).sum(0, dtype=torch.promote_types(x.dtype, torch.float32))


def _scaled(weight: Tensor, scale: Tensor) -> Tensor:
    """The rows of ``weight`` (groups, C / groups, A / groups) times ``scale`` (C,)."""
    return weight * scale.reshape(*weight.shape[:2], 1)


def _pixels(x: Tensor) -> int:
    return x.numel() // x.shape[1]
