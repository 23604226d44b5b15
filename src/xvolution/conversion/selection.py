"""Selection of the convolutions to convert."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from xvolution.conversion.config import Placement
from xvolution.convolutions import CONVOLUTIONS, obstacle_of
from xvolution.operator import XVolution

FilterFunction = Callable[[nn.Module, str], bool]

_CONVOLUTIONS = tuple(CONVOLUTIONS.values())
_STAGE_NAME = re.compile(r"(?:^|\.)(?P<family>layer|stages?[._]?|s|trunk_output\.block)(?P<number>\d+)$")


def convolutions(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Every convolution that can be replaced, by name: of torch's own classes, and others that compute the same.

    An X-volution counts as the convolution that it replaced.
    """
    return ((name, conv_in(module)) for name, module in _candidates(model) if _obstacle(module) is None)


def conv_in(module: Any) -> Any:
    """The convolution that an X-volution replaced; any other module itself."""
    return module.conv if isinstance(module, XVolution) else module


def _candidates(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """X-volutions and, outside of these, modules of the classes of torch's convolutions, whatever they compute."""
    operators = [name for name, module in model.named_modules() if isinstance(module, XVolution)]
    inside = tuple(f"{name}." if name else "" for name in operators)
    for name, module in model.named_modules():
        if isinstance(module, XVolution) or (isinstance(module, _CONVOLUTIONS) and not name.startswith(inside)):
            yield name, module


def _obstacle(module: nn.Module) -> str | None:
    """The reason why a candidate cannot be replaced, which may require running it; None if it can be."""
    return None if isinstance(module, XVolution) else obstacle_of(module)


def stages_of(model: nn.Module) -> list[tuple[str, ...]]:
    """The stages of a network, each as the name prefixes of its modules.

    From ``feature_info`` of a timm model, else from modules named ``layer1 ... layer4``, ``stages.0 ...`` or similar.
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
        if match and next(_candidates(module), None):
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
        is_stem = not stages and ("stem" in end or next(_candidates(modules[end]), None) is None)
        if not is_stem:
            stages.append(tuple(members))
    return stages


def select(model: nn.Module, where: Placement, filter_fn: FilterFunction | None = None) -> list[str]:
    """Names of the selected convolutions, including converted ones.

    Without any criterion these are all spatial convolutions but the stem, in as many dimensions as the stem has, so the 1-d
    convolution of a channel attention in an image network is not selected. A convolution must meet all given criteria.

    Raises:
        ValueError: ``stages`` that the network does not have.
    """
    return [name for name, reason in reasons(model, where, filter_fn).items() if reason is None]


def reasons(model: nn.Module, where: Placement, filter_fn: FilterFunction | None = None) -> dict[str, str | None]:
    """The reason why each convolution is not selected, by name; None for selected ones.

    Raises:
        ValueError: ``stages`` that the network does not have.
    """
    criteria = _criteria(model, where, filter_fn is not None)
    found: dict[str, str | None] = {}
    for name, module in _candidates(model):
        conv = conv_in(module)
        reason = next((said for meets, said in criteria if not meets(name, conv)), None) or _obstacle(module)
        if reason is None and filter_fn is not None and not filter_fn(conv, name):
            reason = "excluded by filter_fn"
        found[name] = reason
    return found


def _criteria(model: nn.Module, where: Placement, filtered: bool) -> list[tuple[Callable[[str, Any], bool], str]]:
    """The criteria for a convolution and its name, each with the reason if it does not hold."""
    criteria: list[tuple[Callable[[str, Any], bool], str]] = []
    if where.names is not None:
        patterns = where.names
        said = f"its name matches none of {', '.join(patterns)}"
        criteria.append((lambda name, conv: any(fnmatchcase(name, pattern) for pattern in patterns), said))
    if where.kernel_sizes is not None:
        sides = where.kernel_sizes
        said = f"its kernel size is none of {', '.join(map(str, sides))}"
        criteria.append((lambda name, conv: any(set(conv.kernel_size) == {side} for side in sides), said))
    elif where.names is None and not filtered:
        criteria.append((lambda name, conv: max(conv.kernel_size) > 1, "a kernel of one pixel"))
    if where.names is None and not filtered:
        dims = next((len(conv_in(module).kernel_size) for _, module in _candidates(model)), 0)
        criteria.append(
            (lambda name, conv: len(conv.kernel_size) == dims, f"it does not have {dims} dimensions as the stem has")
        )
    if where.stages is not None:
        prefixes = _prefixes(model, where.stages)
        said = f"outside of the stages {', '.join(map(str, where.stages))}"
        criteria.append((lambda name, conv: f"{name}.".startswith(prefixes), said))
    elif where.names is None and not filtered:
        stem = _stem(model)
        criteria.append((lambda name, conv: name not in stem, "the stem"))
    return criteria


def _prefixes(model: nn.Module, wanted: tuple[int, ...]) -> tuple[str, ...]:
    stages = stages_of(model)
    if not stages:
        raise ValueError(
            f"stages={wanted}, but no stages were found in {type(model).__name__}; select by names or filter_fn"
        )
    unknown = [stage for stage in wanted if not 1 <= stage <= len(stages)]
    if unknown:
        listed = ", ".join(f"{number}: {names[-1]}" for number, names in enumerate(stages, 1))
        raise ValueError(
            f"stages={wanted}, but {type(model).__name__} has {len(stages)} stages, counted from 1 ({listed})"
        )
    return tuple(f"{name}." for stage in wanted for name in stages[stage - 1])


def _stem(model: nn.Module) -> set[str]:
    """The first convolution and all others before the first stage, including those that cannot be replaced.

    If the convolutions before the stages are more than half of those in them, they are an encoder before a decoder with numbered
    stages; then only the first is the stem.
    """
    prefixes = tuple(f"{name}." for stage in stages_of(model) for name in stage)
    names = [name for name, _ in _candidates(model)]
    inside = [name for name in names if f"{name}.".startswith(prefixes)]
    before = names[: names.index(inside[0])] if inside else []
    return set(before) if before and 2 * len(before) <= len(inside) else set(names[:1])
