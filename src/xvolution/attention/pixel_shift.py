"""Pixel shift self-attention (PSSA): attention over a window by shifts and element-wise products, in O(H W).

X-volution (Chen, Wang, Ni, arXiv 2106.02253, 2021), section 3.2, with one weight for each channel and shift::

    a_0 = W^v ( φ(q_0) ⊙ (Σ_δ w_δ ⊙ k_δ + g ⊙ mean(k)) ),      q_0 = W^q x_0 + W^m mean(x) + b^q,   k = W^k x

``q_0`` does not depend on the shift δ and leaves the sum, so that the sum is a convolution by ``w_δ ⊙ W^k`` and the whole
operator is one convolution with C_out + 2A channels and a gate::

    z = conv2d(x, [W^c ; W^q at the centre ; w ⊙ W^k]);   y = z_c + W^v ( φ(z_q) ⊙ z_k )
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from xvolution.attention import fused
from xvolution.attention.base import (
    AttentionBranch,
    AttentionConfig,
    Window,
    attention_channels,
    check_gate,
    check_ratio,
    check_window,
    fix_,
    pooled_weight,
    register,
    window_of,
)
from xvolution.attention.deployed import DeployedOperator
from xvolution.attention.folded import Folded, query_at
from xvolution.attention.low_rank import LowRank, check_reduction
from xvolution.attention.pointwise import project, project_onto
from xvolution.attention.reference import centres, each, image_average, mixed, padded_for, windows
from xvolution.convolutions import as_kernel, conv_of, conv_over, kernel_of, pointwise, pointwise_of
from xvolution.folding import FoldedConvolution, NormLayer, build_norm, builds_foldable, split_norm
from xvolution.geometry import ConvSite, Geometry, per_channel, spatial
from xvolution.numerics import CONVOLVE, GATES, add, bounded, convolve_window, double, image_mean, project_wide, widen

#: Attention channels where nothing is said: a part of the output channels, and their number beside a 1x1 convolution.
_RATIO, _BESIDE_POINTWISE = 0.25, 8


@register("pixel_shift")
@dataclass(frozen=True)
class PixelShift(AttentionConfig):
    """The paper's attention over a window (PSSA), factored so that it deploys as one convolution and a gate.

    Attributes:
        attention_ratio: attention channels as a fraction of the output channels, rounded up to a multiple of the groups;
            by default attention_channels decides.
        attention_channels: number of attention channels, in the place of attention_ratio, rounded up to a multiple of the
            groups; by default a quarter of the output channels, and 8 beside a 1x1 convolution.
        gate: gate on the query: identity, sigmoid or tanh.
        window: side length of the attention window in pixels, one for each dimension, or conv for that of the
            convolution. By default that of the convolution, and 3 beside a 1x1 convolution.
        dilation: distance between neighbouring taps of the window in pixels; by default that of the convolution. Several
            values, such as [1,2,4], sum several windows.
        pooled_query: also give the query the mean over the image; by default on for kernels larger than 1x1. At a 1x1
            convolution the mean costs more than the attention.
        reduction: number of input channels for each channel of a bottleneck in the pooled query, which has at least 8
            channels; the query then sees the channels of all groups. By default there is no bottleneck, and the query
            sees the channels of its group.
        pooled_key: add a term over all pixels: the mean of the keys, with one weight for each channel.
        pooled_key_init: start value of the weights of the pooled key. A norm follows them, so they hardly move in
            training.
        query_norm: normalize the query; by default on if the norm is a batch norm, which folds into the convolution.
        window_norm: normalize the sum over the window; by default on if the norm is a batch norm, which folds into the
            convolution.
    """

    attention_ratio: float | None = None
    attention_channels: int | None = None
    gate: str = "sigmoid"
    window: Window = None
    dilation: int | tuple[int, ...] | None = None
    pooled_query: bool | None = None
    reduction: int | None = None
    pooled_key: bool = True
    pooled_key_init: float = 1.0
    query_norm: bool | None = None
    window_norm: bool | None = None

    def check(self) -> None:
        if self.attention_ratio is not None:
            check_ratio(self.attention_ratio)
        if self.attention_channels is not None and self.attention_channels < 1:
            raise ValueError(f"attention_channels is {self.attention_channels}; it must be a positive integer")
        check_gate(self.gate)
        check_window(self.window)
        if self.dilation is not None and min(self.dilations or (0,)) < 1:
            raise ValueError(f"dilation is {self.dilation}; it must be a positive integer or several positive integers")
        check_reduction(self.reduction)
        if self.reduction is not None and self.pooled_query is False:
            raise ValueError(f"reduction is {self.reduction}, but pooled_query is off; switch it on, or leave this out")
        if not self.pooled_key and self.pooled_key_init != 1.0:
            raise ValueError(
                f"pooled_key_init is {self.pooled_key_init}, but pooled_key is off; switch it on, or leave this out"
            )

    @property
    def dilations(self) -> tuple[int, ...]:
        """One for each window; empty where the window has the convolution's."""
        if self.dilation is None:
            return ()
        return (self.dilation,) if isinstance(self.dilation, int) else tuple(self.dilation)

    def narrower(self) -> PixelShift | None:
        """With an eighth of the output channels as attention channels, where their number was left open."""
        if self.attention_ratio is not None or self.attention_channels is not None:
            return None
        return replace(self, attention_ratio=_RATIO / 2)

    def channels_at(self, site: ConvSite) -> int:
        """How many attention channels there are beside a convolution."""
        if self.attention_channels is not None:
            return attention_channels(self.attention_channels, 1, site.groups)
        if self.attention_ratio is None and site.geometry.is_pointwise:
            return attention_channels(_BESIDE_POINTWISE, 1, site.groups)
        return attention_channels(site.out_channels, self.attention_ratio or _RATIO, site.groups)

    def pools_query_at(self, site: ConvSite) -> bool:
        """Whether the query sees the mean over the image beside a convolution."""
        if self.pooled_query is None:
            return self.reduction is not None or not site.geometry.is_pointwise
        return self.pooled_query

    def build(self, site: ConvSite, norm_layer: NormLayer | None = None) -> PixelShiftAttention:
        return PixelShiftAttention(self, site, norm_layer)


class PixelShiftAttention(AttentionBranch):
    """The branch of ``PixelShift``: maps (N, C_in, H, W) to (N, C_out, H', W').

    Keys have neither bias nor norm: with zero padding a bias before the window would make the border differ once merged. The
    norms on the query and on the window's sum act after padding, so they fold.
    """

    def __init__(self, config: PixelShift, site: ConvSite, norm_layer: NormLayer | None = None) -> None:
        super().__init__(config, site)
        self.gate = config.gate
        channels = config.channels_at(site)
        grouped: dict[str, Any] = {"groups": site.groups, "bias": False, **site.factory}
        depthwise: dict[str, Any] = {**grouped, "groups": channels}
        self.query = conv_over(site.geometry.centre(), site.in_channels, channels, **{**grouped, "bias": True})
        self.context: Any = None
        if config.pools_query_at(site):
            places = (site.in_channels, channels)
            self.context = (
                pointwise(self.dims, *places, **grouped)
                if config.reduction is None
                else LowRank.create(self.dims, places, config.reduction, False, site.factory)
            )
        self.key = pointwise(self.dims, site.in_channels, channels, **grouped)
        self.mean_weight = pooled_weight(channels, config.pooled_key_init if config.pooled_key else None, site.factory)
        self.windows = nn.ModuleList(
            conv_over(window, channels, channels, **depthwise) for window in _windows(config, site.geometry)
        )
        folds = builds_foldable(norm_layer)
        self.query_norm, self.window_norm = (
            build_norm(norm_layer if (folds if wanted is None else wanted) else None, channels, self.dims, site.factory)
            for wanted in (config.query_norm, config.window_norm)
        )
        self.value = pointwise(self.dims, channels, site.out_channels, **grouped)

    @property
    def channels(self) -> int:
        """Attention channels A."""
        return self.key.out_channels

    @property
    def projection(self) -> nn.Module:
        return self.value

    def in_context(self, query: Tensor, x: Tensor) -> Tensor:
        """``W^q x_0 + b^q`` with ``W^m mean(x)`` added, where the query sees the whole image: (N, A, H', W')."""
        return query if self.context is None else bounded(query) + bounded(self.context(image_mean(x)))

    def forward(self, x: Tensor) -> Tensor:
        """(N, C_in, H, W) -> (N, C_out, H', W')."""
        query, key = self.query_norm(self.in_context(self.query(x), x)), bounded(self.key(x))
        first, *others = (bounded(convolve_window(window, key)) for window in self.windows)
        window_sum = sum(others, start=first)
        if self.mean_weight is not None:
            window_sum = window_sum + per_channel(self.mean_weight.to(key.dtype), key) * image_mean(key)
        source = query.dtype
        query, window_sum = widen(query, self.window_norm(window_sum))
        return project_wide(self.value, GATES[self.gate].apply(query) * window_sum, source)

    def add_onto(self, y: Tensor, x: Tensor, value: Tensor, norm: nn.Module) -> Tensor:
        if type(self) is PixelShiftAttention and fused.serves(self, norm, y):
            return fused.add_branch(y, x, self, norm)
        return super().add_onto(y, x, value, norm)

    def gates(self) -> Mapping[str, int]:
        return {"query_norm": self.channels}

    def image_terms(self) -> tuple[nn.Parameter, ...]:
        return () if self.mean_weight is None else (self.mean_weight,)

    def settle_(self, logits: Mapping[str, Tensor]) -> None:
        norm: Any = self.query_norm
        for layer in (self.query, self.context):
            if layer is not None:
                fix_(layer)
        if isinstance(norm, nn.Identity):
            fix_(self.query, self.query.bias, logits["query_norm"])
        else:
            fix_(norm, norm.bias, logits["query_norm"])
            if getattr(norm, "running_mean", None) is not None:
                norm.running_mean.zero_()
        for term in self.image_terms():
            term.detach().zero_()
            term.requires_grad_(False)

    def fold(self, convolution: FoldedConvolution, norm: nn.Module) -> Folded:
        return FoldedPixelShift.of(self, convolution, norm)


def _windows(config: PixelShift, geometry: Geometry) -> list[Geometry]:
    sizes = window_of(config.window, geometry)
    distances = [(pixels,) * geometry.dims for pixels in config.dilations] or [geometry.dilation]
    return [geometry.recentred(sizes, distance) for distance in distances]


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
    sizes, steps, spaces = (each(value, query.dim() - 2) for value in (kernel_size, stride, dilation))
    query, key = (padded_for(maps, padding, sizes, spaces, padding_mode) for maps in (query, key))
    return centres(query, sizes, steps, spaces).unsqueeze(2) * windows(key, sizes, steps, spaces)


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
    context_inner: Tensor | None = None,
    *,
    gate: Callable[[Tensor], Tensor] | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] | str = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    padding_mode: str = "zeros",
) -> Tensor:
    """The reference of ``PixelShift``, shift by shift, as its formula reads::

        a_0 = W^v Σ_δ w_δ ⊙ φ(q_0) ⊙ k_δ  +  W^v ( φ(q_0) ⊙ (g ⊙ mean_t(k_t) + b) )

    with ``q = W^q x + b^q + W^m mean_t(x_t)`` and ``k = W^k x``. The image is padded first, so that query and key see the same
    pixels as a convolution of this geometry.

    Args:
        x: (N, C_in, H, W).
        query_weight, key_weight: (A, C_in / groups, 1, 1).
        value_weight: (C_out, A / groups, 1, 1).
        window_weight: ``w``, (A, kh, kw).
        query_bias: ``b^q``, (A,).
        window_bias: ``b``, (A,), added to the window sum of the keys.
        mean_weight: ``g``, (A,), the weight of the term over all pixels; the mean runs over the unpadded image.
        context_weight: ``W^m``, (A, C_in / groups, 1, 1), by which the query sees the unpadded image's mean.
        context_inner: V, (R, C_in, 1, 1), of a pooled query of low rank: ``W^m = U V`` across all groups, and ``context_weight``
            is U, (A, R, 1, 1).
        gate: ``φ``, applied to the query; the identity when None.
        stride, padding, dilation, groups, padding_mode: as in ``nn.Conv2d``.

    Returns:
        (N, C_out, H', W').
    """
    kernel_size, dims = tuple(window_weight.shape[1:]), x.dim() - 2
    steps, spaces, ones = each(stride, dims), each(dilation, dims), (1,) * dims
    padded = padded_for(x, padding, kernel_size, spaces, padding_mode)
    query, key = mixed(padded, query_weight, query_bias, groups), mixed(padded, key_weight, None, groups)
    if context_weight is not None and context_inner is not None:
        query = query + mixed(mixed(image_average(x), context_inner), context_weight)
    elif context_weight is not None:
        query = query + mixed(image_average(x), context_weight, None, groups)
    query = query if gate is None else gate(query)
    products = pixel_shift_products(query, key, kernel_size, steps, 0, spaces)
    weighted = (window_weight.flatten(1).reshape(-1, products.shape[2], *ones) * products).sum(2)
    centre = centres(query, kernel_size, steps, spaces)
    if mean_weight is not None:
        mean_key = image_average(mixed(x, key_weight, None, groups))
        weighted = weighted + centre * mean_weight.reshape(-1, *ones) * mean_key
    if window_bias is not None:
        weighted = weighted + centre * window_bias.reshape(-1, *ones)
    return mixed(weighted, value_weight, None, groups)


@dataclass
class FoldedPixelShift(Folded):
    """The operator: ``conv(x) + norm( W^v ( φ(query_norm(q_0 + W^m mean(x))) ⊙ window_norm(Σ_δ w_δ k_δ + g mean(k) + b) ) )``.

    The norms are identities unless they could not fold. Weights of 1x1 convolutions are (out, in / groups). ``W^m`` is
    ``context_weight``; with ``context_inner``, (R, C_in), it is ``context_weight`` (A, R) times that, across all groups.
    """

    gate: str
    query_weight: Tensor
    query_bias: Tensor
    context_weight: Tensor | None
    context_inner: Tensor | None
    key_weight: Tensor
    windows: list[tuple[Geometry, Tensor]]
    window_bias: Tensor
    mean_weight: Tensor | None
    value_weight: Tensor
    query_norm: nn.Module
    window_norm: nn.Module
    norm: nn.Module

    @classmethod
    def of(cls, attention: PixelShiftAttention, convolution: FoldedConvolution, norm: nn.Module) -> FoldedPixelShift:
        """The branch with its norms multiplied in."""
        value_scale, norm = convolution.absorb(norm)
        query, key, value = (kernel_of(conv) for conv in (attention.query, attention.key, attention.value))
        query_scale, query_shift, query_norm = split_norm(attention.query_norm, attention.channels, query.weight)
        window_scale, window_shift, window_norm = split_norm(attention.window_norm, attention.channels, query.weight)
        value_weight, mean_weight, context = value.weight.flatten(1), attention.mean_weight, attention.context
        context_weight = context_inner = None
        if isinstance(context, LowRank):
            context, context_inner = context.outer, kernel_of(context.inner).weight.flatten(1)
        if context is not None:
            context_weight = kernel_of(context).weight.flatten(1) * query_scale.unsqueeze(1)
        return cls(
            convolution,
            gate=attention.gate,
            query_weight=query.weight.flatten(1) * query_scale.unsqueeze(1),
            query_bias=query.bias * query_scale + query_shift,
            context_weight=context_weight,
            context_inner=context_inner,
            key_weight=key.weight.flatten(1),
            windows=[
                (window.geometry, window.weight.squeeze(1) * per_channel(window_scale, window.weight))
                for window in map(kernel_of, attention.windows)
            ],
            window_bias=window_shift,
            mean_weight=None if mean_weight is None else double(mean_weight) * window_scale,
            value_weight=value_weight if value_scale is None else value_weight * value_scale.unsqueeze(1),
            query_norm=query_norm,
            window_norm=window_norm,
            norm=norm,
        )

    @property
    def channels(self) -> int:
        """Attention channels A."""
        return len(self.key_weight)

    def context(self, factory: dict[str, Any]) -> Any:
        """The map from the mean of the image to the term that it adds to the query; None without a pooled query."""
        dims = self.convolution.geometry.dims
        if self.context_weight is None:
            return None
        if self.context_inner is not None:
            return LowRank.of(dims, self.context_inner, self.context_weight, factory)
        return pointwise_of(dims, self.context_weight, None, self.convolution.groups, factory)

    @property
    def union(self) -> Geometry:
        """The window of the single convolution: all taps of the convolution, the shifts, and the centre."""
        geometry = self.convolution.geometry
        return geometry.union([geometry.centre(), *(window for window, _ in self.windows)])

    @property
    def shifted_keys(self) -> Tensor:
        """``Σ_δ w_δ ⊙ W^k`` as one kernel: (A, C_in / groups, kh, kw) over ``union``."""
        union = self.union
        window = torch.stack([union.embed(weight, window) for window, weight in self.windows]).sum(0).unsqueeze(1)
        return per_channel(self.key_weight, window) * window

    @property
    def query_joins_key(self) -> bool:
        """Whether one 1x1 convolution can compute query and key, because both are read at the same pixels."""
        centre, dims = self.convolution.geometry.centre(), self.convolution.geometry.dims
        return self.convolution.groups == 1 and centre == Geometry.create(
            1, padding_mode=centre.padding_mode, dims=dims
        )

    @property
    def layouts(self) -> tuple[str, ...]:
        separate = ("split", "parts") if self.query_joins_key else ("split",)
        return ("single", *separate) if self.union.is_pointwise else (*separate, "single")

    def build(self, layout: str, factory: dict[str, Any]) -> GatedConv:
        return _FORMS[layout](self, factory)

    def kernel_at(self, x: Tensor, position: Sequence[int]) -> tuple[Tensor, Tensor]:
        """``W^c_δ + W^v diag(φ(q_0) ⊙ w_δ) W^k``."""
        self.require_folded(self.norm, self.query_norm, self.window_norm)
        convolution, union, groups = self.convolution, self.union, self.convolution.groups
        query = query_at(x, self.query_weight, self.query_bias, convolution, position)
        mean = x.mean(spatial(x), keepdim=True)

        def of_mean(weight: Tensor, groups: int = groups) -> Tensor:
            return CONVOLVE[union.dims](mean, per_channel(weight, x), groups=groups).flatten(1)

        if self.context_weight is not None and self.context_inner is not None:
            query = query + of_mean(self.context_weight @ self.context_inner, 1)
        elif self.context_weight is not None:
            query = query + of_mean(self.context_weight)
        constant = self.window_bias.expand(len(x), -1)
        if self.mean_weight is not None:
            constant = constant + self.mean_weight * of_mean(self.key_weight)
        return self._kernels(query, constant)

    def static(self) -> FoldedConvolution | None:
        """The equivalent convolution if the query is the same at every pixel of every image and no mean of keys is added."""
        norms = (self.convolution.norm, self.norm, self.query_norm, self.window_norm)
        varying = (self.query_weight, self.context_weight, self.mean_weight)
        folds = all(type(norm) is nn.Identity for norm in norms)
        if not folds or any(weight is not None and (weight.is_meta or weight.any()) for weight in varying):
            return None
        kernel, bias = self._kernels(self.query_bias.unsqueeze(0), self.window_bias.unsqueeze(0))
        return self.convolution.merged(self.union, kernel[0], bias[0])

    def _kernels(self, query: Tensor, constant: Tensor) -> tuple[Tensor, Tensor]:
        """Kernels and biases of the queries (N, A), where ``constant`` (N, A) adds to the window's sum."""
        convolution, union, groups = self.convolution, self.union, self.convolution.groups
        query = GATES[self.gate].apply(query).unflatten(1, (groups, -1))
        value = self.value_weight.unflatten(0, (groups, -1))
        keys = self.shifted_keys.unflatten(0, (groups, -1))
        attended = torch.einsum("goa,nga,gait->ngoit", value, query, keys.flatten(3)).flatten(1, 2)
        bias = torch.einsum("goa,nga,nga->ngo", value, query, constant.unflatten(1, (groups, -1))).flatten(1)
        kernel = union.embed(convolution.weight, convolution.geometry) + attended.unflatten(3, union.kernel_size)
        return kernel, convolution.bias + bias


class Parts(NamedTuple):
    """The inputs of the gate: ``z_c`` (N, C_out, H', W'), ``z_q`` and ``z_k`` (N, A, H', W'), and the terms of the whole image.

    ``s_q`` and ``s_k`` are (N, A, 1, 1), or None where there is no pooled query or key.
    """

    convolution: Tensor
    query: Tensor
    window_sum: Tensor
    query_shift: Tensor | None
    sum_shift: Tensor | None


class GatedConv(DeployedOperator):
    """The deployed operator: ``y = z_c + W^v ( φ(z_q + s_q) ⊙ (z_k + s_k) )``, whose parts the subclasses compute."""

    def __init__(self, folded: FoldedPixelShift, factory: dict[str, Any]) -> None:
        convolution = folded.convolution
        super().__init__(convolution)
        self.gate, dims = folded.gate, convolution.geometry.dims
        self.value = pointwise_of(dims, folded.value_weight, None, convolution.groups, factory)
        # Norms that could not fold; identities otherwise.
        self.conv_norm, self.attention_norm = convolution.norm, folded.norm
        self.query_norm, self.window_norm = folded.query_norm, folded.window_norm

    @abstractmethod
    def parts(self, x: Tensor) -> Parts:
        """The inputs of the gate, from (N, C_in, H, W)."""

    def compute(self, x: Tensor) -> Tensor:
        y, query, window_sum, query_shift, sum_shift = self.parts(x)
        query, window_sum = bounded(query), bounded(window_sum)
        query = query if query_shift is None else query + query_shift
        window_sum = window_sum if sum_shift is None else window_sum + sum_shift
        source = query.dtype
        query, window_sum = widen(self.query_norm(query), self.window_norm(window_sum))
        product = GATES[self.gate].apply(query) * window_sum
        y = self.conv_norm(y)
        if type(self.attention_norm) is nn.Identity and product.dtype == source:
            return project_onto(y, self.value, product)
        return add(y, self.attention_norm(project_wide(self.value, product, source)))

    def parts_to_equalize(self, x: Tensor) -> Mapping[str, Tensor]:
        """Each part, and the gate's two with what the whole image adds to them too; none where the sum has a norm of its own."""
        if type(self.window_norm) is not nn.Identity:
            return {}
        y, query, window_sum, query_shift, sum_shift = self.parts(x)
        ranges = {"convolution": y, "query": query, "window_sum": window_sum}
        if query_shift is not None:
            ranges["query"] = torch.cat([query, query + query_shift])
        if sum_shift is not None:
            ranges["window_sum"] = torch.cat([window_sum, window_sum + sum_shift])
        return ranges

    def _divide_values(self, factors: Tensor) -> None:
        """Divide the input channels of ``W^v``."""
        by_group = self.value.weight.unflatten(0, (self.groups, -1))
        by_group /= per_channel(factors.reshape(self.groups, 1, -1), self.value.weight)


class SingleGatedConv(GatedConv):
    """Layout ``single``: one standard convolution with C_out + 2 A output channels, then the gate."""

    layout = "single"

    def __init__(self, folded: FoldedPixelShift, factory: dict[str, Any]) -> None:
        super().__init__(folded, factory)
        convolution, union, groups = folded.convolution, folded.union, folded.convolution.groups
        self.sizes = [channels // groups for channels in (convolution.channels, folded.channels, folded.channels)]
        centre = convolution.geometry.centre()
        kernels = (
            union.embed(convolution.weight, convolution.geometry),
            union.embed(as_kernel(folded.query_weight, union.dims), centre),
            folded.shifted_keys,
        )
        biases = (convolution.bias, folded.query_bias, folded.window_bias)
        self.conv = conv_of(union, _joined(kernels, groups), _joined(biases, groups), groups, factory)
        of_sum = None if folded.mean_weight is None else folded.mean_weight.unsqueeze(1) * folded.key_weight
        # What sees all channels has another shape than what sees those of a group.
        self.mixed = None if folded.context_inner is None else folded.context(factory)
        of_query = None if self.mixed is not None else folded.context_weight
        self.shifted = (of_query is not None, of_sum is not None)
        shifts, self.context = [weight for weight in (of_query, of_sum) if weight is not None], None
        if shifts:
            self.context = pointwise_of(union.dims, _joined(shifts, groups), None, groups, factory)

    def parts(self, x: Tensor) -> Parts:
        y, query, window_sum = _parted(self.conv(x), self.sizes, self.groups)
        return Parts(y, query, window_sum, *self._shifts(x))

    def _shifts(self, x: Tensor) -> tuple[Tensor | None, Tensor | None]:
        if self.context is None and self.mixed is None:
            return None, None
        mean = image_mean(x)
        parted: list[Tensor] = []
        if self.context is not None:
            sizes = [self.value.in_channels // self.groups] * sum(self.shifted)
            parted = list(_parted(bounded(self.context(mean)), sizes, self.groups))
        found = iter(parted)
        of_query, of_sum = (next(found) if there else None for there in self.shifted)
        return of_query if self.mixed is None else bounded(self.mixed(mean)), of_sum

    def equalize_(self, ranges: Mapping[str, Tensor]) -> None:
        """``z_k``, and with the identity gate ``z_q``, come to the range of the parts of the one convolution that cannot move."""
        scalable_query = self.gate == "identity" and type(self.query_norm) is nn.Identity
        fixed = [ranges["convolution"]] if scalable_query else [ranges["convolution"], ranges["query"]]
        target = torch.cat(fixed).max()
        by_group = torch.arange(self.conv.out_channels).unflatten(0, (self.groups, -1))
        _, query, window_sum = by_group.split(self.sizes, 1)
        scaled = [("window_sum", window_sum)] + ([("query", query)] if scalable_query else [])
        for part, rows in scaled:
            factors = _factors(ranges[part], target)
            _scale_rows(self.conv, rows.flatten(), factors)
            self._scale_shift(part, factors)
            self._divide_values(factors)

    def _scale_shift(self, part: str, factors: Tensor) -> None:
        """Multiply the term that the whole image adds to the query or to the window sum, if there is one."""
        of_query, of_sum = self.shifted
        if part == "query" and self.mixed is not None:
            _scale_rows(self.mixed.outer, torch.arange(len(factors)), factors)
        if self.context is None or not (of_query if part == "query" else of_sum):
            return
        by_group = torch.arange(self.context.out_channels).unflatten(0, (self.groups, -1))
        rows = by_group.chunk(of_query + of_sum, 1)[0 if part == "query" else -1]
        _scale_rows(self.context, rows.flatten(), factors)


class SplitGatedConv(GatedConv):
    """Layout ``split``: W^c as its own convolution, (q, k) by 1x1, the window sum by a depthwise convolution.

    The keys of all pixels are available, so their mean is computed over A channels instead of C_in (``W^k mean(x)``).
    """

    layout = "split"
    mean_weight: Tensor | None
    #: Whether query and key are one convolution where they can be.
    merges: ClassVar[bool] = True

    def __init__(self, folded: FoldedPixelShift, factory: dict[str, Any]) -> None:
        super().__init__(folded, factory)
        convolution, groups = folded.convolution, folded.convolution.groups
        geometry, dims = convolution.geometry, convolution.geometry.dims
        self.conv = conv_of(geometry, convolution.weight, convolution.bias, groups, factory)
        centre = geometry.centre()
        self.merged = self.merges and folded.query_joins_key
        if self.merged:
            weight = torch.cat([folded.query_weight, folded.key_weight])
            bias = torch.cat([folded.query_bias, torch.zeros_like(folded.query_bias)])
            self.query_key = pointwise_of(dims, weight, bias, 1, factory)
        else:
            self.query = conv_of(centre, as_kernel(folded.query_weight, dims), folded.query_bias, groups, factory)
            self.key = pointwise_of(dims, folded.key_weight, None, groups, factory)
        self.windows = nn.ModuleList(
            conv_of(window, weight.unsqueeze(1), None if index else folded.window_bias, folded.channels, factory)
            for index, (window, weight) in enumerate(folded.windows)
        )
        self.context = folded.context(factory)
        mean_weight = folded.mean_weight
        if mean_weight is not None:
            mean_weight = per_channel(mean_weight, self.conv.weight).to(self.conv.weight)
        self.register_buffer("mean_weight", mean_weight)

    def upgrade_weights_(self, weights: dict[str, Tensor], prefix: str) -> None:
        """0.1.0 stored ``[W^m ; g ⊙ W^k]`` as one convolution of ``mean(x)``, of which ``g`` follows from ``W^k``."""
        stored = weights.get(f"{prefix}context.weight")
        key = weights.get(f"{prefix}{'query_key' if self.merged else 'key'}.weight")
        if self.mean_weight is None or f"{prefix}mean_weight" in weights or stored is None or key is None:
            return
        channels, parts = len(self.mean_weight), 1 if self.context is None else 2
        if stored.shape[1:] != key.shape[1:] or len(stored) != parts * channels:
            return  # of another network
        *of_query, of_sum = (part.flatten(0, 1) for part in stored.unflatten(0, (self.groups, -1)).chunk(parts, 1))
        keys, scaled = double(key[-channels:]).flatten(1), double(of_sum).flatten(1)
        mean_weight = (scaled * keys).sum(1) / keys.square().sum(1).clamp(min=torch.finfo(keys.dtype).tiny)
        weights[f"{prefix}mean_weight"] = per_channel(mean_weight, stored).to(stored)
        del weights[f"{prefix}context.weight"]
        if of_query:
            weights[f"{prefix}context.weight"] = of_query[0]

    def query_and_key(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(q, k): (N, A, H', W') at the centres of the windows and (N, A, H, W) everywhere."""
        if self.merged:
            query, key = project(self.query_key, x, parts=2)
            return query, key
        return self.query(x), self.key(x)

    def parts(self, x: Tensor) -> Parts:
        y = self.conv(x)
        query, key = self.query_and_key(x)
        key = bounded(key)
        first, *others = (bounded(window(key)) for window in self.windows)
        query_shift = None if self.context is None else bounded(self.context(image_mean(x)))
        sum_shift = None if self.mean_weight is None else self.mean_weight.to(key.dtype) * image_mean(key)
        return Parts(y, query, sum(others, start=first), query_shift, sum_shift)

    def parts_to_equalize(self, x: Tensor) -> Mapping[str, Tensor]:
        ranges = super().parts_to_equalize(x)
        return {**ranges, "key": self.query_and_key(x)[1]} if ranges else ranges

    def equalize_(self, ranges: Mapping[str, Tensor]) -> None:
        """The channels of ``z_k``, and of the keys before the window, come to one range each."""
        key_factors = _factors(ranges["key"], ranges["query"].max() if self.merged else ranges["key"].max())
        factors = _factors(ranges["window_sum"], ranges["window_sum"].max())
        channels = torch.arange(len(factors))
        if self.merged:
            _scale_rows(self.query_key, channels + len(factors), key_factors)
        else:
            _scale_rows(self.key, channels, key_factors)
        for window in self.windows:
            module: Any = window
            module.weight.mul_(per_channel((factors / key_factors)[:, None], module.weight))
            if module.bias is not None:
                module.bias.mul_(factors)
        if self.mean_weight is not None:
            self.mean_weight.mul_(per_channel(factors / key_factors, self.conv.weight))
        self._divide_values(factors)


class PartsGatedConv(SplitGatedConv):
    """Layout ``parts``: ``split`` with query and key as two 1x1 convolutions, which need no splitting of their outputs."""

    layout = "parts"
    merges = False

    def query_and_key(self, x: Tensor) -> tuple[Tensor, Tensor]:
        (query,), (key,) = project(self.query, x), project(self.key, x)
        return query, key


_FORMS: Mapping[str, type[GatedConv]] = {
    form.layout: form for form in (SingleGatedConv, SplitGatedConv, PartsGatedConv)
}


def _joined(parts: Sequence[Tensor], groups: int) -> Tensor:
    """(C, ...) each -> (sum of C, ...), with the channels of a group side by side."""
    return torch.cat([part.unflatten(0, (groups, -1)) for part in parts], 1).flatten(0, 1)


def _parted(maps: Tensor, sizes: Sequence[int], groups: int) -> Sequence[Tensor]:
    """The parts of (N, C, H, W) that ``_joined`` joined, from their sizes in each group."""
    if groups == 1:
        return maps.split(sizes, 1)
    return [part.flatten(1, 2) for part in maps.unflatten(1, (groups, -1)).split(sizes, 2)]


def _factors(magnitude: Tensor, target: Tensor) -> Tensor:
    """Powers of two that bring each magnitude close below ``target``; 1 where there is nothing to bring anywhere."""
    factors = torch.exp2(torch.floor(torch.log2(target.double() / magnitude.double())))
    return torch.where(torch.isfinite(factors) & (factors > 0), factors, 1.0).clamp(2.0**-14, 2.0**14).to(magnitude)


def _scale_rows(conv: Any, rows: Tensor, factors: Tensor) -> None:
    """Multiply output channels of a convolution."""
    conv.weight[rows] *= per_channel(factors[:, None], conv.weight)
    if conv.bias is not None:
        conv.bias[rows] *= factors
