"""The new parameters of a converted network, and parameter groups for an optimizer."""

from __future__ import annotations

import math
from collections.abc import Iterable
from fnmatch import fnmatch
from typing import Any

from torch import nn

from xvolution.operator import XVolution

#: The attribute of what took a convolution's place: the names of its parameters that the network had before.
_MOVED = "_xvolution_moved"
#: Parts of an operator that nobody marked, which hold the weights of a convolution and its norm.
_KEPT_PARTS = ("conv.", "conv_norm.")


def note_moved(operator: nn.Module, before: Iterable[nn.Module]) -> None:
    """Store with an operator which of its parameters come from the modules that it replaces."""
    known = {id(parameter) for module in before for parameter in module.parameters()}
    named = operator.named_parameters(remove_duplicate=False)
    setattr(operator, _MOVED, frozenset(name for name, parameter in named if id(parameter) in known))


def new_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that conversion added to a network, by name; those that moved under another name are not new.

    In an ``XVolution2d`` that no conversion put there, everything but its first convolution and the norm of that is new.
    """
    new: set[int] = set()
    for module in model.modules():
        moved = getattr(module, _MOVED, None)
        if moved is None and not isinstance(module, XVolution):
            continue
        for name, parameter in module.named_parameters(remove_duplicate=False):
            if not (name.startswith(_KEPT_PARTS) if moved is None else name in moved):
                new.add(id(parameter))
    return {name: parameter for name, parameter in model.named_parameters() if id(parameter) in new}


def parameter_groups(
    model: nn.Module, lr: float, new_lr_factor: float = 1.0, weight_decay: float = 0.0
) -> list[dict[str, Any]]:
    """The trainable parameters of a network in groups for an optimizer of torch or timm.

    ``new_lr_factor`` is for the parameters that ``convert`` added. The convolutions and norms that moved into the operators are
    not among them, although their names are new (``layer3.0.conv1.conv.weight``, ``layer3.0.conv1.conv_norm.weight``). Rules by
    name would give them the learning rate of new parameters, and the effect of that would look like one of the operator.

    As timm's optimizers have it, biases, vectors and scalars (norms are such) take no weight decay, nor does what the network's
    own ``no_weight_decay()`` names::

        groups = xvolution.parameter_groups(model, lr=0.01, new_lr_factor=5, weight_decay=1e-4)
        optimizer = torch.optim.SGD(groups, momentum=0.9)

    Args:
        model: a network, converted or not; a part of one or a wrapper around one too.
        lr: learning rate of the parameters from before the conversion.
        new_lr_factor: factor on ``lr`` for new parameters.
        weight_decay: weight decay of the parameters that have one.

    Returns:
        Groups with ``params``, ``lr`` and ``weight_decay``, none of them empty: old parameters before new ones, and
        parameters without decay first. With the factor 1 new parameters have no separate groups. Frozen ones are left out.

    Raises:
        ValueError: a rate or a factor that is not positive, or a negative decay.
    """
    for name, value in (("lr", lr), ("new_lr_factor", new_lr_factor)):
        if not 0 < value < math.inf:
            raise ValueError(f"{name} is {value}; it must be a positive number")
    if not 0 <= weight_decay < math.inf:
        raise ValueError(f"weight_decay is {weight_decay}; it must be at least 0")
    new = set() if new_lr_factor == 1 else {id(parameter) for parameter in new_parameters(model).values()}
    exempt: Iterable[str] = getattr(model, "no_weight_decay", tuple)()
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            is_bias = parameter.ndim <= 1 or name.endswith(".bias")
            decays = weight_decay > 0 and not is_bias and not any(fnmatch(name, pattern) for pattern in exempt)
            groups.setdefault((id(parameter) in new, decays), []).append(parameter)
    return [
        {
            "params": groups[is_new, decays],
            "lr": lr * new_lr_factor if is_new else lr,
            "weight_decay": weight_decay if decays else 0.0,
        }
        for is_new, decays in sorted(groups)
    ]
