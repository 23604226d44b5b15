"""Running a network without changing its state, replacing its modules, and finding inputs that it accepts."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from xvolution.convolutions import CONVOLUTIONS


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode without gradients; every module's own mode comes back afterwards.

    Modes are set one by one, because a module's own ``train`` may merge weights.
    """
    modes = [(module, module.training) for module in model.modules()]
    for module, _ in modes:
        module.training = False
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training


def call(model: nn.Module, example_inputs: Any) -> Any:
    """Call ``model`` with a tensor, a tuple of positional arguments or a mapping of keyword arguments.

    The model gets copies, because some networks scale or pad their images in place.
    """
    if isinstance(example_inputs, Mapping):
        return model(**_copies(dict(example_inputs)))
    if isinstance(example_inputs, tuple):
        return model(*_copies(example_inputs))
    return model(_copies(example_inputs))


def _copies(inputs: Any) -> Any:
    return tree_map_only(Tensor, torch.clone, inputs)


def conv_at(model: nn.Module, name: str) -> Any:
    """The convolution called ``name``, in any number of dimensions.

    Raises:
        TypeError: the module is not an ``nn.Conv1d``, ``nn.Conv2d`` or ``nn.Conv3d``.
    """
    module = model.get_submodule(name)
    if not isinstance(module, tuple(CONVOLUTIONS.values())):
        raise TypeError(f"{name} is a {type(module).__name__}, not a convolution of torch.nn")
    return module


def replace_module(model: nn.Module, name: str, replacement: nn.Module) -> nn.Module:
    """Put ``replacement`` wherever the module called ``name`` is held, so that a shared module stays shared.

    Returns:
        The model; ``replacement`` itself when ``name`` is empty.
    """
    if not name:
        return replacement
    for place in places_in(model)[model.get_submodule(name)]:
        place.put(replacement)
    return model


@dataclass(frozen=True)
class Place:
    """A place that holds an object: ``key`` of a list or dict, or of a tuple at another place."""

    holder: Any
    key: Any

    def get(self) -> Any:
        """The object at this place."""
        return self._held()[self.key]

    def put(self, value: Any) -> None:
        """Put ``value`` at this place; a tuple is replaced by a new one."""
        if not isinstance(self.holder, Place):
            self.holder[self.key] = value
            return
        items = list(self._held())
        items[self.key] = value
        kind = type(self._held())
        self.holder.put(kind._make(items) if hasattr(kind, "_make") else kind(items))

    def _held(self) -> Any:
        return self.holder.get() if isinstance(self.holder, Place) else self.holder


#: What ``nn.Module`` itself keeps on a module: parameters, hooks and the like.
_INTERNALS = frozenset(vars(nn.Module()))
#: Objects that hold no modules, or none that are part of a network.
_LEAVES = (str, bytes, int, float, complex, type(None), Tensor, type, ModuleType)
_FOREIGN = frozenset({"torch", "builtins", "numpy", "logging", "threading"})


def places_in(model: nn.Module) -> dict[nn.Module, list[Place]]:
    """All places that hold a module, for every module below ``model``.

    Those are the modules that register it, and whatever objects these hold: lists, tuples, dicts, and other objects'
    attributes.
    """
    places: dict[nn.Module, list[Place]] = {}
    seen: set[int] = {id(model)}
    pending = list(_inside(model))
    while pending:
        place = pending.pop()
        value = place.get()
        if isinstance(value, nn.Module):
            places.setdefault(value, []).append(place)
        if isinstance(value, tuple):
            pending += [Place(place, index) for index, item in enumerate(value) if not isinstance(item, _LEAVES)]
        elif id(value) not in seen:
            seen.add(id(value))
            pending += _inside(value)
    return places


def _inside(holder: Any) -> Iterator[Place]:
    """The places in a module, a list, a dict or an object's attributes; tuples are no holders, since they cannot change."""
    if isinstance(holder, nn.Module):
        yield from _places_of(holder._modules, holder._modules.items())
        attributes = vars(holder)
        yield from _places_of(attributes, ((k, v) for k, v in attributes.items() if k not in _INTERNALS))
    elif isinstance(holder, dict):
        yield from _places_of(holder, holder.items())
    elif isinstance(holder, list | deque):
        yield from _places_of(holder, enumerate(holder))
    elif type(holder).__module__.partition(".")[0] not in _FOREIGN:
        found = getattr(holder, "__dict__", None)
        if isinstance(found, dict):
            yield from _places_of(found, found.items())


def _places_of(holder: Any, items: Iterable[tuple[Any, Any]]) -> Iterator[Place]:
    return (Place(holder, key) for key, value in items if not isinstance(value, _LEAVES))


def without_zeros(inputs: Any) -> Any:
    """The inputs, with noise instead of all-zero tensors, because most differences vanish on an all-zero image."""
    if isinstance(inputs, Tensor):
        empty = inputs.is_meta or not inputs.is_floating_point() or not inputs.numel() or bool(inputs.any())
        return inputs if empty else torch.randn(inputs.shape, generator=torch.Generator().manual_seed(0)).to(inputs)
    if isinstance(inputs, Mapping):
        return {name: without_zeros(value) for name, value in inputs.items()}
    return type(inputs)(map(without_zeros, inputs)) if type(inputs) in (tuple, list) else inputs


#: Sizes that networks for signals, images and videos take, the cheapest first.
_SIZES: dict[int, tuple[tuple[int, ...], ...]] = {
    1: ((256,), (4096,)),
    2: ((64, 64), (224, 224)),
    3: ((8, 64, 64), (16, 112, 112)),
}


def infer_inputs(model: nn.Module) -> Tensor | None:
    """A random batch of images, signals or videos that ``model`` takes, or None.

    The size is that of a timm model's configuration, else 64 or 224 pixels; the channels are those of the first convolution.
    """
    conv: Any = next((m for m in model.modules() if isinstance(m, tuple(CONVOLUTIONS.values()))), None)
    if conv is None:
        return None
    settings = getattr(model, "pretrained_cfg", None) or getattr(model, "default_cfg", None) or {}
    sizes = [tuple(settings["input_size"])] if isinstance(settings, Mapping) and settings.get("input_size") else []
    sizes += [(conv.in_channels, *size) for size in _SIZES[len(conv.kernel_size)]]
    generator = torch.Generator().manual_seed(0)
    for size in sizes:
        x = torch.randn(1, *size, generator=generator).to(conv.weight.device, conv.weight.dtype)
        try:
            with evaluating(model):
                call(model, x)
        except Exception:  # whatever a stranger's forward raises, this size is not for it
            continue
        return x
    return None
