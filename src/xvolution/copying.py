"""Copies of modules, and additions to a module: hooks and patched methods."""

from __future__ import annotations

from copy import deepcopy
from itertools import chain
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

Module = TypeVar("Module", bound=nn.Module)

#: Pre-hooks of torch that compute the weights of the module they are on.
_WEIGHT_HOOKS = (BasePruningMethod, SpectralNorm, WeightNorm)
#: Where ``nn.Module`` keeps the hooks that a call runs.
_HOOKS = (
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_backward_pre_hooks",
    "_backward_hooks",
    "_is_full_backward_hook",
)


class CopyError(RuntimeError):
    """A module cannot be copied."""


def copied(module: Module, share_parameters: bool = False) -> Module:
    """A deep copy, also of modules whose weights a hook of torch computes: pruning, the older weight and spectral norms.

    Args:
        module: what to copy.
        share_parameters: share the parameters with the copy, for read-only use.

    Raises:
        CopyError: a part of it cannot be copied, such as a lock or an open file.
    """
    # Such a weight is a result, no leaf, which torch refuses to copy; the hook computes it again at the next call.
    known: dict[int, Any] = {
        id(value): value.detach().clone()
        for part in module.modules()
        for value in vars(part).values()
        if isinstance(value, Tensor) and not value.is_leaf
    }
    if share_parameters:
        known |= {id(parameter): parameter for parameter in module.parameters()}
    try:
        with torch.no_grad():  # of the parameters of compiled modules torch would else record that they were copied
            copy = deepcopy(module, known)
    except Exception as error:  # whatever a stranger's attribute raises
        raise CopyError(f"{type(module).__name__} cannot be copied ({error})") from error
    for old, new in zip(module.parameters(), copy.parameters(), strict=True):
        if old.requires_grad and not new.requires_grad:
            new.requires_grad_()
    for part in module.modules():
        twin = known.get(id(part))
        # Modules that build themselves anew from a state of their own, such as einops' layers, forget their mode.
        if isinstance(twin, nn.Module) and twin.training != part.training:
            twin.training = part.training
    return copy


@torch.no_grad()
def compute_weights(module: Module) -> Module:
    """``module``, after torch's hooks have recomputed its weights.

    Between two calls, ``module.to`` does not move such a weight to another dtype or device.
    """
    for part in module.modules():
        for hook in part._forward_pre_hooks.values():
            if isinstance(hook, _WEIGHT_HOOKS):
                training, part.training = part.training, False  # a spectral norm would go on with its iteration
                hook(part, ())
                part.training = training
    return module


def working_copy(model: Module, inplace: bool, error: type[Exception]) -> Module:
    """The model to change: a copy, or with ``inplace`` the model itself.

    Raises:
        error: it cannot be copied, or with ``inplace`` it cannot be changed; the message says what to do.
    """
    if not inplace:
        try:
            return copied(model)
        except CopyError as failure:
            raise error(f"{failure}; give inplace=True to change the model itself") from failure
    if any(tensor.is_inference() for tensor in chain(model.parameters(), model.buffers()) if not is_lazy(tensor)):
        raise error(
            "the model's weights were created under torch.inference_mode, so torch does not allow changes; "
            "create or load the model outside of it, or use inplace=False"
        )
    return model


def addition_to(module: nn.Module) -> str | None:
    """The code that a call of ``module`` runs in addition to its class's forward, in words; None if there is none.

    torch's hooks that compute weights do not count, because their effect on a convolution is known.
    """
    if "forward" in vars(module):
        return "a patched forward method"
    if module._forward_hooks:
        return "a forward hook"
    if any(not isinstance(hook, _WEIGHT_HOOKS) for hook in module._forward_pre_hooks.values()):
        return "a forward pre-hook"
    if module._backward_hooks or module._backward_pre_hooks:
        return "a backward hook"
    return None


def hand_over_hooks(module: nn.Module, replacement: Module) -> Module:
    """``replacement`` with the hooks that a call of ``module`` runs; handles that remove them hold for both."""
    for name in _HOOKS:
        setattr(replacement, name, getattr(module, name))
    return replacement


def hand_over_notes(module: nn.Module, replacement: Module) -> Module:
    """``replacement`` with the attributes that were set on ``module``, such as the indices of the layers that it reads."""
    for name, value in vars(module).items():
        if not name.startswith("_") and not hasattr(replacement, name):
            vars(replacement)[name] = value  # not setattr, which would register a module that was noted without
    return replacement
