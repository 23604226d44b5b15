"""The parts of a detector, and X-volution in selected parts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from xvolution.conversion.config import Conversion, ConversionConfig, Placement, XVolutionConfig
from xvolution.conversion.convert import ConversionError, convert
from xvolution.conversion.selection import convolutions, select
from xvolution.conversion.summary import Record, Replacement, count_parameters, forget, left_alone, remember
from xvolution.models.factory import ModelError


@dataclass(frozen=True)
class Part:
    """The location of a part of a detector.

    Attributes:
        prefix: prefix of the names of its modules.
        converted: submodules whose spatial convolutions are replaced. The pyramid's lateral and further levels, and the
            convolutions that predict, stay as they are.
        once: whether its convolutions run once in a forward pass, instead of once for each level of the pyramid.
    """

    prefix: str
    converted: tuple[str, ...]
    once: bool


_PARTS = {
    "backbone": Part("backbone.body.", ("backbone.body",), True),
    "fpn": Part("backbone.fpn.", ("backbone.fpn.layer_blocks",), True),
    "rpn": Part("rpn.", ("rpn.head.conv",), False),
    "mask": Part("roi_heads.mask_", ("roi_heads.mask_head",), True),
    "head": Part("head.", ("head.classification_head.conv", "head.regression_head.conv"), False),
}

#: Parts of each architecture.
PARTS = {
    "fasterrcnn": ("backbone", "fpn", "rpn"),
    "maskrcnn": ("backbone", "fpn", "rpn", "mask"),
    "retinanet": ("backbone", "fpn", "head"),
    "fcos": ("backbone", "fpn", "head"),
}


class FixedBatchNorm2d(nn.BatchNorm2d):
    """A batch norm with fixed statistics, also in train mode; scale and shift are trained.

    The norm of the attention branch if a batch is too small for statistics, or where one convolution serves all levels of a
    pyramid, whose statistics differ. Statistics come with the weights of a classifier; for a new branch they are 0 and 1, so
    the norm is a scale and a shift. It folds like every batch norm in eval mode.
    """

    def train(self, mode: bool = True) -> FixedBatchNorm2d:
        """Stay in eval mode, whatever ``mode`` is."""
        super().train(False)
        return self


def part_of(detector: nn.Module, name: str) -> str | None:
    """The part that the module or parameter called ``name`` belongs to; None if it is in no part, such as the box head.

    Parts are ``backbone``, ``fpn`` (all of the pyramid), ``rpn``, ``mask`` (head and predictor), and of RetinaNet and FCOS
    ``head``.
    """
    present = [part for part in _PARTS if _submodule(detector, _PARTS[part].converted[0]) is not None]
    return next((part for part in present if f"{name}.".startswith(_PARTS[part].prefix)), None)


def modules_of_part(detector: nn.Module, part: str) -> Iterator[tuple[str, nn.Module]]:
    """Name and module of everything in a part, containers included.

    Raises:
        ModelError: the detector has no such part.
    """
    if part not in _PARTS or _submodule(detector, _PARTS[part].converted[0]) is None:
        raise ModelError(f"{type(detector).__name__} has no part {part!r}; parts are {', '.join(_PARTS)}.")
    return ((name, module) for name, module in detector.named_modules() if f"{name}.".startswith(_PARTS[part].prefix))


def convert_parts(detector: nn.Module, conversion: Conversion, parts: Sequence[str], fixed_norms: bool) -> nn.Module:
    """Replace convolutions in the parts, in place; the outputs of each part are checked to stay the same.

    ``stages`` chooses within the backbone; ``names`` are names in the detector or, for the backbone, in the network alone; all
    other parts are taken whole.

    Args:
        detector: a plain detector on the CPU.
        conversion: the operator and the convolutions to replace.
        parts: names of parts.
        fixed_norms: keep the statistics of the attention's batch norms fixed in every part, not only where a convolution runs
            once for each level.

    Raises:
        ModelError: a part in which nothing can be converted, or a replacement that does not fit.
    """
    before = count_parameters(detector)
    replaced: list[Replacement] = []
    for part in parts:
        fixed = fixed_norms or not _PARTS[part].once
        operator = _with_norms(conversion.operator, fixed)
        done = []
        for name in _PARTS[part].converted:
            done += _convert(detector, name, part, operator, _within(conversion.where, name, part))
        if not done and conversion.where.names is None:
            raise ModelError(f"the configuration selects no convolution in the part {part!r}; leave that part out.")
        replaced += done
    if not replaced:
        raise ModelError(
            f"no convolution in the parts {', '.join(parts)} matches names={conversion.where.names}; give other "
            "names or parts."
        )
    inside = tuple(f"{row.name}." for row in replaced)
    stay = [name for name, _ in convolutions(detector) if not name.startswith(inside)]
    left = left_alone(detector, dict.fromkeys(stay, f"not chosen in {', '.join(parts)}"))
    remember(detector, Record(replaced, before, None, "the outputs of each part are unchanged", left))
    return detector


def _convert(
    detector: nn.Module, name: str, part: str, operator: ConversionConfig, where: Placement
) -> list[Replacement]:
    module = _submodule(detector, name)
    if module is None:
        raise ModelError(f"{type(detector).__name__} has no part {part!r}.")
    spatial_only = where.names is None and where.kernel_sizes is None
    try:
        chosen = select(
            module, where, None if part == "backbone" else lambda conv, _: not spatial_only or _is_spatial(conv)
        )
        if not chosen:
            return []
        runner, prefix, example = _runner(detector, name, part)
        wanted = {f"{prefix}{conv}" for conv in chosen}
        convert(runner, operator, filter_fn=lambda _, conv: conv in wanted, inplace=True, example_inputs=example)
    except (ValueError, ConversionError) as error:
        raise ModelError(f"the part {part!r} cannot be converted: {error}") from error
    rows = forget(runner).replaced
    path = name.removesuffix(prefix.rstrip(".")).rstrip(".") if prefix else name
    return [replace(row, name=f"{path}.{row.name}", norm=row.norm and f"{path}.{row.norm}") for row in rows]


def _within(where: Placement, name: str, part: str) -> Placement:
    names = None if where.names is None else tuple(pattern.removeprefix(f"{name}.") for pattern in where.names)
    return replace(where, names=names, stages=where.stages if part == "backbone" else None)


def _with_norms(operator: ConversionConfig, fixed: bool) -> ConversionConfig:
    if fixed and isinstance(operator, XVolutionConfig) and operator.norm_layer == "BatchNorm2d":
        return replace(operator, norm_layer=FixedBatchNorm2d)
    return operator


def _is_spatial(conv: Any) -> bool:
    return max(conv.kernel_size) > 1


def _runner(detector: Any, name: str, part: str) -> tuple[nn.Module, str, Any]:
    """The module whose outputs are compared, the prefix in it of the part's names, and inputs for it."""
    generator = torch.Generator().manual_seed(0)
    if part in ("backbone", "fpn"):
        return detector.backbone, f"{name.removeprefix('backbone.')}.", torch.randn(1, 3, 128, 96, generator=generator)
    features: Tensor = torch.randn(2, detector.backbone.out_channels, 16, 12, generator=generator)
    return detector.get_submodule(name), "", features


def _submodule(detector: nn.Module, name: str) -> nn.Module | None:
    try:
        return detector.get_submodule(name)
    except AttributeError:
        return None
