"""The share of an attention branch in its operator's output, and the message if that share is very small.

The share of an operator is the variance of its attention branch over that of both branches, after their norms, as a mean over
channels. A residual block whose last norm begins at zero has a convolution branch that contributes as little as its attention, so
even a tiny attention would have a large share. A convolution therefore counts with at least the variance that the norms of the
network usually give a channel (the median of their squared scales).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from xvolution.operator import XVolution

#: A share below which a network answers as its convolutions do.
HARDLY = 1e-3

#: What to do about it.
ADVICE = (
    "Train longer, or raise the learning rate of the added parameters: --new-lr-factor is 1 by default, and five times "
    "what it was is worth a try. Until then the outputs are those of the convolutions."
)


def attending(model: nn.Module) -> dict[str, XVolution]:
    """The operators of a network in training form that have an attention branch, by their names."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, XVolution) and module.attention is not None
    }


def share_of(attention: Tensor, convolution: Tensor, usual: float) -> float:
    """The share of one operator.

    Args:
        attention, convolution: (C_out,), variances of both branches after their norms.
        usual: variance that the network's norms usually give a channel; see `usual_variance`.

    Returns:
        From 0 to 1; a channel that does not vary counts as 0.
    """
    whole = attention + convolution.clamp(min=usual)
    return float(torch.where(whole > 0, attention / whole, torch.zeros_like(whole)).mean())


def usual_variance(model: nn.Module) -> float:
    """The median of the mean squared scale of the network's norms, without those of attention branches; 0 without norms."""
    inside = {
        id(module)
        for operator in attending(model).values()
        for part in (operator.attention, operator.attention_norm)
        for module in part.modules()
    }
    # What else has one number a channel, such as PReLU or a layer scale, divides by nothing and has no eps.
    norms = (module for module in model.modules() if id(module) not in inside and hasattr(module, "eps"))
    scales = [float(scale.mean()) for norm in norms if (scale := _variance(norm)) is not None]
    return median(scales) if scales else 0.0


def estimated_shares(model: nn.Module) -> dict[str, float]:
    """The share of each operator estimated from the scales of its norms, without running images.

    The output of a batch norm on its own data has the variance of its squared scale. Operators whose attention has no
    norm with a scale are left out.

    Args:
        model: in training form, on any device.
    """
    usual, found = usual_variance(model), {}
    for name, operator in attending(model).items():
        attention = _variance(operator.attention_norm)
        if attention is None or usual == 0:
            continue
        parallel: Any = operator.parallel
        branches = [_variance(norm) for norm in (operator.conv_norm, *(each.norm for each in parallel))]
        convolution = sum((each for each in branches if each is not None), torch.zeros_like(attention))
        found[name] = share_of(attention, convolution, usual)
    return found


def hardly_begun(shares: Mapping[str, float], source: str = "by the scales of its norms") -> str | None:
    """A sentence if the attention of every operator contributes almost nothing; None if one contributes, or nothing is known.

    Args:
        shares: the share of each operator, by name.
        source: origin of the shares, in words.
    """
    if not shares or max(shares.values()) >= HARDLY:
        return None
    return (
        f"attention hardly contributes yet: it is at most {max(shares.values()):.1g} of the variance of an "
        f"operator's output, {source}. {ADVICE}"
    )


def _variance(norm: nn.Module) -> Tensor | None:
    """(C,), fp64: the squared scale of a norm; None where it has none for each channel."""
    weight = getattr(norm, "weight", None)
    return weight.detach().double().square() if isinstance(weight, Tensor) and weight.dim() == 1 else None


def largest_shares(networks: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Of each operator the largest share of its attention over several networks."""
    largest: dict[str, float] = {}
    for shares in networks:
        for name, share in shares.items():
            largest[name] = max(share, largest.get(name, 0.0))
    return largest
