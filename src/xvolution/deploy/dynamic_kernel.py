"""The operator read as a dynamic convolution: its kernel at one pixel."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from itertools import product
from typing import Any, Literal, overload

import torch
from torch import Tensor, nn

from xvolution.deploy.fold import (
    FoldedConvolution,
    FoldedGate,
    FoldedOperator,
    embed,
    fold,
    shifted_keys,
    union_of,
)
from xvolution.functional import centre_of, per_channel, spatial, window_taps
from xvolution.functional import convolution as convolve
from xvolution.nn import ImageAttention, LinearAttention, PixelShiftAttention, SharedValueAttention, XVolution
from xvolution.nn.geometry import Geometry
from xvolution.nn.pixel_shift import GATES


@overload
def dynamic_kernel(
    module: XVolution, x: Tensor, position: Sequence[int], return_bias: Literal[False] = False
) -> Tensor: ...


@overload
def dynamic_kernel(
    module: XVolution, x: Tensor, position: Sequence[int], return_bias: Literal[True]
) -> tuple[Tensor, Tensor]: ...


@torch.no_grad()
def dynamic_kernel(
    module: XVolution, x: Tensor, position: Sequence[int], return_bias: bool = False
) -> Tensor | tuple[Tensor, Tensor]:
    """The kernel that the operator applies at one output pixel, which depends on the image.

    At that pixel ``output = Σ kernel * patch + bias``, with ``patch`` the padded input under the window::

        W(x_0)_δ = W^c_δ + W^v diag(φ(q_0) ⊙ w_δ) W^k            (pssa, hadamard)
        W(x_0)_δ = W^c_δ + Σ_h w_{δ,h} <q_0, k_δ>_h W^v_h         (pssa, dot)
        W(x_0)_δ = W^c_δ + [δ = 0] M(x) W^q                      (linear)
        W(x_0)_δ = W^c_δ + diag(φ(q)) W^v_δ diag(φ(k))           (image; q and k of mean(x), the latter with channel_keys)
        W(x_0)_δ = W^c_δ + Σ_ε diag(φ(q) ⊙ w_ε) W_{δ-ε}          (shared; W before its norm, q of mean(x))

    Args:
        module: an ``XVolution`` in eval mode, with the ``pssa``, the ``linear``, the ``image`` or the ``shared`` branch.
        x: (N, C_in, H, W), or with the dimensions of the operator.
        position: (row, column) of the output pixel, one number for each dimension.
        return_bias: also return the bias at that pixel, which holds everything that does not multiply the patch: folded batch
            norms, the term over all pixels, the bias of the query.

    Returns:
        The kernel (N, C_out, C_in / groups, kh, kw), in the dtype of ``x``; with ``return_bias`` also the bias (N, C_out). The
        window is the convolution's, or the smallest regular one that also has all shifts where they reach further; for
        ``shared`` the one that the convolution and the window over its outputs see together.

    Raises:
        ValueError: train mode, a position outside of the output, a branch that is no dynamic convolution over a window
            (``global`` or a module), or a norm that does not fold.
    """
    _check(module, x)
    folded = fold(module)
    wide = x.double()
    convolution = folded.convolution
    if folded.gate is not None:
        kept = (convolution.norm, folded.gate.norm, folded.gate.query_norm, folded.gate.window_norm)
        _check_folded(kept)
        kernel, bias = _gated(convolution, folded.gate, wide, position)
    else:
        _check_folded((convolution.norm, folded.attention_norm))
        attention: Any = deepcopy(module.attention).double()
        branch = next(branch for kind, branch in _BRANCHES.items() if isinstance(attention, kind))
        kernel, bias = branch(folded, attention, wide, position)
    kernel, bias = kernel.to(x.dtype), bias.to(x.dtype)
    return (kernel, bias) if return_bias else kernel


def _check(module: nn.Module, x: Tensor) -> None:
    if not isinstance(module, XVolution):
        raise ValueError(f"dynamic_kernel takes an XVolution, got {type(module).__name__}")
    if module.training:
        raise ValueError("the operator is in train mode, where batch norms depend on the batch; call eval() first")
    if x.dim() != module.dims + 2:
        raise ValueError(
            f"x has shape {tuple(x.shape)}; it must be (N, C_in, ...) with {module.dims} dimensions after them"
        )
    if module.attention is None:
        raise ValueError(
            "the operator has no attention, so its kernel is the same at every pixel; re-parameterize it and read conv.weight"
        )
    if not isinstance(module.attention, tuple(_BRANCHES)):
        raise ValueError(
            f"the branch {type(module.attention).__name__} is no dynamic convolution over a window; "
            "dynamic_kernel reads 'pssa', 'linear', 'image' and 'shared'"
        )


def _check_folded(norms: Sequence[nn.Module]) -> None:
    kept = [type(norm).__name__ for norm in norms if type(norm) is not nn.Identity]
    if kept:
        raise ValueError(
            f"{kept[0]} does not fold into a kernel, because it depends on the whole feature map; use batch norm"
        )


def _pixel(maps: Tensor, position: Sequence[int]) -> Tensor:
    """(N, C, H', W') -> (N, C) at one position."""
    size = tuple(maps.shape[2:])
    if len(position) != len(size) or not all(0 <= index < n for index, n in zip(position, size, strict=True)):
        raise ValueError(f"position {tuple(position)} is outside of the output of {' x '.join(map(str, size))} pixels")
    index: Any = (slice(None), slice(None), *position)
    return maps[index]


def _query(x: Tensor, weight: Tensor, bias: Tensor, convolution: FoldedConvolution, position: Sequence[int]) -> Tensor:
    """q_0 (N, A): the 1x1 convolution of the centre pixel of the window at ``position``."""
    centre = convolution.geometry.centre()
    maps = centre.convolve(x, per_channel(weight.flatten(1), x), bias, convolution.groups)
    return _pixel(maps, position)


def _gated(
    convolution: FoldedConvolution, gate: FoldedGate, x: Tensor, position: Sequence[int]
) -> tuple[Tensor, Tensor]:
    union, groups = union_of(convolution, gate), convolution.groups
    query = _query(x, gate.query_weight, gate.query_bias, convolution, position)
    mean = x.mean(spatial(x), keepdim=True)
    if gate.context_weight is not None:
        query = query + convolve(mean, per_channel(gate.context_weight, x), groups=groups).flatten(1)
    query = GATES[gate.gate](query).unflatten(1, (groups, -1))
    value = gate.value_weight.unflatten(0, (groups, -1))
    keys = shifted_keys(gate, union).unflatten(0, (groups, -1))
    attended = torch.einsum("goa,nga,gait->ngoit", value, query, keys.flatten(3)).flatten(1, 2)
    attended = attended.unflatten(3, union.kernel_size)
    constant = gate.window_bias.expand(x.shape[0], -1)
    if gate.mean_weight is not None:
        mean_key = convolve(mean, per_channel(gate.key_weight, x), groups=groups)
        constant = constant + gate.mean_weight * mean_key.flatten(1)
    bias = torch.einsum("goa,nga,nga->ngo", value, query, constant.unflatten(1, (groups, -1))).flatten(1)
    kernel = embed(convolution.weight, convolution.geometry, union)
    return kernel + attended, convolution.bias + bias


def _scale(folded: FoldedOperator) -> Tensor:
    """(C_out,): what the attention's norm multiplies; ``_check_folded`` has seen that it folds."""
    assert folded.value_scale is not None
    return folded.value_scale


def _dot(folded: FoldedOperator, attention: Any, x: Tensor, position: Sequence[int]) -> tuple[Tensor, Tensor]:
    convolution, value_scale = folded.convolution, _scale(folded)
    shifts, heads, groups = attention.shifts, attention.groups * attention.heads, attention.groups
    query = _query(x, attention.query.weight, attention.query.bias, convolution, position)
    key = convolve(x, attention.key.weight, groups=groups)
    taps = window_taps(shifts.pad(key), shifts.kernel_size, shifts.stride, shifts.dilation)
    keys = torch.stack([_pixel(tap, position) for tap in taps], 2).unflatten(1, (heads, -1))
    scores = torch.einsum("nha,nhat->nht", query.unflatten(1, (heads, -1)), keys) * attention.window_weight.flatten(1)
    value = (attention.value.weight.flatten(1) * value_scale.unsqueeze(1)).unflatten(0, (heads, -1))
    attended = torch.einsum("nht,hoi->nhoit", scores, value).flatten(1, 2).unflatten(3, shifts.kernel_size)
    union = convolution.geometry.union([shifts])
    kernel = embed(convolution.weight, convolution.geometry, union) + embed(attended, shifts, union)
    return kernel, convolution.bias.expand(x.shape[0], -1)


def _linear(folded: FoldedOperator, attention: Any, x: Tensor, position: Sequence[int]) -> tuple[Tensor, Tensor]:
    convolution, value_scale = folded.convolution, _scale(folded)
    geometry = convolution.geometry
    # Only the check of the position needs the query here; the kernel is the same at every pixel of an image.
    query_weight, query_bias = attention.query.weight, attention.query.bias
    _query(x, query_weight, query_bias, convolution, position)
    mixing = attention.mixing_matrix(x)
    heads = mixing.shape[1]
    mixing = mixing * value_scale.reshape(heads, -1, 1)
    centre = (mixing @ query_weight.flatten(1).unflatten(0, (heads, -1))).flatten(1, 2)
    bias = (mixing @ query_bias.unflatten(0, (heads, -1)).unsqueeze(-1)).flatten(1)
    kernel = convolution.weight.repeat(x.shape[0], *(1,) * convolution.weight.dim())
    pixel: Any = (..., *centre_of(geometry.kernel_size))
    kernel[pixel] += centre
    return kernel, convolution.bias + bias


def _image(folded: FoldedOperator, attention: Any, x: Tensor, position: Sequence[int]) -> tuple[Tensor, Tensor]:
    convolution, value_scale = folded.convolution, _scale(folded)
    # Only the check of the position needs a map here; the kernel is the same at every pixel of an image.
    _pixel(convolution.geometry.convolve(x, convolution.weight, groups=convolution.groups), position)
    kernel = convolution.weight + per_channel(value_scale[:, None], x) * attention.kernels(x)
    return kernel, convolution.bias.expand(x.shape[0], -1)


def _shared(folded: FoldedOperator, attention: Any, x: Tensor, position: Sequence[int]) -> tuple[Tensor, Tensor]:
    convolution, shared = folded.convolution, folded.shared
    assert shared is not None
    geometry, window = convolution.geometry, Geometry.of(attention.window)
    whole = geometry.followed_by(window)
    value = geometry.convolve(x, shared.weight, shared.bias, convolution.groups)
    _pixel(value, position)
    weights = _scale(folded).unsqueeze(1) * attention.window.weight.flatten(1)
    kernel, bias = embed(convolution.weight, geometry, whole), convolution.bias
    attended, attended_bias = torch.zeros_like(kernel), torch.zeros_like(bias)
    for offsets, weight in zip(
        product(*(window.tap_offsets(dim) for dim in range(x.dim() - 2))), weights.unbind(1), strict=True
    ):
        # Around the convolution's outputs there is nothing to attend to.
        if all(0 <= p + o < n for p, o, n in zip(position, offsets, value.shape[2:], strict=True)):
            moved = geometry.moved([s * o for s, o in zip(geometry.stride, offsets, strict=True)])
            attended = attended + per_channel(weight[:, None], x) * embed(shared.weight, moved, whole)
            attended_bias = attended_bias + weight * shared.bias
    if attention.mean_weight is not None:
        attended_bias = attended_bias + _scale(folded) * attention.mean_value(value).flatten(1)
    query = attention.weights(x)
    return kernel + query.unsqueeze(2) * attended, bias + query.flatten(1) * attended_bias


#: How each branch's kernel at a pixel is read; of ``pssa`` that of ``similarity="dot"``.
_BRANCHES: dict[type[nn.Module], Callable[..., tuple[Tensor, Tensor]]] = {
    PixelShiftAttention: _dot,
    LinearAttention: _linear,
    ImageAttention: _image,
    SharedValueAttention: _shared,
}
