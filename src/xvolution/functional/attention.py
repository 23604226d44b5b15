"""The attention branches, shift by shift."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from xvolution.functional.windows import (
    all_windows,
    as_tuple,
    convolution,
    pad,
    padding_pairs,
    per_channel,
    spatial,
    window_centres,
    window_taps,
)

Similarity = Literal["hadamard", "dot"]


def pixel_shift_products(
    query: Tensor,
    key: Tensor,
    kernel_size: int | Sequence[int],
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] | str = 0,
    dilation: int | Sequence[int] = 1,
    padding_mode: str = "zeros",
) -> Tensor:
    """The transformed features of pixel shift self-attention: ``q_0 ⊙ k_δ`` for every offset δ of the window.

    Args:
        query: (N, A, H, W), read at the centre of each window.
        key: (N, A, H, W), read at every offset.
        kernel_size, stride, padding, dilation, padding_mode: the window, as in ``nn.Conv2d``.

    Returns:
        (N, A, T, H', W') with the T = kh * kw offsets in row-major order.

    Source: X-volution, section 3.2 (shift, element-wise multiplication).
    """
    dims = query.dim() - 2
    kernel_size, stride, dilation = (as_tuple(value, dims) for value in (kernel_size, stride, dilation))
    pairs = padding_pairs(padding, kernel_size, dilation)
    query, key = pad(query, pairs, padding_mode), pad(key, pairs, padding_mode)
    centres = window_centres(query, kernel_size, stride, dilation)
    return centres.unsqueeze(2) * all_windows(key, kernel_size, stride, dilation)


def pixel_shift_attention(
    x: Tensor,
    query_weight: Tensor,
    key_weight: Tensor,
    value_weight: Tensor,
    window_weight: Tensor,
    query_bias: Tensor | None = None,
    window_bias: Tensor | None = None,
    mean_weight: Tensor | None = None,
    context_weight: Tensor | None = None,
    *,
    similarity: Similarity = "hadamard",
    gate: Callable[[Tensor], Tensor] | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] | str = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    padding_mode: str = "zeros",
) -> Tensor:
    """Pixel shift self-attention (PSSA), as its formula reads.

    ``similarity="hadamard"``::

        a_0 = W^v Σ_δ w_δ ⊙ φ(q_0) ⊙ k_δ  +  W^v ( φ(q_0) ⊙ (g ⊙ mean_t(k_t) + b) )

    ``similarity="dot"`` (the paper's equation 9)::

        a_0 = Σ_δ w_{δ,h} <q_0, k_δ>_h v_δ^{(h)}

    with ``q = W^q x + b^q`` (plus ``W^m mean_t(x_t)`` for ``hadamard``), ``k = W^k x``, ``v = W^v x``. The image
    is padded first, so that query, key and value see the same pixels as a convolution of this geometry.

    Args:
        x: (N, C_in, H, W).
        query_weight, key_weight: (A, C_in / groups, 1, 1).
        value_weight: (C_out, A / groups, 1, 1) for ``hadamard``, (C_out, C_in / groups, 1, 1) for ``dot``.
        window_weight: ``w``, (A, kh, kw) for ``hadamard``, (heads, kh, kw) for ``dot``.
        query_bias: ``b^q``, (A,).
        window_bias: ``b``, (A,), added to the window sum of the keys (``hadamard``).
        mean_weight: ``g``, (A,), the weight of the term over all pixels (``hadamard``); the mean runs over the unpadded image.
        context_weight: ``W^m``, (A, C_in / groups, 1, 1), by which the query sees the unpadded image's mean (``hadamard``).
        gate: ``φ``, applied to the query (``hadamard``); the identity when None.
        stride, padding, dilation, groups, padding_mode: as in ``nn.Conv2d``.

    Returns:
        (N, C_out, H', W').
    """
    kernel_size = tuple(window_weight.shape[1:])
    stride, dilation = as_tuple(stride, len(kernel_size)), as_tuple(dilation, len(kernel_size))
    padded = pad(x, padding_pairs(padding, kernel_size, dilation), padding_mode)
    query = convolution(padded, query_weight, query_bias, groups=groups)
    key = convolution(padded, key_weight, groups=groups)
    if similarity == "dot":
        value = all_windows(convolution(padded, value_weight, groups=groups), kernel_size, stride, dilation)
        heads = window_weight.shape[0]
        products = pixel_shift_products(query, key, kernel_size, stride, 0, dilation)
        scores = products.unflatten(1, (heads, -1)).sum(2) * per_channel(window_weight.flatten(1), x)
        return (scores.unsqueeze(2) * value.unflatten(1, (heads, -1))).sum(3).flatten(1, 2)
    if context_weight is not None:
        query = query + convolution(x.mean(spatial(x), keepdim=True), context_weight, groups=groups)
    query = query if gate is None else gate(query)
    products = pixel_shift_products(query, key, kernel_size, stride, 0, dilation)
    weighted = (per_channel(window_weight.flatten(1), x) * products).sum(2)
    centres = window_centres(query, kernel_size, stride, dilation)
    if mean_weight is not None:
        mean_key = convolution(x, key_weight, groups=groups).mean(spatial(x), keepdim=True)
        weighted = weighted + centres * per_channel(mean_weight, x) * mean_key
    if window_bias is not None:
        weighted = weighted + centres * per_channel(window_bias, x)
    return convolution(weighted, value_weight, groups=groups)


def linear_attention(query: Tensor, key: Tensor, value: Tensor, heads: int = 1) -> Tensor:
    """Self-attention over all pixels without softmax, term by term (the paper's equation 3): ``(1/n) Σ_t v_t <q_0, k_t>_h``.

    Args:
        query: (N, A, H', W').
        key: (N, A, H, W).
        value: (N, C, H, W).
        heads: number of heads; divides A and C.

    Returns:
        (N, C, H', W').
    """
    scores = torch.einsum(
        "nhap,nhat->nhpt", query.flatten(2).unflatten(1, (heads, -1)), key.flatten(2).unflatten(1, (heads, -1))
    )
    mixed = torch.einsum("nhpt,nhct->nhcp", scores, value.flatten(2).unflatten(1, (heads, -1)))
    mixed = mixed / key.flatten(2).shape[2]
    return mixed.flatten(1, 2).unflatten(2, query.shape[2:])


def image_attention(
    x: Tensor,
    query_weight: Tensor,
    query_bias: Tensor,
    value_weight: Tensor,
    key_weight: Tensor | None = None,
    key_bias: Tensor | None = None,
    *,
    gate: Callable[[Tensor], Tensor] = torch.sigmoid,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] | str = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    padding_mode: str = "zeros",
) -> Tensor:
    """Attention with one query for the whole image, shift by shift: ``Σ_δ φ(q) ⊙ W^v_δ x_δ``, ``q = W^q mean(x) + b^q``.

    With keys, ``Σ_δ φ(q) ⊙ W^v_δ (φ(k) ⊙ x_δ)``, ``k = W^k mean(x) + b^k``: how much an output channel hears of an input channel
    is the product of its query and of the other's key.

    Args:
        x: (N, C_in, H, W).
        query_weight: ``W^q``, (C_out, C_in / groups, 1, 1).
        query_bias: ``b^q``, (C_out,).
        value_weight: ``W^v``, (C_out, C_in / groups, kh, kw).
        key_weight, key_bias: ``W^k``, (C_in, C_in / groups, 1, 1), and ``b^k``, (C_in,); no keys when None.
        gate: φ.
        stride, padding, dilation, groups, padding_mode: as in ``nn.Conv2d``.

    Returns:
        (N, C_out, H', W'); one or three dimensions in the place of H, W work alike.
    """
    dims = x.dim() - 2
    kernel_size = tuple(value_weight.shape[2:])
    stride, dilation = as_tuple(stride, dims), as_tuple(dilation, dims)
    mean = x.mean(spatial(x), keepdim=True)
    query = gate(convolution(mean, query_weight, query_bias, groups=groups))
    if key_weight is not None:
        x = gate(convolution(mean, key_weight, key_bias, groups=groups)) * x
    shifted = window_taps(
        pad(x, padding_pairs(padding, kernel_size, dilation), padding_mode), kernel_size, stride, dilation
    )
    taps = value_weight.flatten(2).unbind(2)
    terms = [
        query * convolution(x_tap, per_channel(tap, x), groups=groups) for x_tap, tap in zip(shifted, taps, strict=True)
    ]
    return torch.stack(terms).sum(0)


def shared_value_attention(
    x: Tensor,
    value: Tensor,
    query_weight: Tensor,
    query_bias: Tensor,
    window_weight: Tensor,
    mean_weight: Tensor | None = None,
    *,
    gate: Callable[[Tensor], Tensor] = torch.sigmoid,
    groups: int = 1,
) -> Tensor:
    """Attention over what a convolution computed, shift by shift: ``φ(q) ⊙ (Σ_δ w_δ ⊙ v_δ + g ⊙ mean(v))``.

    The query is the image's, ``q = W^q mean(x) + b^q``.

    Args:
        x: (N, C_in, H, W).
        value: v, the convolution's output, (N, C_out, H', W'); zeros around it.
        query_weight: ``W^q``, (C_out, C_in / groups, 1, 1).
        query_bias: ``b^q``, (C_out,).
        window_weight: w, (C_out, kh, kw).
        mean_weight: g, (C_out,); no term over all pixels when None.
        gate: φ.
        groups: of the query.

    Returns:
        (N, C_out, H', W'); one or three dimensions in the place of H, W work alike.
    """
    ones = (1,) * (x.dim() - 2)
    kernel_size = tuple(window_weight.shape[1:])
    query = gate(convolution(x.mean(spatial(x), keepdim=True), query_weight, query_bias, groups=groups))
    shifted = window_taps(pad(value, padding_pairs("same", kernel_size, ones), "zeros"), kernel_size, ones, ones)
    taps = window_weight.flatten(1).unbind(1)
    terms = [per_channel(tap, v) * v for v, tap in zip(shifted, taps, strict=True)]
    if mean_weight is not None:
        terms.append((per_channel(mean_weight, value) * value.mean(spatial(value), keepdim=True)).expand_as(value))
    return query * torch.stack(terms).sum(0)
