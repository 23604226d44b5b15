"""Reference semantics of X-volution, written to be read: slow and obviously right.

Notation (X-volution, Chen, Wang, Ni, arXiv 2106.02253, section 3): ``x_0`` is the pixel at the centre of a window, ``x_δ`` the
pixel at offset ``δ`` from it, ``W^q``, ``W^k``, ``W^v`` are 1x1 convolutions and ``w_δ`` is one weight for each channel (or head)
and offset. Every fast path of the library is tested against these functions, outputs and gradients.

Shapes are written for images, (N, C, H, W). Signals (N, C, L) and videos (N, C, D, H, W) work alike: a window has as
many sizes as there are dimensions after the channels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from xvolution.kernels.operator import add_attention as _add_attention
from xvolution.kernels.operator import value_statistics

Similarity = Literal["hadamard", "dot"]
PaddingPairs = tuple[tuple[int, int], ...]


_CONVOLUTIONS: dict[int, Callable[..., Tensor]] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


def as_tuple(value: int | Sequence[int], dims: int) -> tuple[int, ...]:
    """``3 -> (3, 3)`` for two dimensions; a sequence of ``dims`` numbers stays what it is.

    Raises:
        ValueError: a sequence of another length.
    """
    if isinstance(value, int):
        return (value,) * dims
    numbers = tuple(int(number) for number in value)
    if len(numbers) != dims:
        raise ValueError(f"{value} has {len(numbers)} numbers for {dims} dimensions; give one number, or one for each")
    return numbers


def padding_pairs(
    padding: int | Sequence[int] | str, kernel_size: Sequence[int], dilation: Sequence[int]
) -> PaddingPairs:
    """Padding of ``nn.Conv2d`` as ((top, bottom), (left, right)) pixels.

    ``"same"`` puts the odd pixel of an even kernel after the image, as ``torch.nn.functional.conv2d`` does.
    """
    if padding == "valid":
        return ((0, 0),) * len(kernel_size)
    if padding == "same":
        totals = [d * (k - 1) for k, d in zip(kernel_size, dilation, strict=True)]
        return tuple((total // 2, total - total // 2) for total in totals)
    if isinstance(padding, str):
        raise ValueError(f"padding is {padding!r}; allowed are 'valid', 'same', an integer or one for each dimension")
    return tuple((pixels, pixels) for pixels in as_tuple(padding, len(kernel_size)))


def convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> Tensor:
    """``conv1d``, ``conv2d`` or ``conv3d`` of an already padded ``x``, by the dimensions of ``weight``."""
    return _CONVOLUTIONS[weight.dim() - 2](x, weight, bias, stride, 0, dilation, groups)


def centre_of(kernel_size: Sequence[int]) -> tuple[int, ...]:
    """Index of the centre tap, ``(K - 1) // 2`` in each dimension: under ``padding='same'`` it reads the pixel itself."""
    return tuple((k - 1) // 2 for k in kernel_size)


def pad(x: Tensor, pairs: PaddingPairs, mode: str = "zeros") -> Tensor:
    """Pad ``x`` (..., H, W) by ((top, bottom), (left, right)) pixels; a negative number crops.

    Args:
        x: (N, C, H, W).
        pairs: pixels before and after, for each spatial dimension in order.
        mode: ``zeros``, ``reflect``, ``replicate`` or ``circular``, as in ``nn.Conv2d``.
    """
    if any(before > 0 or after > 0 for before, after in pairs):
        widths = [max(width, 0) for pair in reversed(pairs) for width in pair]
        x = F.pad(x, widths) if mode == "zeros" else F.pad(x, widths, mode=mode)
    for dim, (before, after) in enumerate(pairs, start=x.dim() - len(pairs)):
        if before < 0 or after < 0:
            cropped = -min(before, 0) - min(after, 0)
            if x.shape[dim] <= cropped:
                raise ValueError(
                    f"{x.shape[dim]} pixels are smaller than the window, which leaves out {cropped} at the border; "
                    "use larger images or more padding"
                )
            x = x.narrow(dim, max(-before, 0), x.shape[dim] + min(before, 0) + min(after, 0))
    return x


def shift(x: Tensor, offset: Sequence[int], padding_mode: str = "zeros") -> Tensor:
    """Shift a feature map: ``shift(x, (dy, dx))[..., i, j] = x[..., i + dy, j + dx]``.

    Args:
        x: (N, C, H, W).
        offset: (dy, dx) in pixels; either may be negative.
        padding_mode: what is read outside of the image, as in ``nn.Conv2d``.

    Returns:
        (N, C, H, W), the pixel at offset ``(dy, dx)`` of every pixel.
    """
    return pad(x, tuple((-distance, distance) for distance in offset), padding_mode)


def window_taps(x: Tensor, kernel_size: Sequence[int], stride: Sequence[int], dilation: Sequence[int]) -> list[Tensor]:
    """The pixels of every window, tap by tap, as views of an already padded map.

    Args:
        x: (N, C, H, W), padded.
        kernel_size, stride, dilation: the window.

    Returns:
        T = kh * kw views of (N, C, H', W'), in row-major order of the taps.

    Raises:
        ValueError: the padded map is smaller than the window.
    """
    size = [
        (n - d * (k - 1) - 1) // s + 1 for n, k, s, d in zip(x.shape[2:], kernel_size, stride, dilation, strict=True)
    ]
    if min(size) < 1:
        raise ValueError(
            f"the padded input of {tuple(x.shape[2:])} pixels is smaller than the window of "
            f"{tuple(d * (k - 1) + 1 for k, d in zip(kernel_size, dilation, strict=True))}; use larger images or more padding"
        )
    taps = []
    for tap in product(*(range(k) for k in kernel_size)):
        firsts = [t * d for t, d in zip(tap, dilation, strict=True)]
        reads = [slice(f, f + (n - 1) * s + 1, s) for f, n, s in zip(firsts, size, stride, strict=True)]
        window: Any = (slice(None), slice(None), *reads)
        taps.append(x[window])
    return taps


def _windows(x: Tensor, kernel_size: Sequence[int], stride: Sequence[int], dilation: Sequence[int]) -> Tensor:
    """(N, C, H, W) -> (N, C, T, H', W')."""
    return torch.stack(window_taps(x, kernel_size, stride, dilation), dim=2)


def _centres(x: Tensor, kernel_size: Sequence[int], stride: Sequence[int], dilation: Sequence[int]) -> Tensor:
    """(N, C, H, W) -> (N, C, H', W'): the centre pixel of each window of an already padded map."""
    tap = 0
    for k, centre in zip(kernel_size, centre_of(kernel_size), strict=True):
        tap = tap * k + centre
    return window_taps(x, kernel_size, stride, dilation)[tap]


def per_channel(weight: Tensor, like: Tensor) -> Tensor:
    """(C,) -> (C, 1, 1), or (C, T) -> (C, T, 1, 1), to multiply maps with the dimensions of ``like`` (N, C, H, W)."""
    return weight.reshape(*weight.shape, *(1,) * (like.dim() - 2))


def spatial(x: Tensor) -> tuple[int, ...]:
    """The dimensions of ``x`` after batch and channels."""
    return tuple(range(2, x.dim()))


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
    return _centres(query, kernel_size, stride, dilation).unsqueeze(2) * _windows(key, kernel_size, stride, dilation)


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
        value = _windows(convolution(padded, value_weight, groups=groups), kernel_size, stride, dilation)
        heads = window_weight.shape[0]
        products = pixel_shift_products(query, key, kernel_size, stride, 0, dilation)
        scores = products.unflatten(1, (heads, -1)).sum(2) * per_channel(window_weight.flatten(1), x)
        return (scores.unsqueeze(2) * value.unflatten(1, (heads, -1))).sum(3).flatten(1, 2)
    if context_weight is not None:
        query = query + convolution(x.mean(spatial(x), keepdim=True), context_weight, groups=groups)
    query = query if gate is None else gate(query)
    products = pixel_shift_products(query, key, kernel_size, stride, 0, dilation)
    weighted = (per_channel(window_weight.flatten(1), x) * products).sum(2)
    centres = _centres(query, kernel_size, stride, dilation)
    if mean_weight is not None:
        mean_key = convolution(x, key_weight, groups=groups).mean(spatial(x), keepdim=True)
        weighted = weighted + centres * per_channel(mean_weight, x) * mean_key
    if window_bias is not None:
        weighted = weighted + centres * per_channel(window_bias, x)
    return convolution(weighted, value_weight, groups=groups)


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


def dynamic_conv(
    x: Tensor,
    kernel: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] | str = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    padding_mode: str = "zeros",
) -> Tensor:
    """Convolution with a kernel of its own at every output pixel.

    Args:
        x: (N, C_in, H, W).
        kernel: (N, C_out, C_in / groups, kh, kw, H', W').
        bias: (N, C_out, H', W') or (C_out,).
        stride, padding, dilation, groups, padding_mode: as in ``nn.Conv2d``.

    Returns:
        (N, C_out, H', W'); one or three dimensions in the place of H, W work alike.
    """
    dims = x.dim() - 2
    kernel_size = tuple(kernel.shape[3 : 3 + dims])
    stride, dilation = as_tuple(stride, dims), as_tuple(dilation, dims)
    windows = _windows(
        pad(x, padding_pairs(padding, kernel_size, dilation), padding_mode), kernel_size, stride, dilation
    )
    y = torch.einsum(
        "ngitp,ngoitp->ngop",
        windows.flatten(3).unflatten(1, (groups, -1)),
        kernel.flatten(3 + dims).flatten(3, 2 + dims).unflatten(1, (groups, -1)),
    )
    y = y.flatten(1, 2).unflatten(2, windows.shape[3:])
    if bias is None:
        return y
    return y + (bias if bias.dim() > 1 else per_channel(bias, x))


#: The names of the family; the dimensions are those of ``x``.
dynamic_conv1d = dynamic_conv2d = dynamic_conv3d = dynamic_conv
