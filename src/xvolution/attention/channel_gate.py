"""Attention with one query for the whole image, which weights the channels of a second convolution::

    a_0 = φ(q) ⊙ Σ_δ W^v_δ x_δ,      q = W^q mean(x) + b^q

With the convolution beside it the branch is one convolution, whose kernel is ``W + diag(φ(q)) W^v`` for each image.
Attention that mixes kernels is from Chen et al., Dynamic Convolution: Attention over Convolution Kernels, arXiv 1912.03458,
2020; weights for the channels that a kernel reads and writes from Li, Zhou and Yao, Omni-Dimensional Dynamic Convolution,
arXiv 2209.07947, 2022.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from xvolution.attention.base import AttentionBranch, AttentionConfig, check_gate, fix_, register
from xvolution.attention.deployed import ContentConv, DeployedOperator
from xvolution.attention.folded import Folded, StaysAttention, pixel_of
from xvolution.attention.low_rank import LowRank, affine_map, check_reduction
from xvolution.attention.reference import each, image_average, mixed, padded_for, windows
from xvolution.convolutions import conv_of, conv_over, kernel_of, pointwise
from xvolution.folding import FoldedConvolution, NormLayer
from xvolution.geometry import ConvSite, per_channel, spatial
from xvolution.numerics import CONVOLVE, GATES, bounded, convolve_window, image_mean, widen


@register("channel_gate")
@dataclass(frozen=True)
class ChannelGate(AttentionConfig):
    """A second convolution with a weight for each output channel and image. It deploys as one or two convolutions.

    Attributes:
        gate: gate on the query: identity, sigmoid or tanh.
        separable: compute the values by a 1x1 convolution and a depthwise one, W^v_δ = w_δ ⊙ W^v, which has fewer weights
            and a shorter training step.
        channel_keys: also weight the input channels, by keys: the kernel is W + diag(φ(q)) W^v diag(φ(k)).
        reduction: number of input channels for each channel of a bottleneck in query and keys, which has at least 8
            channels; both then see the channels of all groups. By default there is no bottleneck, and both see the
            channels of their group.
    """

    gate: str = "sigmoid"
    separable: bool = False
    channel_keys: bool = False
    reduction: int | None = None

    def check(self) -> None:
        check_gate(self.gate)
        check_reduction(self.reduction)

    def build(self, site: ConvSite, norm_layer: NormLayer | None = None) -> ChannelGateAttention:
        return ChannelGateAttention(self, site)


class ChannelGateAttention(AttentionBranch):
    """The branch of ``ChannelGate``: maps (N, C_in, H, W) to (N, C_out, H', W')."""

    def __init__(self, config: ChannelGate, site: ConvSite) -> None:
        super().__init__(config, site)
        grouped: dict[str, Any] = {"groups": site.groups, **site.factory}
        in_channels, out_channels, geometry = site.in_channels, site.out_channels, site.geometry
        self.gate = config.gate

        def of_mean(channels: int) -> nn.Module:
            if config.reduction is None:
                return pointwise(site.dims, in_channels, channels, **grouped)
            return LowRank.create(site.dims, (in_channels, channels), config.reduction, True, site.factory)

        self.query = of_mean(out_channels)
        self.key = of_mean(in_channels) if config.channel_keys else None
        self.window: Any = None
        if config.separable:
            depthwise = {**grouped, "groups": out_channels}
            self.value = pointwise(site.dims, in_channels, out_channels, bias=False, **grouped)
            self.window = conv_over(geometry, out_channels, out_channels, bias=False, **depthwise)
        else:
            self.value = conv_over(geometry, in_channels, out_channels, bias=False, **grouped)

    @property
    def value_weight(self) -> Tensor:
        """``W^v_δ``: (C_out, C_in / groups, kh, kw)."""
        value: Tensor = self.value.weight
        return value if self.window is None else per_channel(value.flatten(1), value) * self.window.weight

    def weights(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """φ(q) and φ(k), or None without keys: (N, C_in, H, W) -> (N, C_out, 1, 1) and (N, C_in, 1, 1)."""
        gate, mean = GATES[self.gate].apply, image_mean(x)
        return gate(bounded(self.query(mean))), None if self.key is None else gate(bounded(self.key(mean)))

    def kernels(self, x: Tensor) -> Tensor:
        """``diag(φ(q)) W^v diag(φ(k))`` of each image: (N, C_in, H, W) -> (N, C_out, C_in / groups, kh, kw)."""
        of_outputs, of_inputs = self.weights(x)
        weight, of_outputs = widen(self.value_weight.to(x.dtype), of_outputs)
        return scaled_kernels(
            weight, of_outputs, None if of_inputs is None else of_inputs.to(weight.dtype), self.groups
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, C_in, H, W) -> (N, C_out, H', W')."""
        of_outputs, of_inputs = self.weights(x)
        value = self.value(x if of_inputs is None else bounded(of_inputs * x))
        value = value if self.window is None else convolve_window(self.window, bounded(value))
        return bounded(of_outputs * bounded(value))

    def gates(self) -> Mapping[str, int]:
        layers = {"query": self.query, "key": self.key}
        return {name: _last(layer).out_channels for name, layer in layers.items() if layer is not None}

    def settle_(self, logits: Mapping[str, Tensor]) -> None:
        for name, constant in logits.items():
            layer: Any = getattr(self, name)
            fix_(layer, _last(layer).bias, constant)

    def fold(self, convolution: FoldedConvolution, norm: nn.Module) -> Folded:
        scale, norm = convolution.absorb(norm)
        return FoldedChannelGate(convolution, self, scale, norm)


def _last(layer: Any) -> Any:
    """The last convolution of a map from the mean to queries or keys."""
    return layer.outer if isinstance(layer, LowRank) else layer


def scaled_kernels(weight: Tensor, of_outputs: Tensor, of_inputs: Tensor | None, groups: int) -> Tensor:
    """``diag(φ(q)) W diag(φ(k))``: (N, C_out, C_in / groups, kh, kw) from W (C_out, C_in / groups, kh, kw)."""
    kernels = of_outputs.unsqueeze(2) * weight
    if of_inputs is None:
        return kernels
    return (kernels.unflatten(1, (groups, -1)) * of_inputs.unflatten(1, (groups, 1, -1))).flatten(1, 2)


def channel_gate_attention(
    x: Tensor,
    query_weight: Tensor,
    query_bias: Tensor,
    value_weight: Tensor,
    key_weight: Tensor | None = None,
    key_bias: Tensor | None = None,
    query_inner: Tensor | None = None,
    key_inner: Tensor | None = None,
    *,
    gate: Callable[[Tensor], Tensor] = torch.sigmoid,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] | str = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    padding_mode: str = "zeros",
) -> Tensor:
    """The reference of ``ChannelGate``, shift by shift: ``Σ_δ φ(q) ⊙ W^v_δ x_δ``, ``q = W^q mean(x) + b^q``.

    With keys, ``Σ_δ φ(q) ⊙ W^v_δ (φ(k) ⊙ x_δ)``, ``k = W^k mean(x) + b^k``. The weight from an input channel to an output
    channel is the product of the input's key and the output's query.

    Args:
        x: (N, C_in, H, W).
        query_weight: ``W^q``, (C_out, C_in / groups, 1, 1).
        query_bias: ``b^q``, (C_out,).
        value_weight: ``W^v``, (C_out, C_in / groups, kh, kw).
        key_weight, key_bias: ``W^k``, (C_in, C_in / groups, 1, 1), and ``b^k``, (C_in,); no keys when None.
        query_inner, key_inner: V of a query or keys of low rank, (R, C_in, 1, 1): ``W = U V`` across all groups, and the weight
            of the query, or the keys, is U, (C_out, R, 1, 1) or (C_in, R, 1, 1).
        gate: φ.
        stride, padding, dilation, groups, padding_mode: as in ``nn.Conv2d``.

    Returns:
        (N, C_out, H', W'); one or three dimensions in the place of H, W work alike.
    """
    dims, kernel_size = x.dim() - 2, tuple(value_weight.shape[2:])
    steps, spaces, mean = each(stride, dims), each(dilation, dims), image_average(x)

    def of_mean(weight: Tensor, bias: Tensor | None, inner: Tensor | None) -> Tensor:
        if inner is None:
            return gate(mixed(mean, weight, bias, groups))
        return gate(mixed(mixed(mean, inner), weight, bias))

    query = of_mean(query_weight, query_bias, query_inner)
    if key_weight is not None:
        x = of_mean(key_weight, key_bias, key_inner) * x
    pixels = windows(padded_for(x, padding, kernel_size, spaces, padding_mode), kernel_size, steps, spaces)
    matrices = value_weight.flatten(2)
    terms = [query * mixed(pixels[:, :, tap], matrices[..., tap], None, groups) for tap in range(matrices.shape[2])]
    return torch.stack(terms).sum(0)


@dataclass
class FoldedChannelGate(StaysAttention):
    """Both convolutions as one for each image, or the folded convolution beside the branch."""

    @property
    def layouts(self) -> tuple[str, ...]:
        return ("single", "split") if type(self.norm) is nn.Identity else ("split",)

    def build(self, layout: str, factory: dict[str, Any]) -> DeployedOperator:
        if layout == "split":
            return super().build(layout, factory)
        return self.scaled(WeightedConv(self, factory))

    def kernel_at(self, x: Tensor, position: Sequence[int]) -> tuple[Tensor, Tensor]:
        """``W^c_δ + diag(φ(q)) W^v_δ diag(φ(k))``, the same at every pixel of an image."""
        convolution, attention = self.convolution, self.attention
        # Refuses a position outside of the output, which is as large as the convolution's.
        pixel_of(convolution.geometry.convolve(x, convolution.weight, groups=convolution.groups), position)
        mean, gate, groups = x.mean(spatial(x), keepdim=True), GATES[attention.gate].apply, convolution.groups

        def of_mean(conv: Any) -> Tensor:
            weight, bias, of_groups = affine_map(conv, groups)
            return gate(CONVOLVE[attention.dims](mean, weight, bias, groups=of_groups))

        keys = None if attention.key is None else of_mean(attention.key)
        kernel = convolution.weight + self._kernels(of_mean(attention.query), keys)
        return kernel, convolution.bias.expand(len(x), -1)

    def static(self) -> FoldedConvolution | None:
        """The equivalent convolution if query and keys are the same for every image."""
        attention, convolution = self.attention, self.convolution
        layers = [layer for layer in (attention.query, attention.key) if layer is not None]
        folds = type(self.norm) is nn.Identity and type(convolution.norm) is nn.Identity
        maps = [affine_map(layer, convolution.groups) for layer in layers]
        if not folds or any(weight.is_meta or weight.any() for weight, _, _ in maps):
            return None
        biases = [per_channel(bias, convolution.weight).unsqueeze(0) for _, bias, _ in maps]
        of_outputs, *keys = (GATES[attention.gate].apply(bias) for bias in biases)
        kernel = convolution.weight + self._kernels(of_outputs, keys[0] if keys else None)[0]
        return convolution.merged(convolution.geometry, kernel, convolution.bias)

    def _kernels(self, of_outputs: Tensor, of_inputs: Tensor | None) -> Tensor:
        """``diag(φ(q)) W^v diag(φ(k))`` with the norm's scale, (N, C_out, C_in / groups, kh, kw)."""
        attention, scale = self.attention, self.kernel_scale()
        value = kernel_of(attention.value).weight
        if attention.window is not None:
            value = per_channel(value.flatten(1), value) * kernel_of(attention.window).weight
        value = value * per_channel(scale[:, None], value)
        return scaled_kernels(value, of_outputs, of_inputs, self.convolution.groups)


class WeightedConv(ContentConv):
    """Layout ``single``: the kernel of each image is ``W^c + diag(φ(q)) W^v``, or ``W^c + diag(φ(q)) W^v diag(φ(k))``."""

    def __init__(self, folded: FoldedChannelGate, factory: dict[str, Any]) -> None:
        super().__init__(folded.convolution, folded.attention, folded.norm, factory)
        attention = self.attention
        if attention.window is not None:
            window = kernel_of(attention.window).geometry
            attention.value = conv_of(window, attention.value_weight, None, attention.groups, factory)
            attention.window = None

    def kernels(self, x: Tensor) -> tuple[Tensor, Tensor]:
        attended = self.attention.kernels(x)
        kernels = self.conv.weight.to(attended.dtype) + attended
        return kernels, self.conv.bias.to(attended.dtype).expand(len(x), -1)
