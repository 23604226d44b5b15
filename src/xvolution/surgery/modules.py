"""Walking and changing a network: running it undisturbed, replacing modules, finding inputs that it takes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode without gradients; every module's own mode comes back afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training


def call(model: nn.Module, example_inputs: Any) -> Any:
    """Call ``model`` with a tensor, a tuple of positional arguments or a mapping of keyword arguments."""
    if isinstance(example_inputs, Mapping):
        return model(**example_inputs)
    if isinstance(example_inputs, tuple):
        return model(*example_inputs)
    return model(example_inputs)


def conv_at(model: nn.Module, name: str) -> nn.Conv2d:
    """The convolution called ``name``.

    Raises:
        TypeError: the module is no ``nn.Conv2d``.
    """
    module = model.get_submodule(name)
    if not isinstance(module, nn.Conv2d):
        raise TypeError(f"{name} is a {type(module).__name__}, not an nn.Conv2d")
    return module


def replace_module(model: nn.Module, name: str, replacement: nn.Module) -> nn.Module:
    """Put ``replacement`` wherever the module called ``name`` is registered, so that a shared module stays shared.

    Returns:
        The model; ``replacement`` itself when ``name`` is empty.
    """
    if not name:
        return replacement
    old = model.get_submodule(name)
    for parent in list(model.modules()):
        for key, child in list(parent._modules.items()):
            if child is old:
                parent._modules[key] = replacement
    return model


def infer_inputs(model: nn.Module) -> Tensor | None:
    """A random image batch that ``model`` takes, or None.

    The size is that of a timm model's configuration, else 64 or 224 pixels; the channels are those of the first convolution.
    """
    conv = next((module for module in model.modules() if isinstance(module, nn.Conv2d)), None)
    if conv is None:
        return None
    settings = getattr(model, "pretrained_cfg", None) or getattr(model, "default_cfg", None) or {}
    sizes = [tuple(settings["input_size"])] if isinstance(settings, Mapping) and settings.get("input_size") else []
    sizes += [(conv.in_channels, side, side) for side in (64, 224)]
    generator = torch.Generator().manual_seed(0)
    for size in sizes:
        x = torch.randn(1, *size, generator=generator).to(conv.weight.device, conv.weight.dtype)
        try:
            with evaluating(model):
                model(x)
        except Exception:  # whatever a stranger's forward raises, this size is not for it
            continue
        return x
    return None
