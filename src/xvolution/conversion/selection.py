"""Which convolutions of a network are to be converted."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from xvolution.conversion.config import Placement
from xvolution.convolutions import CONVOLUTIONS, is_convolution
from xvolution.operator import XVolution

FilterFunction = Callable[[nn.Module, str], bool]

_CONVOLUTIONS = tuple(CONVOLUTIONS.values())
_STAGE_NAME = re.compile(r"(?:^|\.)(?P<family>layer|stages?[._]?|s|trunk_output\.block)(?P<number>\d+)$")


def convolutions(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Every convolution that can be replaced, by name: of torch's own classes, and others that compute the same.

    An X-volution counts as the convolution that it replaced.
    """
    return ((name, conv_in(module)) for name, module in _candidates(model) if _can_be_replaced(module))


def conv_in(module: Any) -> Any:
    """The convolution that an X-volution replaced; of anything else, itself."""
    return module.conv if isinstance(module, XVolution) else module


def _candidates(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """X-volutions and, outside of these, modules of the classes of torch's convolutions, whatever they compute."""
    operators = [name for name, module in model.named_modules() if isinstance(module, XVolution)]
    inside = tuple(f"{name}." if name else "" for name in operators)
    for name, module in model.named_modules():
        if isinstance(module, XVolution) or (isinstance(module, _CONVOLUTIONS) and not name.startswith(inside)):
            yield name, module


def _can_be_replaced(module: nn.Module) -> bool:
    """Whether a candidate computes one plain convolution, which may have to be found out by running it."""
    return isinstance(module, XVolution) or is_convolution(module)


def stages_of(model: nn.Module) -> list[tuple[str, ...]]:
    """The stages of a network, each as the name prefixes of its modules.

    A timm model tells them in ``feature_info``; else modules named ``layer1 ... layer4``, ``stages.0 ...`` and the like count.
    """
    info = getattr(model, "feature_info", None)
    info = getattr(info, "info", info)
    if isinstance(info, list) and info and all(isinstance(entry, Mapping) and entry.get("module") for entry in info):
        stages = _stages_between(model, [str(entry["module"]) for entry in info])
        if stages:
            return stages
    families: dict[tuple[str, str], list[str]] = {}
    for name, module in model.named_modules():
        match = _STAGE_NAME.search(name)
        if match and next(convolutions(module), None):
            families.setdefault((name[: match.start()], match["family"]), []).append(name)
    numbered = [names for names in families.values() if len(names) > 1]
    return [(name,) for name in numbered[0]] if numbered else []


def _stages_between(model: nn.Module, ends: list[str]) -> list[tuple[str, ...]]:
    """Siblings up to and including each feature's module form a stage; a leading stem is none."""
    modules = dict(model.named_modules())
    stages: list[tuple[str, ...]] = []
    previous = ""
    for end in ends:
        if end not in modules:
            return []
        parent, _, leaf = end.rpartition(".")
        start = previous.rpartition(".")
        siblings = list(modules[parent]._modules)
        first = siblings.index(start[2]) + 1 if previous and start[0] == parent else siblings.index(leaf)
        members = [f"{parent}.{name}".lstrip(".") for name in siblings[first : siblings.index(leaf) + 1]]
        previous = end
        is_stem = not stages and ("stem" in end or next(convolutions(modules[end]), None) is None)
        if not is_stem:
            stages.append(tuple(members))
    return stages


def select(model: nn.Module, where: Placement, filter_fn: FilterFunction | None = None) -> list[str]:
    """Names of the convolutions that are meant, converted ones included.

    Without any criterion these are all spatial convolutions but the stem, in as many dimensions as the stem has: a channel
    attention that slides a 1-d convolution over the channels of an image network is not meant. Criteria given together all have
    to hold.

    Raises:
        ValueError: ``stages`` that the network does not have.
    """
    wanted = [_meets(where, spatial_only=where.names is None and filter_fn is None)]
    if where.names is None and filter_fn is None:
        dims = next((len(conv.kernel_size) for _, conv in convolutions(model)), 0)
        wanted.append(lambda name, conv: len(conv.kernel_size) == dims)
    if where.stages is not None:
        prefixes = _prefixes(model, where.stages)
        wanted.append(lambda name, conv: f"{name}.".startswith(prefixes))
    elif where.names is None and filter_fn is None:
        stem = _stem(model)
        wanted.append(lambda name, conv: name not in stem)
    chosen = [
        (name, module)
        for name, module in _candidates(model)
        if all(meets(name, conv_in(module)) for meets in wanted) and _can_be_replaced(module)
    ]
    return [name for name, module in chosen if filter_fn is None or filter_fn(conv_in(module), name)]


def _meets(where: Placement, spatial_only: bool) -> Callable[[str, Any], bool]:
    """Whether a convolution has one of the names and kernel sizes; one larger than a pixel where no size is given."""

    def meets(name: str, conv: Any) -> bool:
        named = where.names is None or any(fnmatchcase(name, pattern) for pattern in where.names)
        if where.kernel_sizes is None:
            return named and (not spatial_only or max(conv.kernel_size) > 1)
        return named and any(set(conv.kernel_size) == {side} for side in where.kernel_sizes)

    return meets


def _prefixes(model: nn.Module, wanted: tuple[int, ...]) -> tuple[str, ...]:
    stages = stages_of(model)
    if not stages:
        raise ValueError(
            f"stages={wanted}, but {type(model).__name__} has no stages that could be found; select by names or filter_fn"
        )
    unknown = [stage for stage in wanted if not 1 <= stage <= len(stages)]
    if unknown:
        listed = ", ".join(f"{number}: {names[-1]}" for number, names in enumerate(stages, 1))
        raise ValueError(
            f"stages={wanted}, but {type(model).__name__} has {len(stages)} stages, counted from 1 ({listed})"
        )
    return tuple(f"{name}." for stage in wanted for name in stages[stage - 1])


def _stem(model: nn.Module) -> set[str]:
    """The first convolution, and all others before the first stage."""
    prefixes = tuple(f"{name}." for stage in stages_of(model) for name in stage)
    before: list[str] = []
    for name, _ in convolutions(model):
        if f"{name}.".startswith(prefixes):
            return set(before or [name])
        before.append(name)
    return set(before[:1])
