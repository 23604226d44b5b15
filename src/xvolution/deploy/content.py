"""The deployed forms of the other branches: beside the convolution, or as one whose kernel the content of each image decides."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from xvolution.deploy.deployed import DeployedXVolution, conv_of, kernel_of_matrix
from xvolution.deploy.fold import FoldedOperator, SharedValues, embed
from xvolution.functional import convolution as convolve
from xvolution.functional import per_channel
from xvolution.nn import ImageAttention, LinearAttention
from xvolution.nn.convolution import is_convolution, is_plain, kernel_of
from xvolution.nn.geometry import Geometry
from xvolution.nn.precision import add, narrow


class TwoBranchConv(DeployedXVolution):
    """Layout ``split`` of the branches that do not merge: a folded convolution plus the attention branch."""

    layout = "split"

    def __init__(self, folded: FoldedOperator, attention: nn.Module, factory: dict[str, Any]) -> None:
        super().__init__(folded.convolution)
        convolution = folded.convolution
        self.conv = conv_of(convolution.geometry, convolution.weight, convolution.bias, convolution.groups, factory)
        self.conv_norm = convolution.norm
        self.attention = _materialized(deepcopy(attention), factory)
        self.attention_norm = folded.attention_norm
        if folded.value_scale is not None:
            value: Any = self.attention.value
            value.weight.copy_(value.weight.double() * per_channel(folded.value_scale[:, None], value.weight))
            if value.bias is not None:
                value.bias.copy_(value.bias.double() * folded.value_scale)

    def compute(self, x: Tensor) -> Tensor:
        y = self.conv_norm(self.conv(x))
        return add(y, self.attention_norm(self.attention(x)))


class ContentConv(TwoBranchConv):
    """Layout ``single`` of the branches that are one convolution for each image, with a kernel that its content decides."""

    layout = "single"

    def kernels(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Kernels (N, C_out, C_in / groups, kh, kw) and biases (N, C_out) of the whole operator, in the dtype of ``x``."""
        raise TypeError(f"{type(self).__name__} does not define its kernels")

    def compute(self, x: Tensor) -> Tensor:
        if not _takes_kernels(x) or type(self.conv_norm) is not nn.Identity:
            return super().compute(x)
        return _convolve_each(Geometry.of(self.conv), x, *self.kernels(x), self.conv.groups)


def _takes_kernels(x: Tensor) -> bool:
    """Whether images can have a kernel each: a graph for any batch size cannot have one group for each image."""
    of_one_size = not torch.compiler.is_compiling() or (torch.compiler.is_exporting() and type(x.shape[0]) is int)
    return of_one_size and x.shape[0] > 0


def _convolve_each(geometry: Geometry, x: Tensor, kernels: Tensor, biases: Tensor, groups: int) -> Tensor:
    """Each image by its own kernel: (N, C_in, H, W), (N, C_out, C_in / groups, kh, kw), (N, C_out) -> (N, C_out, H', W')."""
    images = x.shape[0]
    batch = geometry.pad(x).flatten(0, 1).unsqueeze(0)
    y = convolve(batch, kernels.flatten(0, 1), biases.flatten(), geometry.stride, geometry.dilation, images * groups)
    y = y.reshape(images, -1, *y.shape[2:])
    channels_last = x.dim() == 4 and x.stride(1) == 1 < x.shape[1]
    return y.contiguous(memory_format=torch.channels_last) if channels_last else y


class MixedConv(ContentConv):
    """The linear branch: kernel ``W^c + M(x) W^q`` at the centre."""

    attention: LinearAttention

    def kernels(self, x: Tensor) -> tuple[Tensor, Tensor]:
        conv, attention = self.conv, self.attention
        queries: Any = attention.query
        mixing = attention.mixing_matrix(x)
        heads = mixing.shape[1]
        query_weight = queries.weight.flatten(1).unflatten(0, (heads, -1)).to(mixing.dtype)
        query_bias = queries.bias.unflatten(0, (heads, -1)).unsqueeze(-1).to(mixing.dtype)
        geometry = Geometry.of(conv)
        mixed = narrow((mixing @ query_weight).flatten(1, 2), x.dtype)
        centre = embed(kernel_of_matrix(mixed, geometry.dims), geometry.centre(), geometry)
        return conv.weight.to(x.dtype) + centre, (conv.bias + (mixing @ query_bias).flatten(1)).to(x.dtype)


class WeightedConv(ContentConv):
    """The image branch: kernel ``W^c + diag(φ(q)) W^v``, or ``W^c + diag(φ(q)) W^v diag(φ(k))``."""

    attention: ImageAttention

    def __init__(self, folded: FoldedOperator, attention: nn.Module, factory: dict[str, Any]) -> None:
        super().__init__(folded, attention, factory)
        window = self.attention.window
        if window is not None:
            weight, groups = self.attention.value_weight, self.conv.groups
            self.attention.value = conv_of(kernel_of(window).geometry, weight, None, groups, factory)
            self.attention.window = None

    def kernels(self, x: Tensor) -> tuple[Tensor, Tensor]:
        kernels = self.conv.weight.to(x.dtype) + self.attention.kernels(x)
        return kernels, self.conv.bias.to(x.dtype).expand(len(x), -1)


class SharedValueConv(DeployedXVolution):
    """The shared branch, layout ``split``: ``v = conv(x)``, ``y = s ⊙ v + b + φ(q) ⊙ (Σ_δ w_δ ⊙ v_δ + g ⊙ mean(v))``."""

    layout = "split"
    attention: Any
    scale: Tensor
    shift: Tensor

    def __init__(
        self, folded: FoldedOperator, shared: SharedValues, attention: nn.Module, factory: dict[str, Any]
    ) -> None:
        super().__init__(folded.convolution)
        convolution = folded.convolution
        self.attention = _materialized(deepcopy(attention), factory)
        self.conv = conv_of(convolution.geometry, shared.weight, shared.bias, convolution.groups, factory)
        for name, vector in (("scale", shared.scale), ("shift", shared.shift)):
            self.register_buffer(name, per_channel(vector, self.conv.weight).to(self.conv.weight))
        self.conv_norm, self.attention_norm = convolution.norm, folded.attention_norm
        if folded.value_scale is not None:
            window, mean_weight = self.attention.window.weight, self.attention.mean_weight
            window.copy_(window.double() * per_channel(folded.value_scale[:, None], window))
            if mean_weight is not None:
                mean_weight.copy_(mean_weight.double() * folded.value_scale)

    def compute(self, x: Tensor) -> Tensor:
        value = self.conv(x)
        y = self.conv_norm(value * self.scale + self.shift)
        return add(y, self.attention_norm(self.attention(x, value)))


class SharedKernelConv(SharedValueConv):
    """The same, layout ``single``: ``v = conv(x)``, then a depthwise convolution by a kernel that the image decides."""

    layout = "single"

    def compute(self, x: Tensor) -> Tensor:
        if not _takes_kernels(x):
            return super().compute(x)
        attention, value = self.attention, self.conv(x)
        geometry, weights = Geometry.of(attention.window), attention.weights(x)
        kernels = weights.unsqueeze(2) * attention.window.weight.to(x.dtype)
        kernels = kernels + embed(self.scale.unsqueeze(1), geometry.centre(), geometry).to(x.dtype)
        biases = self.shift.to(x.dtype).expand_as(weights)
        if attention.mean_weight is not None:
            biases = biases + weights * attention.mean_value(value)
        return _convolve_each(geometry, value, kernels, biases, self.out_channels)


def _materialized(attention: nn.Module, factory: dict[str, Any]) -> nn.Module:
    """The branch with torch's own convolutions, where it had parametrized ones."""
    for name, module in list(attention.named_modules()):
        if is_convolution(module) and not is_plain(module):
            kernel, groups = kernel_of(module), int(getattr(module, "groups", 1))
            attention.set_submodule(name, conv_of(kernel.geometry, kernel.weight, kernel.bias, groups, factory))
    return attention
