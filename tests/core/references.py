"""The attention of an operator by the references of ``xvolution.functional``: slow, and by other code than the branches'.

Each function takes an operator in eval mode and its input (N, C_in, H, W), and returns what its branch does, (N, C_out, H', W'),
before the norm that follows it. Norms inside the branch are multiplied into the arguments of the reference by hand.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from xvolution import functional
from xvolution.attention.low_rank import LowRank
from xvolution.attention.reference import centres, image_average, mixed, windows
from xvolution.conv_branches import NormalizedConvolution, PointwiseThenConvolution
from xvolution.convolutions import geometry_of
from xvolution.geometry import Geometry

GATES: dict[str, Callable[[Tensor], Tensor]] = {
    "identity": lambda x: x,
    "sigmoid": lambda x: 1 / (1 + (-x).exp()),
    "tanh": lambda x: (x.exp() - (-x).exp()) / (x.exp() + (-x).exp()),
    "one": torch.ones_like,
}


def pixel_shift(operator: Any, x: Tensor) -> Tensor:
    """One reference for each window; the terms over all pixels belong to the first."""
    branch = operator.attention
    query_scale, query_shift = affine(branch.query_norm, branch.query.bias)
    sum_scale, sum_shift = affine(branch.window_norm, branch.query.bias)
    query_weight, query_bias = scaled(branch.query.weight, query_scale), branch.query.bias * query_scale + query_shift
    inner = getattr(branch.context, "inner", None)
    outer = branch.context if inner is None else branch.context.outer
    context = None if outer is None else scaled(outer.weight, query_scale)
    inner = None if inner is None else inner.weight
    total: Any = 0
    for index, window in enumerate(branch.windows):
        weight = scaled(window.weight, sum_scale).squeeze(1)
        mean_weight = None if index or branch.mean_weight is None else branch.mean_weight * sum_scale
        window_bias = torch.zeros_like(sum_shift) if index else sum_shift
        geometry = geometry_of(window)
        options = {"gate": GATES[branch.gate], "groups": operator.groups, "dilation": geometry.dilation}
        if symmetric := symmetric_padding(geometry):
            total = total + functional.pixel_shift_attention(
                x, query_weight, branch.key.weight, branch.value.weight, weight, query_bias, window_bias, mean_weight, context,
                inner, stride=geometry.stride, padding_mode=geometry.padding_mode, padding=symmetric, **options,
            )  # fmt: skip
            continue
        # The reference pads as nn.Conv2d does. Elsewhere the image comes padded, with its means as biases of its own.
        maps = []
        for image in x.split(1):
            mean, query, constant = image_average(image), query_bias, window_bias
            if context is not None:
                query = query + of_mean(mean, context, None, inner, operator.groups).flatten()
            if mean_weight is not None:
                constant = constant + mean_weight * mixed(mean, branch.key.weight, None, operator.groups).flatten()
            weights = (query_weight, branch.key.weight, branch.value.weight, weight, query, constant)
            maps.append(
                functional.pixel_shift_attention(geometry.pad(image), *weights, stride=geometry.stride, **options)
            )
        total = total + torch.cat(maps)
    return total


def pixel_shift_dot(operator: Any, x: Tensor) -> Tensor:
    branch, geometry = operator.attention, operator.attention.shifts
    return functional.pixel_shift_dot_attention(
        geometry.pad(x), branch.query.weight, branch.key.weight, branch.value.weight, branch.window_weight.squeeze(1),
        branch.query.bias, stride=geometry.stride, dilation=geometry.dilation, groups=operator.groups,
    )  # fmt: skip


def linear(operator: Any, x: Tensor) -> Tensor:
    branch = operator.attention
    key, value = (mixed(x, part.weight, part.bias, operator.groups) for part in (branch.key, branch.value))
    return functional.linear_attention(at_centres(operator, branch.query, x), key, value, branch.heads)


def exact(operator: Any, x: Tensor) -> Tensor:
    branch = operator.attention
    parts = (at_centres(operator, part, x) for part in (branch.query, branch.key, branch.value))
    return functional.global_attention(*parts, branch.heads, branch.temperature)


def channel_gate(operator: Any, x: Tensor) -> Tensor:
    branch, geometry, groups = operator.attention, geometry_of(operator.conv), operator.groups
    value, key = branch.value.weight, branch.key
    if branch.window is not None:
        value = value * branch.window.weight
    options = {"gate": GATES[branch.gate], "stride": geometry.stride, "dilation": geometry.dilation, "groups": groups}
    if symmetric := symmetric_padding(geometry):
        query_weight, query_bias, query_inner = of_layer(branch.query)
        keys = (None, None, None) if key is None else of_layer(key)
        options |= {"padding": symmetric, "padding_mode": geometry.padding_mode}
        return functional.channel_gate_attention(
            x, query_weight, query_bias, value, *keys[:2], query_inner, keys[2], **options
        )
    maps = []
    for image in x.split(1):
        mean = image_average(image)
        vectors = [
            (
                mean.new_zeros(len(bias), x.shape[1] // groups, *mean.shape[2:]),
                of_mean(mean, weight, bias, inner, groups).flatten(),
            )
            for weight, bias, inner in (of_layer(part) for part in (branch.query, key) if part is not None)
        ]
        (query, bias), *keys = vectors
        flat = [tensor for pair in keys for tensor in pair]
        maps.append(functional.channel_gate_attention(geometry.pad(image), query, bias, value, *flat, **options))
    return torch.cat(maps)


def of_layer(layer: Any) -> tuple[Tensor, Tensor, Tensor | None]:
    """Weight, bias and V of what maps a mean: a 1x1 convolution, or one behind V where it is of low rank."""
    if isinstance(layer, LowRank):
        return layer.outer.weight, layer.outer.bias, layer.inner.weight
    return layer.weight, layer.bias, None


def of_mean(mean: Tensor, weight: Tensor, bias: Tensor | None, inner: Tensor | None, groups: int) -> Tensor:
    """What it maps the mean to: (N, C, 1, 1)."""
    return mixed(mean, weight, bias, groups) if inner is None else mixed(mixed(mean, inner), weight, bias)


def gated_depthwise(operator: Any, x: Tensor) -> Tensor:
    branch = operator.attention
    query = (None, None) if branch.query is None else (branch.query.weight, branch.query.bias)
    return functional.gated_depthwise_attention(
        x, operator.conv(x), *query, branch.window.weight.squeeze(1), branch.mean_weight, gate=GATES[branch.gate],
        groups=operator.groups,
    )  # fmt: skip


def convolution_branch(operator: Any, x: Tensor) -> Tensor:
    """The sum of the convolutions in eval mode, tap by tap: each branch by the shape of its formula."""
    geometry, groups = geometry_of(operator.conv), operator.groups

    def over_window(maps: Tensor, weight: Tensor, groups: int) -> Tensor:
        pixels = windows(maps, geometry.kernel_size, geometry.stride, geometry.dilation)
        matrices = weight.flatten(2)
        terms = [mixed(pixels[:, :, tap], matrices[..., tap], None, groups) for tap in range(matrices.shape[2])]
        return torch.stack(terms).sum(0)

    def normed(norm: Any, maps: Tensor, bias: Tensor | None = None) -> Tensor:
        scale, shift = affine(norm, x.new_zeros(maps.shape[1]))
        maps = maps if bias is None else maps + bias.reshape(-1, *(1,) * (x.dim() - 2))
        return maps * scale.reshape(-1, *(1,) * (x.dim() - 2)) + shift.reshape(-1, *(1,) * (x.dim() - 2))

    padded = geometry.pad(x)
    total = normed(operator.conv_norm, over_window(padded, operator.conv.weight, groups), operator.conv.bias)
    for branch in operator.parallel:
        if isinstance(branch, NormalizedConvolution):
            weight = branch.conv.weight
            alike = weight.shape[2:] == operator.conv.weight.shape[2:]
            maps = over_window(padded, weight, groups) if alike else at_centres(operator, branch.conv, x)
            total = total + normed(branch.norm, maps, branch.conv.bias if alike else None)
            continue
        inner = normed(branch.inner_norm, mixed(padded, branch.inner.weight, None, groups))
        if isinstance(branch, PointwiseThenConvolution):
            maps = over_window(inner, branch.conv.weight, groups)
        else:
            maps = windows(inner, geometry.kernel_size, geometry.stride, geometry.dilation).mean(2)
        total = total + normed(branch.norm, maps)
    return total


def affine(norm: Any, like: Tensor) -> tuple[Tensor, Tensor]:
    """Scale and shift (C,) of a batch norm in eval mode, with their gradients; of an identity, 1 and 0."""
    if isinstance(norm, nn.Identity):
        return torch.ones_like(like), torch.zeros_like(like)
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    return scale, norm.bias - norm.running_mean * scale


def scaled(weight: Tensor, scale: Tensor) -> Tensor:
    """The rows of ``weight`` (C, ...) times (C,)."""
    return weight * scale.reshape(-1, *(1,) * (weight.dim() - 1))


def symmetric_padding(geometry: Geometry) -> tuple[int, ...] | None:
    """The padding as ``nn.Conv2d`` takes it, or None where it differs before and after, crops, or depends on the image."""
    expressible = geometry.same_spans is None and all(before == after >= 0 for before, after in geometry.padding)
    return tuple(before for before, _ in geometry.padding) if expressible else None


def at_centres(operator: Any, pointwise: Any, x: Tensor) -> Tensor:
    """A 1x1 convolution of the pixels under the centre taps of the convolution's windows: (N, C, H', W')."""
    geometry = geometry_of(operator.conv)
    pixels = centres(geometry.pad(x), geometry.kernel_size, geometry.stride, geometry.dilation)
    return mixed(pixels, pointwise.weight, pointwise.bias, operator.groups)
