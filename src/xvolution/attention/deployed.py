"""Deployed operators: the base class, the form without attention, and the form of attention that does not merge."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from xvolution.capture import SpatialModule
from xvolution.convolutions import conv_of, is_convolution, is_plain, kernel_of
from xvolution.copying import copied
from xvolution.folding import FoldedConvolution
from xvolution.geometry import Geometry, per_channel
from xvolution.numerics import CONVOLVE, add, computed_in, narrow, owned, without_autocast
from xvolution.standin import InPlaceOfConvolution


class DeployedOperator(InPlaceOfConvolution, SpatialModule):
    """An operator in deployed form. Maps (N, C_in, H, W) to (N, C_out, H', W'), in any number of dimensions.

    Attributes:
        layout: name of the deployed form.
        conv: the convolution that every form has.
        has_bias: whether the replaced convolution had a bias.
    """

    layout: ClassVar[str]
    conv: Any
    has_bias: bool = True

    def __init__(self, convolution: FoldedConvolution) -> None:
        super().__init__()
        self.geometry = geometry = convolution.geometry
        # Some networks read the geometry of their convolutions, to pad before them for instance.
        self.groups = convolution.groups
        self.out_channels, self.in_channels = convolution.channels, convolution.weight.shape[1] * self.groups
        self.kernel_size, self.stride, self.dilation = geometry.kernel_size, geometry.stride, geometry.dilation
        self.padding, self.padding_mode = tuple(before for before, _ in geometry.padding), geometry.padding_mode

    @property
    def dims(self) -> int:
        return self.geometry.dims

    def _weight_like(self) -> Tensor:
        weight = self.conv.weight
        return weight.new_empty(()).expand(self.out_channels, self.in_channels // self.groups, *self.kernel_size)

    def _bias_like(self) -> Tensor | None:
        return self.conv.weight.new_empty(()).expand(self.out_channels) if self.has_bias else None

    def upgrade_weights_(self, weights: dict[str, Tensor], prefix: str) -> None:
        """Convert the weights that an older version stored of this module, in a state dict with ``prefix``."""

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        self.upgrade_weights_(state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def parts_to_equalize(self, x: Tensor) -> Mapping[str, Tensor]:
        """Maps (N, C, ...) by name, whose channel ranges ``equalize_`` needs; none by default."""
        return {}

    def equalize_(self, ranges: Mapping[str, Tensor]) -> None:
        """Rescale channels between the parts so that one 8-bit scale holds each part, and outputs stay the same.

        Args:
            ranges: by name, the largest magnitude (C,) of each channel of ``parts_to_equalize``.
        """

    def extra_repr(self) -> str:
        return f"layout={self.layout}"


def upgraded_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of a deployed network in the current version's form; unchanged for any other network."""
    upgraded = dict(weights)
    for name, module in model.named_modules():
        if isinstance(module, DeployedOperator):
            module.upgrade_weights_(upgraded, f"{name}." if name else "")
    return upgraded


class MergedConv(DeployedOperator):
    """The deployed form of an operator without attention: one convolution."""

    layout = "single"

    def __init__(self, convolution: FoldedConvolution, factory: dict[str, Any]) -> None:
        super().__init__(convolution)
        self.conv = conv_of(convolution.geometry, convolution.weight, convolution.bias, convolution.groups, factory)
        self.conv_norm = convolution.norm

    def compute(self, x: Tensor) -> Tensor:
        return self.conv_norm(self.conv(x))


class ConstantConv(MergedConv):
    """Layout ``conv`` of attention with a constant gate: one convolution for both branches."""

    layout = "conv"


class TwoBranchConv(DeployedOperator):
    """Layout ``split`` of attention that does not merge: ``conv_norm(conv(x)) + attention_norm(attention(x))``."""

    layout = "split"

    def __init__(
        self, convolution: FoldedConvolution, attention: nn.Module, norm: nn.Module, factory: dict[str, Any]
    ) -> None:
        super().__init__(convolution)
        self.conv = conv_of(convolution.geometry, convolution.weight, convolution.bias, convolution.groups, factory)
        self.conv_norm = convolution.norm
        self.attention: Any = materialized(attention, factory)
        self.attention_norm = norm

    def compute(self, x: Tensor) -> Tensor:
        return add(self.conv_norm(self.conv(x)), self.attention_norm(self.attention(x)))


class TwoBranchOnConv(TwoBranchConv):
    """The same of attention that reads ``v = conv(x)``: ``conv_norm(s v + b) + attention_norm(attention(x, v))``."""

    scale: Tensor
    shift: Tensor

    def __init__(
        self, convolution: FoldedConvolution, attention: nn.Module, norm: nn.Module, factory: dict[str, Any]
    ) -> None:
        super().__init__(convolution, attention, norm, factory)
        weight, bias = convolution.value_weight, convolution.value_bias
        self.conv = conv_of(convolution.geometry, weight, bias, convolution.groups, factory)
        for name, vector in (("scale", convolution.scale), ("shift", convolution.shift)):
            self.register_buffer(name, per_channel(vector, self.conv.weight).to(self.conv.weight))

    def normalized(self, value: Tensor) -> Tensor:
        """The convolution branch from the convolution's output."""
        return self.conv_norm(value * self.scale.to(value.dtype) + self.shift.to(value.dtype))

    def compute(self, x: Tensor) -> Tensor:
        value = self.conv(x)
        return add(self.normalized(value), self.attention_norm(self.attention(x, value)))


class ContentConv(TwoBranchConv):
    """Layout ``single`` of branches that are one convolution for each image, with a kernel computed from the image."""

    layout = "single"

    @abstractmethod
    def kernels(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Kernels (N, C_out, C_in / groups, kh, kw) and biases (N, C_out) of the operator; in fp32 where ``x`` is in fp16."""

    def compute(self, x: Tensor) -> Tensor:
        if not takes_kernels(x) or type(self.conv_norm) is not nn.Identity:
            return super().compute(x)
        return self.convolve(x)

    def convolve(self, x: Tensor) -> Tensor:
        """The operator as one convolution for each image: (N, C_in, H, W) -> (N, C_out, H', W')."""
        return convolve_each(self.geometry, x, *self.kernels(x), self.conv.groups)


def takes_kernels(x: Tensor) -> bool:
    """Whether each image can have its own kernel; a graph for any batch size cannot have one group for each image."""
    if torch.jit.is_tracing():
        return False
    of_one_size = not torch.compiler.is_compiling() or (torch.compiler.is_exporting() and type(x.shape[0]) is int)
    return of_one_size and x.shape[0] > 0


def convolve_each(geometry: Geometry, x: Tensor, kernels: Tensor, biases: Tensor, groups: int) -> Tensor:
    """One kernel for each image: (N, C_in, H, W), (N, C_out, C_in / groups, kh, kw), (N, C_out) -> (N, C_out, H', W')."""
    dtype, images = computed_in(x), x.shape[0]
    if dtype == torch.float16:
        # Both branches in one sum, which may be beyond the range of fp16 where none of them is.
        with without_autocast(x.device):
            return narrow(convolve_each(geometry, x.float(), kernels.float(), biases.float(), groups), dtype)
    batch = geometry.pad(x).flatten(0, 1).unsqueeze(0)
    y = CONVOLVE[geometry.dims](
        batch, kernels.flatten(0, 1), biases.flatten(), geometry.stride, 0, geometry.dilation, images * groups
    )
    y = y.reshape(images, -1, *y.shape[2:])
    channels_last = x.dim() == 4 and x.stride(1) == 1 < x.shape[1]
    return owned(y.contiguous(memory_format=torch.channels_last) if channels_last else y)


def materialized(attention: nn.Module, factory: dict[str, Any]) -> nn.Module:
    """A copy of a branch in which parametrized convolutions are replaced by plain ones of torch."""
    attention = copied(attention)
    for name, module in list(attention.named_modules()):
        if name and is_convolution(module) and not is_plain(module):
            kernel, groups = kernel_of(module), int(getattr(module, "groups", 1))
            bias = None if module.bias is None else kernel.bias
            attention.set_submodule(name, conv_of(kernel.geometry, kernel.weight, bias, groups, factory))
    return attention
