"""torch's convolutions over a window, and the kernel of a convolution of any class.

A subclass of ``nn.Conv2d`` may standardize its weights (weight-standardized ResNets), pad by the size of the image (networks
from TensorFlow), or take its weights from a parametrization. Each is supported if it computes one plain
convolution, which is tested by running it, independent of its class.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, product
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.overrides import TorchFunctionMode

from xvolution.copying import copied
from xvolution.geometry import Geometry, PaddingPairs, pad, padding_pairs
from xvolution.numerics import CONVOLVE, double, in_float64

#: torch's modules by the number of dimensions after the channels.
CONVOLUTIONS: dict[int, Any] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


class ExplicitPadding(nn.Module):
    """Mixin of the convolutions that a ``Geometry`` computes: it pads before and after, or crops, and skips pixels."""

    geometry: Geometry
    groups: int

    def __init__(self, in_channels: int, out_channels: int, geometry: Geometry, **options: Any) -> None:
        super().__init__(in_channels, out_channels, **_window(geometry, 0), **options)
        self.geometry = geometry

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """What ``forward`` of torch's convolutions calls: (N, C_in, H, W) -> (N, C_out, H', W')."""
        return self.geometry.convolve(x, weight, bias, self.groups)

    def extra_repr(self) -> str:
        padding = self.geometry.padding if self.geometry.same_spans is None else ("same_upper", self.geometry.padding)
        return f"{super().extra_repr()}, explicit_padding={padding}"


class ExplicitlyPaddedConv1d(ExplicitPadding, nn.Conv1d):
    """``nn.Conv1d`` over a ``Geometry``."""


class ExplicitlyPaddedConv2d(ExplicitPadding, nn.Conv2d):
    """``nn.Conv2d`` over a ``Geometry``."""


class ExplicitlyPaddedConv3d(ExplicitPadding, nn.Conv3d):
    """``nn.Conv3d`` over a ``Geometry``."""


_EXPLICITLY_PADDED: dict[int, Any] = {1: ExplicitlyPaddedConv1d, 2: ExplicitlyPaddedConv2d, 3: ExplicitlyPaddedConv3d}
_TORCHS = tuple(CONVOLUTIONS.values())
_PLAIN = (*_TORCHS, *_EXPLICITLY_PADDED.values())


def conv_over(geometry: Geometry, in_channels: int, out_channels: int, **options: Any) -> Any:
    """A convolution over ``geometry``: a plain ``nn.Conv1d``, ``2d`` or ``3d`` wherever that can express it.

    A 1x1 window with a stride, and one with one channel a group, are computed by the geometry too; ``Geometry.convolve_padded``
    says why. So is a window padded with pixels of the image, to raise a clear error if the image has too few of them.

    Args:
        geometry: the window.
        in_channels, out_channels: channels.
        options: ``groups``, ``bias``, ``device``, ``dtype`` of ``nn.Conv2d``.
    """
    explicit = any(before != after or before < 0 for before, after in geometry.padding)
    computed = (
        geometry.skips_pixels or geometry.repeats_pixels or geometry.is_product(options.get("groups", 1), in_channels)
    )
    if explicit or computed or geometry.same_spans is not None:
        return _EXPLICITLY_PADDED[geometry.dims](in_channels, out_channels, geometry, **options)
    padding = tuple(before for before, _ in geometry.padding)
    return CONVOLUTIONS[geometry.dims](in_channels, out_channels, **_window(geometry, padding), **options)


def pointwise(dims: int, in_channels: int, out_channels: int, **options: Any) -> Any:
    """A 1x1 convolution in ``dims`` dimensions."""
    return conv_over(Geometry.create(1, dims=dims), in_channels, out_channels, **options)


def conv_of(geometry: Geometry, weight: Tensor, bias: Tensor | None, groups: int, factory: dict[str, Any]) -> Any:
    """A convolution with these fp64 weights, cast to the dtype of ``factory``."""
    conv = conv_over(
        geometry, weight.shape[1] * groups, weight.shape[0], groups=groups, bias=bias is not None, **factory
    )
    with torch.no_grad():
        conv.weight.copy_(weight)
        if bias is not None:
            conv.bias.copy_(bias)
    return conv


def pointwise_of(dims: int, weight: Tensor, bias: Tensor | None, groups: int, factory: dict[str, Any]) -> Any:
    """A 1x1 convolution with the weight (out, in / groups)."""
    return conv_of(Geometry.create(1, dims=dims), as_kernel(weight, dims), bias, groups, factory)


def as_kernel(weight: Tensor, dims: int) -> Tensor:
    """(out, in) -> (out, in, 1, 1)."""
    return weight.reshape(*weight.shape, *(1,) * dims)


def _window(geometry: Geometry, padding: int | tuple[int, ...]) -> dict[str, Any]:
    return {
        "kernel_size": geometry.kernel_size,
        "stride": geometry.stride,
        "padding": padding,
        "dilation": geometry.dilation,
        "padding_mode": geometry.padding_mode,
    }


@dataclass(frozen=True)
class Kernel:
    """One plain convolution over ``geometry``: ``weight`` (C_out, C_in / groups, kh, kw), ``bias`` (C_out,), in fp64."""

    geometry: Geometry
    weight: Tensor
    bias: Tensor


class NoConvolutionError(ValueError):
    """A module with the class of a convolution does not compute a plain convolution; ``reason`` is the text without advice."""

    def __init__(self, reason: str, advice: str) -> None:
        super().__init__(reason + advice)
        self.reason = reason


def is_plain(conv: nn.Module) -> bool:
    """Whether ``conv`` is one of torch's own convolutions, with weights of its own.

    Pruning and the older weight and spectral norms compute weights in a hook and remove them from the parameters.
    """
    patched = {"forward", "_conv_forward"} & vars(conv).keys()
    return type(conv) in _PLAIN and {"weight", "bias"} <= conv._parameters.keys() and not patched


def is_hooked(module: nn.Module) -> bool:
    """Whether calling ``module`` runs hooks in addition to its forward."""
    return bool(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    )


def is_convolution(module: nn.Module) -> bool:
    """Whether ``module`` computes one plain convolution of its input."""
    return obstacle_of(module) is None


def obstacle_of(module: nn.Module) -> str | None:
    """The reason why ``module`` does not compute a plain convolution, or cannot be tested; None if it does."""
    if is_plain(module):
        return None
    if not isinstance(module, _TORCHS):
        return f"{type(module).__name__} is not a convolution of torch.nn"
    try:
        kernel_of(module)
    except NoConvolutionError as refusal:
        return refusal.reason
    except Exception as error:  # a quantized one, one with arguments of its own, one that cannot be copied, ...
        lines = str(error).splitlines() or [""]
        return f"{type(module).__name__} cannot be run on an image by itself ({lines[0]})"
    return None


def geometry_of(conv: Any) -> Geometry:
    """The window of ``conv``.

    Raises:
        ValueError: ``conv`` computes no plain convolution.
    """
    return _declared(conv) if is_plain(conv) else kernel_of(conv).geometry


def padding_of(conv: Any) -> int | tuple[int, ...] | str:
    """The argument ``padding`` with which ``nn.Conv2d`` has the window of ``conv``.

    ``"same_upper"``, which ``XVolution2d`` accepts, if the padding depends on the size of the image.

    Raises:
        ValueError: ``conv`` computes no plain convolution, or no argument says how it pads.
    """
    geometry = geometry_of(conv)
    for padding in (conv.padding, "same", "same_upper"):
        window = (geometry.kernel_size, geometry.stride, padding, geometry.dilation, geometry.padding_mode)
        possible = padding != "same" or max(geometry.stride) == 1
        if possible and Geometry.create(*window, geometry.dims) == geometry:
            return padding
    raise ValueError(
        f"{type(conv).__name__} pads by {geometry.padding} pixels, which nn.Conv2d cannot express; leave it "
        "out by names or filter_fn"
    )


@torch.no_grad()
def kernel_of(conv: Any) -> Kernel:
    """The plain convolution that ``conv`` computes in eval mode.

    ``conv`` may pad each side of its image differently, or crop its output. Both are padding of the window; cropping is
    negative padding.

    Raises:
        NoConvolutionError: ``conv`` does not compute a plain convolution, or has no weights yet.
    """
    if is_plain(conv):
        return _kernel(_declared(conv), conv.weight, conv.bias)
    if is_lazy(conv.weight):
        raise NoConvolutionError(f"{type(conv).__name__} has no weights yet", "; run the network once to create them")
    probe = in_float64(_with_values(copied(conv).eval()))
    # What torch makes without a device, also in the forward pass of ``conv``, would else be on the default one, such as meta.
    with torch.device(_device_of(probe)):
        kernel = _observed_kernel(conv, probe)
    if kernel is None:
        raise NoConvolutionError(
            f"{type(conv).__name__} does not compute a plain convolution of its input",
            " and cannot be merged; leave it out by names or filter_fn",
        )
    device = _device_of(conv)
    if device.type != "meta":
        return kernel
    return Kernel(kernel.geometry, kernel.weight.to(device), kernel.bias.to(device))


def _observed_kernel(conv: Any, probe: Any) -> Kernel | None:
    """The plain convolution that ``probe``, a copy of ``conv`` with values, computes of noise; None if there is none."""
    x, *others = _images(probe)
    with _Convolutions() as seen:
        expected = probe(x)
    if len(seen.calls) != 1:
        return None
    call = seen.calls[0]
    for geometry in _possible_geometries(conv, x, expected, call):
        kernel = _kernel(geometry, call.weight, call.bias)
        if _computes(expected, kernel, x, conv.groups) and all(
            _computes(probe(other), kernel, other, conv.groups) for other in others
        ):
            return kernel
    return None


def _with_values(conv: nn.Module) -> nn.Module:
    """``conv`` itself; from the meta device, a copy on the CPU with noise as weights; the window does not depend on them."""
    if _device_of(conv).type == "meta":
        generator = torch.Generator().manual_seed(0)
        conv.to_empty(device="cpu")
        for tensor in chain(conv.parameters(), conv.buffers()):
            if tensor.is_floating_point():
                tensor.normal_(generator=generator)
    return conv


def _device_of(conv: Any) -> torch.device:
    """Where the weights are, or what they are computed from."""
    return next(chain(conv.parameters(), conv.buffers()), conv.weight).device


def _possible_geometries(conv: Any, x: Tensor, y: Tensor, call: _Call) -> Iterator[Geometry]:
    """Possible windows of ``conv``, which computed ``y`` from the image ``x`` with one ``call``."""
    yield _declared(conv)
    window = (conv.kernel_size, conv.stride, "same_upper", conv.dilation, conv.padding_mode)
    yield Geometry.create(*window, len(conv.kernel_size))
    for padding, mode in _observed_paddings(conv, x, y, call):
        yield Geometry(tuple(conv.kernel_size), tuple(conv.stride), padding, tuple(conv.dilation), mode)


def _observed_paddings(conv: Any, x: Tensor, y: Tensor, call: _Call) -> Iterator[tuple[PaddingPairs, str]]:
    """The padding of ``x`` before and in the convolution, minus the pixels cropped from ``y`` after it."""
    own = padding_pairs(call.padding, conv.kernel_size, conv.dilation)
    for before in _placements(x, call.padded):
        for mode in ("zeros", "reflect", "replicate", "circular"):
            mixed = mode != "zeros" and max(max(pair) for pair in own) > 0
            if mixed or not _is_padded(x, before, mode, call.padded):
                continue
            for cut in _placements(call.output, y):
                pairs = zip(before, own, cut, conv.stride, strict=True)
                padding = tuple((b[0] + o[0] + c[0] * s, b[1] + o[1] + c[1] * s) for b, o, c, s in pairs)
                yield padding, mode


def _placements(x: Tensor, y: Tensor) -> Iterator[PaddingPairs]:
    """Pixels that may lie around ``x`` in the larger map ``y``; fewer than none where ``y`` is a part of ``x``."""
    ranges = []
    for old, new in zip(x.shape[2:], y.shape[2:], strict=True):
        more = new - old
        ranges.append([(before, more - before) for before in range(min(more, 0), max(more, 0) + 1)])
    return product(*ranges)


def _is_padded(x: Tensor, pairs: PaddingPairs, mode: str, y: Tensor) -> bool:
    try:
        return torch.equal(pad(x, pairs, mode), y)
    except (RuntimeError, ValueError):  # more pixels than this mode has
        return False


def _declared(conv: Any) -> Geometry:
    """The geometry from the attributes of a convolution."""
    if isinstance(conv, ExplicitPadding):
        return conv.geometry
    window = (conv.kernel_size, conv.stride, conv.padding, conv.dilation, conv.padding_mode)
    return Geometry.create(*window, len(conv.kernel_size))


def _kernel(geometry: Geometry, weight: Tensor, bias: Tensor | None) -> Kernel:
    wide = double(weight)
    return Kernel(geometry, wide, wide.new_zeros(len(wide)) if bias is None else double(bias))


@dataclass(frozen=True)
class _Call:
    """One call of torch's convolutions: what went in, with the padding that the call itself adds, and what came out."""

    padded: Tensor
    weight: Tensor
    bias: Tensor | None
    padding: Any
    output: Tensor


class _Convolutions(TorchFunctionMode):
    """Records every convolution that torch is asked for while it is entered."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[_Call] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        if func in CONVOLVE.values():
            given = dict(zip(("input", "weight", "bias", "stride", "padding"), args, strict=False)) | kwargs
            padded, weight = given["input"].detach().clone(), given["weight"].detach().clone()
            self.calls.append(_Call(padded, weight, given.get("bias"), given.get("padding", 0), output.clone()))
        return output


def _computes(expected: Tensor, kernel: Kernel, x: Tensor, groups: int) -> bool:
    actual = kernel.geometry.convolve(x, kernel.weight, kernel.bias, groups)
    return expected.shape == actual.shape and torch.allclose(expected, actual, rtol=1e-9, atol=1e-9)


def _images(probe: Any) -> list[Tensor]:
    """Random images of consecutive sizes, among which padding that depends on the size of the image changes."""
    generator = torch.Generator().manual_seed(0)
    spans = [d * (k - 1) for k, d in zip(probe.kernel_size, probe.dilation, strict=True)]
    return [
        torch.randn(
            1, probe.in_channels, *(span + extra for span in spans), generator=generator, dtype=torch.float64
        ).to(_device_of(probe))
        for extra in range(4, 5 + max(probe.stride))
    ]
