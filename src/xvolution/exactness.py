"""Check of every operator that its deployed form computes the same, on a small random image.

Folding reads a formula from the attributes of modules. A hook, a patched forward, a replaced submodule or a changed attribute
can make the formula wrong. Known changes are refused by name; all others are found by this check.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from xvolution.attention.base import AttentionBranch, is_changed
from xvolution.attention.folded import Folded
from xvolution.convolutions import CONVOLUTIONS, is_plain
from xvolution.copying import CopyError, addition_to, copied
from xvolution.folding import is_foldable
from xvolution.geometry import ConvSite, Geometry
from xvolution.numerics import in_float64

#: Error that rounding explains, relative to the largest magnitude of an operator's output.
_TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-3}
_TOLERANCE_IN_HALF_PRECISION = 5e-2
#: The sizes of the images: the smallest in which every tap sees a pixel, and larger ones for modules that want more.
_SCALES = (1, 4, 16)


class ReparameterizationError(RuntimeError):
    """A model cannot be re-parameterized, or its deployed form does not compute the same."""


def require_unaltered(operator: Any) -> None:
    """Raise ReparameterizationError if a part that is folded has a hook or a patched forward.

    Parts that stay modules keep their hooks: norms that do not fold, attention that is not a branch.
    """
    kept = tuple(f"{name}." for name, module in operator.named_modules() if name and stays_module(name, module))
    for name, part in operator.named_modules():
        added = addition_to(part) if name or "forward" in vars(part) else None
        if added is not None and not f"{name}.".startswith(kept):
            raise ReparameterizationError(
                f"{name or 'the operator'} has {added}, which the deployed form would not have; remove it "
                "first, and add it to a part of the deployed model if it is still needed"
            )


@torch.no_grad()
def require_finite(operator: Any) -> None:
    """Raise ReparameterizationError where a parameter or buffer holds NaN or infinity, which saturation in fp16 would hide."""
    for name, tensor in chain(operator.named_parameters(), operator.named_buffers()):
        if not tensor.is_meta and not torch.isfinite(tensor).all():
            raise ReparameterizationError(
                f"{name} holds infinite or NaN values, as after a diverged training; restore earlier weights"
            )


def stays_module(name: str, module: nn.Module) -> bool:
    """Whether the part of an operator called ``name`` is unchanged in the deployed form."""
    last = name.rpartition(".")[-1]
    if name == "attention":
        return not (isinstance(module, AttentionBranch) and not is_changed(module))
    return (last == "norm" or last.endswith("_norm")) and not is_foldable(module)


@torch.no_grad()
def require_exact(operator: Any, layout: str, fold: Callable[[Any], Folded]) -> None:
    """Run an operator in eval mode and its deployed form on a small random image, in fp64, and compare.

    Args:
        operator: an ``XVolution``; on the meta device it has no values, and nothing is compared.
        layout: layout of the deployed form.
        fold: function that folds an operator.

    Raises:
        ReparameterizationError: they differ, or the operator cannot be run; the message names the likely cause.
    """
    if any(tensor.is_meta for tensor in chain(operator.parameters(), operator.buffers())):
        return
    foreign = operator.attention is not None and stays_module("attention", operator.attention)
    failure: Exception | None = None
    for probe in _probes(operator, foreign):
        for x in _images(probe):
            try:
                expected = probe.forward(x)
            except (
                Exception
            ) as error:  # whatever a stranger's module raises: it may want larger images, or another dtype
                failure = error
                continue
            actual = fold(probe).deployed(layout, probe.conv.weight)(x)
            if _is_close(actual, expected) or (foreign and not _is_close(probe.forward(x), expected)):
                return  # the same, or attention that draws random numbers
            raise ReparameterizationError(refusal(operator, "does not compute the same as its deployed form"))
    if not foreign:
        raise ReparameterizationError(refusal(operator, f"cannot be run on a small random image ({failure})"))


def _probes(operator: Any, foreign: bool) -> Iterator[Any]:
    """The operator in fp64; with a user's own attention module, which may not support fp64, also in its own dtype."""
    try:
        yield in_float64(copied(operator))
    except CopyError:
        yield operator
        return
    if foreign:
        yield operator


def _images(operator: Any) -> Iterator[Tensor]:
    """Batches of two random images of different sides, the smallest first."""
    convs = [module for module in operator.modules() if isinstance(module, tuple(CONVOLUTIONS.values()))]
    weight, generator = operator.conv.weight, torch.Generator().manual_seed(0)
    for scale in _SCALES:
        sides = [scale * max(_side(conv, dim) for conv in convs) + dim for dim in range(operator.dims)]
        shape = (2, operator.conv.in_channels, *sides)
        yield torch.randn(shape, generator=generator, dtype=torch.float64).to(weight.device, weight.dtype)


def _side(conv: Any, dim: int) -> int:
    """Number of pixels along one dimension so that each tap of a convolution reads the image and there are two outputs."""
    if dim >= len(conv.kernel_size):
        return 1
    geometry = getattr(conv, "geometry", None)
    pads = geometry.padding[dim] if isinstance(geometry, Geometry) else (0, 0)
    if not isinstance(geometry, Geometry) and not isinstance(conv.padding, str):
        pads = (conv.padding[dim], conv.padding[dim])
    reach = conv.dilation[dim] * (conv.kernel_size[dim] - 1)
    return max(reach + 1 - sum(pads), (reach + 1) // 2 + 1, max(pads) + 1) + conv.stride[dim]


def _is_close(actual: Tensor, expected: Tensor) -> bool:
    if actual.shape != expected.shape:
        return False
    scale = expected.abs().nan_to_num(nan=0.0, posinf=0.0).amax().item()
    allowed = _TOLERANCE.get(expected.dtype, _TOLERANCE_IN_HALF_PRECISION) * scale
    return torch.allclose(actual, expected, rtol=0, atol=allowed, equal_nan=True)


def refusal(operator: Any, what: str) -> str:
    """The message that refuses an operator because of ``what``, with the likely cause."""
    cause = _changed_since_built(operator) or (
        "a method, a submodule or an attribute was changed after the operator was built"
    )
    return (
        f"the operator {what}. Likely cause: {cause}; undo it before, or leave this convolution out of the conversion"
    )


def _changed_since_built(operator: Any) -> str | None:
    """The first difference between an operator and a new one with the same options, in words."""
    if type(operator).__module__ != "xvolution.operator":
        return f"its class {type(operator).__name__} changes what {type(operator).__mro__[1].__name__} computes"
    attention, conv = operator.attention, operator.conv
    if not isinstance(attention, AttentionBranch) or not is_plain(conv):
        return None
    window = (conv.kernel_size, conv.stride, conv.padding, conv.dilation, conv.padding_mode)
    geometry = getattr(conv, "geometry", None) or Geometry.create(*window, operator.dims)
    built = attention.config.build(
        ConvSite(conv.in_channels, conv.out_channels, geometry, conv.groups, device="meta"), None
    )
    found = dict(attention.named_modules())
    for name, part in built.named_modules():
        if isinstance(part, tuple(CONVOLUTIONS.values())) and repr(found.get(name)) != repr(part):
            return f"attention.{name} is {found.get(name)}, but {part} fits the convolution {conv}"
    return None
