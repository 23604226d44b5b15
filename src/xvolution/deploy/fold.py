"""Folding: an operator in eval mode as plain tensors, with every batch norm multiplied in. All arithmetic in fp64."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from xvolution.functional import per_channel
from xvolution.nn import (
    GlobalAttention,
    ImageAttention,
    LinearAttention,
    PixelShiftAttention,
    SharedValueAttention,
    XVolution,
)
from xvolution.nn.convolution import kernel_of
from xvolution.nn.geometry import Geometry

#: Branches whose output is linear in their value projection, or in their window, so that a scale after them can move into it.
_LINEAR_IN_VALUE = (PixelShiftAttention, LinearAttention, GlobalAttention, ImageAttention, SharedValueAttention)
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)

# A subclass that does not change what is computed folds as its parent does.
_FORWARDS = tuple(norm.forward for norm in _BATCH_NORMS)


def is_foldable(norm: Any) -> bool:
    """True for the identity and for a batch norm that reads running statistics: both are affine per channel."""
    if type(norm) is nn.Identity:
        return True
    if getattr(type(norm), "forward", None) in _FORWARDS:
        return norm.running_mean is not None and not norm.training
    return type(norm).__name__ == "FrozenBatchNorm2d"


def affine_of(norm: Any, channels: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """(scale, shift) of a foldable norm: ``norm(x) = scale * x + shift``.

    Returns:
        Two fp64 tensors of shape (channels,) on the device of ``like``.
    """
    one = torch.ones(channels, dtype=torch.float64, device=like.device)
    if type(norm) is nn.Identity:
        return one, torch.zeros_like(one)
    weight = one if norm.weight is None else norm.weight.double()
    scale = weight * torch.rsqrt(norm.running_var.double() + norm.eps)
    shift = -norm.running_mean.double() * scale
    return scale, shift if norm.bias is None else shift + norm.bias.double()


@dataclass
class FoldedConvolution:
    """The convolution branch: ``norm(conv2d(x, weight, bias))``; ``norm`` is the identity unless it could not fold."""

    geometry: Geometry
    groups: int
    weight: Tensor
    bias: Tensor
    norm: nn.Module


@dataclass
class FoldedGate:
    """The Hadamard branch: ``norm( W^v ( φ(query_norm(q_0 + W^m mean(x))) ⊙ window_norm(Σ_δ w_δ k_δ + g mean(k) + b) ) )``.

    The norms are identities unless they could not fold. Weights of 1x1 convolutions are (out, in / groups).
    """

    gate: str
    query_weight: Tensor
    query_bias: Tensor
    context_weight: Tensor | None
    key_weight: Tensor
    windows: list[tuple[Geometry, Tensor]]
    window_bias: Tensor
    mean_weight: Tensor | None
    value_weight: Tensor
    query_norm: nn.Module
    window_norm: nn.Module
    norm: nn.Module

    @property
    def channels(self) -> int:
        """Attention channels A."""
        return self.key_weight.shape[0]


@dataclass
class SharedValues:
    """The convolution before its norm, which attention reads where it shares its values: ``v = conv2d(x, weight, bias)``.

    Of these the folded convolution is ``norm(scale * v + shift)``; ``scale`` and ``shift`` are (C_out,).
    """

    weight: Tensor
    bias: Tensor
    scale: Tensor
    shift: Tensor


@dataclass
class FoldedOperator:
    """A whole operator: convolution and attention branch.

    ``gate`` is set for the Hadamard branch. For the others ``value_scale`` (C_out,) multiplies the rows of their value
    projection or window, on which they depend linearly, and ``attention_norm`` is what could not fold. ``shared`` is set where
    they read the convolution.
    """

    convolution: FoldedConvolution
    gate: FoldedGate | None
    value_scale: Tensor | None
    attention_norm: nn.Module
    shared: SharedValues | None = None


def fold(operator: XVolution) -> FoldedOperator:
    """The operator with its norms folded; norms that cannot fold (group norm, say) are kept as modules."""
    conv = operator.conv
    kernel = kernel_of(conv)
    weight = kernel.weight
    bias = weight.new_zeros(conv.out_channels) if kernel.bias is None else kernel.bias
    scale, shift, conv_norm = _split(operator.conv_norm, conv.out_channels, weight)
    folded = FoldedConvolution(
        kernel.geometry, conv.groups, weight * per_channel(scale[:, None], weight), bias * scale + shift, conv_norm
    )
    for branch in operator.parallel:
        if not (type(conv_norm) is nn.Identity and is_foldable(branch.norm)):
            raise ValueError(
                "the convolutions of this operator cannot become one, because a norm of theirs does not fold; each needs a batch "
                "norm with running statistics, or none"
            )
        _merge(folded, branch)
    attention_norm = operator.attention_norm
    attention = operator.attention
    # The attention's shift moves into the convolution's bias, which is possible only where nothing normalizes it afterwards.
    foldable = type(conv_norm) is nn.Identity and isinstance(attention, _LINEAR_IN_VALUE)
    value_scale = None
    if foldable and is_foldable(attention_norm):
        value_scale, attention_shift = affine_of(attention_norm, conv.out_channels, weight)
        folded.bias, shift = folded.bias + attention_shift, shift + attention_shift
        attention_norm = nn.Identity()
    if isinstance(attention, PixelShiftAttention) and attention.similarity == "hadamard":
        return FoldedOperator(folded, _fold_gate(attention, value_scale, attention_norm), None, nn.Identity())
    shared = SharedValues(weight, bias, scale, shift) if isinstance(attention, SharedValueAttention) else None
    return FoldedOperator(folded, None, value_scale, attention_norm, shared)


def _merge(folded: FoldedConvolution, branch: Any) -> None:
    """Add one more convolution of the same window; its norm, and the first one's, fold."""
    kernel = kernel_of(branch.conv)
    scale, shift = affine_of(branch.norm, len(kernel.weight), kernel.weight)
    bias = kernel.weight.new_zeros(len(kernel.weight)) if kernel.bias is None else kernel.bias
    folded.weight = folded.weight + kernel.weight * per_channel(scale.detach()[:, None], kernel.weight)
    folded.bias = folded.bias + bias * scale.detach() + shift.detach()


def _split(norm: nn.Module, channels: int, like: Tensor) -> tuple[Tensor, Tensor, nn.Module]:
    """(scale, shift, what is left of the norm)."""
    foldable = is_foldable(norm)
    scale, shift = affine_of(norm if foldable else nn.Identity(), channels, like)
    return scale.detach(), shift.detach(), nn.Identity() if foldable else norm


def _fold_gate(attention: Any, value_scale: Tensor | None, norm: nn.Module) -> FoldedGate:
    channels = attention.channels
    query, key, value = (kernel_of(conv) for conv in (attention.query, attention.key, attention.value))
    query_weight = query.weight.flatten(1)
    query_bias = query_weight.new_zeros(channels) if query.bias is None else query.bias
    query_scale, query_shift, query_norm = _split(attention.query_norm, channels, query_weight)
    window_scale, window_shift, window_norm = _split(attention.window_norm, channels, query_weight)
    value_weight = value.weight.flatten(1)
    if value_scale is not None:
        value_weight = value_weight * value_scale.detach().unsqueeze(1)
    windows = [
        (window.geometry, window.weight.squeeze(1) * per_channel(window_scale, window.weight))
        for window in map(kernel_of, attention.windows)
    ]
    context_weight = None
    if attention.context is not None:
        context_weight = kernel_of(attention.context).weight.flatten(1) * query_scale.unsqueeze(1)
    mean_weight = None if attention.mean_weight is None else attention.mean_weight.detach().double() * window_scale
    return FoldedGate(
        gate=attention.gate,
        query_weight=query_weight * query_scale.unsqueeze(1),
        query_bias=query_bias * query_scale + query_shift,
        context_weight=context_weight,
        key_weight=key.weight.flatten(1),
        windows=windows,
        window_bias=window_shift,
        mean_weight=mean_weight,
        value_weight=value_weight,
        query_norm=query_norm,
        window_norm=window_norm,
        norm=norm,
    )


def embed(kernel: Tensor, window: Geometry, union: Geometry) -> Tensor:
    """Place a kernel (..., kh, kw) over ``window`` into the larger kernel over ``union``, zeros elsewhere."""
    larger = kernel.new_zeros(*kernel.shape[: -len(union.kernel_size)], *union.kernel_size)
    index: Any = (..., *union.tap_slices(window))
    larger[index] = kernel
    return larger


def union_of(convolution: FoldedConvolution, gate: FoldedGate) -> Geometry:
    """The window of the single convolution: all taps of the convolution, the shifts, and the centre."""
    geometry = convolution.geometry
    return geometry.union([geometry.centre(), *(window for window, _ in gate.windows)])


def shifted_keys(gate: FoldedGate, union: Geometry) -> Tensor:
    """``Σ_δ w_δ ⊙ W^k`` as one kernel: (A, C_in / groups, kh, kw) over ``union``."""
    weights: Sequence[Tensor] = [embed(weight, window, union) for window, weight in gate.windows]
    window = torch.stack(tuple(weights)).sum(0).unsqueeze(1)
    return per_channel(gate.key_weight, window) * window
