"""Folding norms into convolutions, with a norm as a scale and a shift of each channel. All arithmetic is in fp64.

Only this module decides which norms fold.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from xvolution.convolutions import Kernel, kernel_of
from xvolution.copying import CopyError, copied
from xvolution.geometry import Geometry, per_channel
from xvolution.numerics import double, in_float64

NormLayer = Callable[[int], nn.Module]

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
# A subclass that does not change what is computed folds as its parent does.
_FORWARDS = tuple(norm.forward for norm in BATCH_NORMS)
_FROZEN_BUFFERS = ("weight", "bias", "running_mean", "running_var")

#: Norms that torch has for each number of dimensions; whichever is asked for, the operator takes the one of its own.
_NORM_FAMILIES: tuple[tuple[Any, ...], ...] = (
    (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d),
    (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d),
)


def build_norm(norm_layer: NormLayer | None, channels: int, dims: int, factory: dict[str, Any]) -> nn.Module:
    """``norm_layer(channels)`` on the device and in the dtype of the layer; the identity when there is none."""
    if norm_layer is None:
        return nn.Identity()
    family = next((family for family in _NORM_FAMILIES if norm_layer in family), None)
    norm_layer = norm_layer if family is None else family[dims - 1]
    return norm_layer(channels).to(**{name: value for name, value in factory.items() if value is not None})


def builds_foldable(norm_layer: NormLayer | None) -> bool:
    """Whether the norms of ``norm_layer`` become a scale and a shift: batch norms do."""
    return isinstance(norm_layer, type) and issubclass(norm_layer, nn.modules.batchnorm._BatchNorm)


def is_frozen_batch_norm(module: Any) -> bool:
    """A batch norm whose weights and statistics are all buffers, as torchvision's and detectron2's detectors have them.

    Any class with such buffers counts that computes this formula, which is tested by running it on random statistics: others add
    an activation, or divide by something else.
    """
    compiled = isinstance(module, torch.jit.ScriptModule)  # whose class is not known
    if (
        compiled
        or module._parameters
        or not all(isinstance(module._buffers.get(name), Tensor) for name in _FROZEN_BUFFERS)
    ):
        return False
    return module.running_var.is_meta or any(_computes_batch_norm(module, dims) for dims in (2, 1, 3))


@torch.no_grad()
def _computes_batch_norm(module: Any, dims: int) -> bool:
    """Whether a frozen norm is the scale and the shift of ``affine_of`` on maps of ``dims`` dimensions."""
    try:
        norm = in_float64(copied(module))
    except CopyError:
        return False
    generator = torch.Generator().manual_seed(0)
    for name in _FROZEN_BUFFERS:
        buffer = norm._buffers[name]
        norm._buffers[name] = (0.5 + torch.rand(buffer.shape, generator=generator, dtype=torch.float64)).to(
            buffer.device
        )
    channels = norm.running_var.numel()
    x = torch.randn(2, channels, *(3,) * dims, generator=generator, dtype=torch.float64).to(norm.running_var.device)
    scale, shift = (per_channel(weight, x) for weight in affine_of(norm, channels, x))
    expected = scale * x + shift
    try:
        y = norm.forward(x.clone())
    except Exception:  # whatever a stranger's forward raises, it is for maps of other dimensions, or no norm
        return False
    return isinstance(y, Tensor) and y.shape == x.shape and torch.allclose(y, expected, rtol=1e-9, atol=1e-9)


def becomes_foldable(norm: Any) -> bool:
    """Whether ``norm`` is a scale and a shift of each channel once it is trained."""
    if isinstance(norm, nn.modules.batchnorm._BatchNorm):
        return norm.track_running_stats
    return type(norm) is nn.Identity or is_frozen_batch_norm(norm)


def is_foldable(norm: Any) -> bool:
    """Whether ``norm`` is a scale and a shift now: the identity, or a batch norm that reads running statistics."""
    if type(norm) is nn.Identity:
        return True
    if getattr(type(norm), "forward", None) in _FORWARDS:
        return norm.running_mean is not None and not norm.training
    return is_frozen_batch_norm(norm)


@torch.no_grad()
def affine_of(norm: Any, channels: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """(scale, shift) of a foldable norm: ``norm(x) = scale * x + shift``.

    Returns:
        Two fp64 tensors of shape (channels,) on the device of ``like``.
    """
    one = torch.ones(channels, dtype=torch.float64, device=like.device)
    if type(norm) is nn.Identity:
        return one, torch.zeros_like(one)
    weight = one if norm.weight is None else double(norm.weight)
    scale = weight * torch.rsqrt(double(norm.running_var) + getattr(norm, "eps", 1e-5))
    shift = -double(norm.running_mean) * scale
    return scale, shift if norm.bias is None else shift + double(norm.bias)


def split_norm(norm: nn.Module, channels: int, like: Tensor) -> tuple[Tensor, Tensor, nn.Module]:
    """(scale, shift, remaining norm): the remaining norm is the identity if the norm folds, else the norm itself."""
    foldable = is_foldable(norm)
    scale, shift = affine_of(norm if foldable else nn.Identity(), channels, like)
    return scale, shift, nn.Identity() if foldable else norm


class FoldingError(ValueError):
    """The convolutions of an operator cannot merge."""


_APART = (
    "the convolutions of this operator cannot merge, because one of their norms does not fold; use batch "
    "norms with running statistics, or no norms"
)


@dataclass
class FoldedConvolution:
    """A convolution branch in eval mode: ``norm(conv2d(x, weight, bias))``.

    Attributes:
        geometry, groups: of the convolution.
        weight, bias: (C_out, C_in / groups, kh, kw) and (C_out,), fp64, with every norm that folds multiplied in.
        norm: the norm that did not fold; else the identity.
        value_weight, value_bias: those of the first convolution before its norm, ``v = conv2d(x, value_weight, value_bias)``.
        scale, shift: (C_out,), of that norm: the branch is ``scale * v + shift`` where it has one convolution.
    """

    geometry: Geometry
    groups: int
    weight: Tensor
    bias: Tensor
    norm: nn.Module
    value_weight: Tensor
    value_bias: Tensor
    scale: Tensor
    shift: Tensor

    @property
    def channels(self) -> int:
        """Output channels C_out."""
        return len(self.weight)

    def merged(self, geometry: Geometry, weight: Tensor, bias: Tensor) -> FoldedConvolution:
        """The plain convolution for this one, if no norm is left."""
        one, zero = torch.ones_like(bias), torch.zeros_like(bias)
        return FoldedConvolution(geometry, self.groups, weight, bias, nn.Identity(), weight, bias, one, zero)

    def absorb(self, norm: nn.Module) -> tuple[Tensor | None, nn.Module]:
        """Take the shift of a norm whose output is added to the branch's into the bias.

        Returns:
            The norm's scale (C_out,) and the identity; None and the norm where it does not fold, or where a norm of this branch
            comes after the bias.
        """
        if not (type(self.norm) is nn.Identity and is_foldable(norm)):
            return None, norm
        scale, shift = affine_of(norm, self.channels, self.weight)
        self.bias, self.shift = self.bias + shift, self.shift + shift
        return scale, nn.Identity()


def normalized(kernel: Kernel, norm: nn.Module) -> Kernel:
    """A convolution merged with the norm after it.

    Raises:
        FoldingError: the norm does not fold.
    """
    if not is_foldable(norm):
        raise FoldingError(_APART)
    scale, shift = affine_of(norm, len(kernel.weight), kernel.weight)
    weight = kernel.weight * per_channel(scale[:, None], kernel.weight)
    return Kernel(kernel.geometry, weight, kernel.bias * scale + shift)


def fold_convolutions(conv: Any, first_norm: nn.Module, others: Iterable[Kernel]) -> FoldedConvolution:
    """A convolution with the norm after it, and others within its window, merged into one convolution.

    Raises:
        FoldingError: there are others, and the norm does not fold.
    """
    kernel = kernel_of(conv)
    weight, channels = kernel.weight, len(kernel.weight)
    scale, shift, norm = split_norm(first_norm, channels, weight)
    folded = FoldedConvolution(
        geometry=kernel.geometry,
        groups=conv.groups,
        weight=weight * per_channel(scale[:, None], weight),
        bias=kernel.bias * scale + shift,
        norm=norm,
        value_weight=weight,
        value_bias=kernel.bias,
        scale=scale,
        shift=shift,
    )
    for other in others:
        if type(norm) is not nn.Identity:
            raise FoldingError(_APART)
        folded.weight = folded.weight + folded.geometry.embed(other.weight, other.geometry)
        folded.bias = folded.bias + other.bias
    return folded
