"""Shared arithmetic: gates, means over an image, and wider precision for half-precision inputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xvolution.copying import compute_weights, copied

Module = TypeVar("Module", bound=nn.Module)

#: torch's convolutions by the number of dimensions after the channels.
CONVOLVE: dict[int, Callable[..., Tensor]] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


@dataclass(frozen=True)
class Gate:
    """A gate φ, acting element by element.

    Attributes:
        apply: φ(x).
        apply_: the same in the memory of x.
        backward: the gradient of x from that of φ(x) and from φ(x).
        inverse: x from φ(x); a large finite number for a limit of φ.
    """

    apply: Callable[[Tensor], Tensor]
    apply_: Callable[[Tensor], Tensor]
    backward: Callable[[Tensor, Tensor], Tensor]
    inverse: Callable[[Tensor], Tensor]


#: How close to a limit of a gate its inverse looks.
_CLOSEST = 1e-6


def _atanh(y: Tensor) -> Tensor:
    return y.clamp(_CLOSEST - 1, 1 - _CLOSEST).atanh()


GATES: dict[str, Gate] = {
    "identity": Gate(lambda x: x, lambda x: x, lambda grad, y: grad, lambda y: y),
    "sigmoid": Gate(torch.sigmoid, torch.Tensor.sigmoid_, torch.ops.aten.sigmoid_backward, lambda y: y.logit(_CLOSEST)),
    "tanh": Gate(torch.tanh, torch.Tensor.tanh_, torch.ops.aten.tanh_backward, _atanh),
}


def without_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """A context in which autocast is off; the meta device has no autocast."""
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)


@cache
def has_float64(device_type: str) -> bool:
    """Whether a kind of device computes in fp64; Apple's GPUs do not."""
    try:
        torch.empty(0, dtype=torch.float64, device=device_type)
    except (TypeError, RuntimeError):
        return False
    return True


def double(x: Tensor) -> Tensor:
    """``x`` without its gradient in fp64, on the CPU if its device has no fp64."""
    x = x.detach()
    return (x if has_float64(x.device.type) else x.cpu()).double()


def on_float64_device(module: Module) -> Module:
    """``module``, or a copy of it on the CPU where its device has no fp64."""
    kinds = {tensor.device.type for tensor in (*module.parameters(), *module.buffers())}
    return module if all(map(has_float64, kinds)) else copied(module).cpu()


def in_float64(module: Module) -> Module:
    """``module`` itself, changed to fp64; on the CPU where its device has none."""
    return compute_weights(on_float64_device(module).double())


def computed_in(x: Tensor) -> torch.dtype:
    """The dtype in which torch convolves ``x``: that of autocast, where it is on."""
    device = x.device.type
    if device != "meta" and torch.is_autocast_enabled(device) and x.dtype != torch.float64:
        return torch.get_autocast_dtype(device)
    return x.dtype


def is_captured() -> bool:
    """Whether torch records a graph, whose sizes may be any: ``torch.compile``, ``torch.export``, ``torch.jit.trace``."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()


def widen(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The output of an attention branch: fp16 becomes fp32, within the range of fp16; other dtypes are unchanged.

    A product of two features of magnitude 1e3 is beyond fp16's 65504; bfloat16 has the range of fp32.
    """
    return tuple(_saturated(t.float()) if t.dtype == torch.float16 else t for t in tensors)


def bounded(x: Tensor) -> Tensor:
    """The output of an attention branch, with infinity from fp16 overflow replaced by fp16's largest number; NaN stays NaN.

    Differences or products of infinities then cannot make it NaN, and ``add`` keeps infinities of the convolution branch.
    """
    return _saturated(x) if x.dtype == torch.float16 else x


def _saturated(x: Tensor) -> Tensor:
    limit = torch.finfo(torch.float16).max
    return x.clamp(-limit, limit)


def narrow(x: Tensor, dtype: torch.dtype) -> Tensor:
    """``x`` in ``dtype``; finite values beyond the range of fp16 become its largest number.

    fp32 results from finite fp16 numbers are finite, so an infinity here came from the input or from a convolution. It stays
    infinite, and NaN stays NaN, as in the plain convolution.
    """
    if dtype == torch.float16 and x.dtype != dtype:
        return torch.where(x.isinf(), x, _saturated(x)).to(dtype)
    return x.to(dtype)


def owned(y: Tensor) -> Tensor:
    """``y``, copied if it is a view that autograd tracks, because hooks may change a module's output in place."""
    return y.clone() if not is_captured() and y.requires_grad and y._is_view() else y


def multiply_channels(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """The 1x1 convolution with one channel a group, which is a multiplication: eager torch convolves 6 to 10 times as long.

    Args:
        x: (N, C, H, W), or without N.
        weight: (C_out, 1, 1, 1); C divides C_out.
        bias: (C_out,).

    Returns:
        (N, C_out, H, W) in the dtype that torch would convolve in.
    """
    dtype, ones = computed_in(x), (1,) * (weight.dim() - 2)
    x, dim = x.to(dtype), -weight.dim() + 1
    channels = x.shape[dim]
    if len(weight) == channels:
        y = x * weight.to(dtype).reshape(-1, *ones)
    else:
        y = (x.unsqueeze(dim) * weight.to(dtype).reshape(channels, -1, *ones)).flatten(dim - 1, dim)
    return y if bias is None else y + bias.to(dtype).reshape(-1, *ones)


def add(y: Tensor, attended: Tensor) -> Tensor:
    """``y + attended`` in the dtype of ``y``; in fp16 the sum of finite ``y`` and attention of any size is finite.

    The convolution branch reads every infinite or NaN pixel too, so its result is returned, instead of a large number.
    """
    if y.dtype == torch.float16:
        wide = y.float()
        total = wide + attended.float()
        return torch.where(wide.abs() < torch.inf, _saturated(total), total).to(y.dtype)
    return y + attended.to(y.dtype)


def project_wide(conv: Any, x: Tensor, source: torch.dtype) -> Tensor:
    """``conv(x)`` for a bias-free 1x1 convolution; in fp32, even under autocast, when ``x`` was widened from fp16.

    Args:
        conv: 1x1 convolution without bias.
        x: (N, A, H, W).
        source: dtype of the features before they were widened.

    Returns:
        (N, C, H, W), saturated to the range of the parameters' dtype.
    """
    if source != torch.float16:
        return conv(x)
    with without_autocast(x.device):
        y = CONVOLVE[x.dim() - 2](x, conv.weight.to(x.dtype), groups=conv.groups)
    return narrow(y, conv.weight.dtype)


def image_mean(x: Tensor) -> Tensor:
    """Mean over all pixels of each image: (N, C, H, W) -> (N, C, 1, 1), whose gradient is laid out like ``x``.

    torch's own gradient is row-major for any ``x``, because it is the same at every pixel; adding it to a channels-last gradient
    takes as long as a convolution.
    """
    channels_last = x.stride(1) == 1
    if is_captured() or not channels_last:
        return x.mean(tuple(range(2, x.dim())), keepdim=True)
    if x.device.type == "cpu" and x.dim() == 4:
        return F.avg_pool2d(x, x.shape[2:])  # in half precision torch's mean copies the map to fp32 here
    return x.movedim(1, -1).mean(tuple(range(1, x.dim() - 1)), keepdim=True).movedim(-1, 1)


def wants_single_precision(x: Tensor, weight: Tensor, stride: Sequence[int], dilation: Sequence[int]) -> bool:
    """Whether to train a depthwise convolution of ``x`` in fp32 although ``x`` is in half precision.

    Of a strided or dilated one torch computes the gradients on a CPU in 2 to 60 times the time that fp32 takes, and those of
    a dilated one's weight wrongly in the channels-last memory format (seen in torch 2.14). In that format one larger than 3x3
    takes up to 3 times as long.
    """
    if x.device.type != "cpu" or not (x.element_size() < 4 or torch.is_autocast_enabled("cpu")):
        return False
    return max(*stride, *dilation) > 1 or (max(weight.shape[2:]) > 3 and x.stride(1) == 1)


def convolve_window(window: Any, x: Tensor) -> Tensor:
    """``window(x)`` of a depthwise convolution, in fp32 if torch's half-precision gradients are slow or wrong."""
    if not (window.weight.requires_grad and wants_single_precision(x, window.weight, window.stride, window.dilation)):
        return window(x)
    with without_autocast(x.device):
        return window._conv_forward(x.float(), window.weight.float(), None).to(x.dtype)
