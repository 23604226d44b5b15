"""What a convolution computes, whatever its class: the kernel that its forward hands to torch, and the window it looks through.

A subclass of ``nn.Conv2d`` may standardize its weights (weight-standardized ResNets), pad by the size of the image (networks
from TensorFlow), or take its weights from a parametrization. Any of them is understood as long as it computes one plain
convolution, which is tested by running it; nothing is decided by a class's name.
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from xvolution.nn.geometry import CONVOLUTIONS, ExplicitPadding, Geometry

_PLAIN = (*CONVOLUTIONS.values(), *ExplicitPadding.__subclasses__())
_FUNCTIONS = (F.conv1d, F.conv2d, F.conv3d)


@dataclass(frozen=True)
class Kernel:
    """One plain convolution over ``geometry``: ``weight`` (C_out, C_in / groups, kh, kw), ``bias`` (C_out,) or None, in fp64."""

    geometry: Geometry
    weight: Tensor
    bias: Tensor | None


def is_plain(conv: nn.Module) -> bool:
    """Whether ``conv`` is one of torch's own convolutions, with weights of its own.

    Pruning and the older weight and spectral norms compute them in a hook, and take them off the parameters for that.
    """
    return type(conv) in _PLAIN and {"weight", "bias"} <= conv._parameters.keys()


def is_hooked(module: nn.Module) -> bool:
    """Whether calling ``module`` runs more than its forward, which computing its formula elsewhere would leave out."""
    return bool(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    )


def is_convolution(module: nn.Module) -> bool:
    """Whether ``module`` computes one plain convolution of its input."""
    if is_plain(module):
        return True
    if not isinstance(module, tuple(CONVOLUTIONS.values())):
        return False
    try:
        return kernel_of(module) is not None
    except (RuntimeError, ValueError, TypeError, AttributeError):
        # A lazy or a quantized one, one with arguments of its own, one that cannot be copied
        return False


def padding_of(conv: Any) -> int | tuple[int, ...] | str:
    """The padding of ``conv`` as an argument of ``XVolution2d``.

    Raises:
        ValueError: ``conv`` computes no plain convolution.
    """
    if is_plain(conv) and not isinstance(conv, ExplicitPadding):
        return conv.padding
    geometry = kernel_of(conv).geometry
    if geometry.same_spans is not None:
        return "same_upper"
    return conv.padding


@torch.no_grad()
def kernel_of(conv: Any) -> Kernel:
    """The plain convolution that ``conv`` computes in eval mode.

    Raises:
        ValueError: ``conv`` computes something else.
    """
    bias = None if conv.bias is None else conv.bias.detach().double()
    if is_plain(conv):
        return Kernel(Geometry.of(conv), conv.weight.detach().double(), bias)
    probe = deepcopy(conv).eval().double()
    for geometry in _possible_geometries(conv):
        kernel = _observed(probe, geometry)
        if kernel is not None and all(_computes(probe, kernel, conv.groups, extra) for extra in (3, 4)):
            return kernel
    raise ValueError(
        f"{type(conv).__name__} computes no plain convolution of its input, so nothing can merge with it; leave it out by names "
        "or filter_fn"
    )


def _possible_geometries(conv: Any) -> Iterator[Geometry]:
    yield Geometry.of(conv)
    window = (conv.kernel_size, conv.stride, "same_upper", conv.dilation, conv.padding_mode)
    yield Geometry.create(*window, len(conv.kernel_size))


class _Convolutions(TorchFunctionMode):
    """Records weight and bias of every convolution that torch is asked for while it is entered."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Tensor, Tensor | None]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _FUNCTIONS:
            given = dict(zip(("input", "weight", "bias"), args, strict=False)) | kwargs
            self.calls.append((given["weight"].detach().clone(), given.get("bias")))
        return func(*args, **kwargs)


def _observed(probe: Any, geometry: Geometry) -> Kernel | None:
    with _Convolutions() as seen:
        probe(_image(probe, geometry, 3))
    if len(seen.calls) != 1:
        return None
    weight, bias = seen.calls[0]
    return Kernel(geometry, weight, bias)


def _computes(probe: Any, kernel: Kernel, groups: int, extra: int) -> bool:
    x = _image(probe, kernel.geometry, extra)
    expected = probe(x)
    actual = kernel.geometry.convolve(x, kernel.weight, kernel.bias, groups)
    return expected.shape == actual.shape and torch.allclose(expected, actual, rtol=1e-9, atol=1e-9)


def _image(probe: Any, geometry: Geometry, extra: int) -> Tensor:
    sizes = [d * (k - 1) + 1 + extra for k, d in zip(geometry.kernel_size, geometry.dilation, strict=True)]
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, probe.in_channels, *sizes, generator=generator, dtype=torch.float64)
    return x.to(probe.weight.device)
