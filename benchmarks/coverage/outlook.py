"""What a conversion would select in a network, and what it leaves."""

from __future__ import annotations

from collections import Counter

import torch
from torch import Tensor, nn

from benchmarks.coverage.networks import Architecture
from xvolution.conversion.config import Placement
from xvolution.conversion.selection import convolutions, select


def outlook(architecture: Architecture) -> tuple[list[str], dict[str, int]]:
    """What a conversion selects, and what it leaves (see ``left_behind``)."""
    try:
        # Without memory for weights, which most networks without convolutions do not have to spend then.
        with torch.device("meta"):
            network = architecture.build()
        selected = select(network, Placement())
        left = left_behind(network, selected)
        if set(left) <= {"1x1", "stem"}:
            return selected, left
    except (RuntimeError, ValueError, TypeError):  # a constructor that computes with its weights
        pass
    # Whether a subclass computes a plain convolution is told from its numbers.
    network = architecture.build()
    selected = select(network, Placement())
    return selected, left_behind(network, selected)


def left_behind(network: nn.Module, selected: list[str]) -> dict[str, int]:
    """How many convolutions stay, by reason: ``1x1``, ``stem``, or the class that is no plain convolution."""
    convertible = {name for name, _ in convolutions(network)}
    chosen = set(selected)
    reasons: Counter[str] = Counter()
    for name, module in network.named_modules():
        kernel = getattr(module, "kernel_size", None)
        if name in chosen or not isinstance(getattr(module, "weight", None), Tensor) or kernel is None:
            continue
        sides = (kernel,) if isinstance(kernel, int) else tuple(kernel)
        if max(sides) == 1:
            reasons["1x1"] += 1
        else:
            reasons["stem" if name in convertible else type(module).__name__] += 1
    return dict(sorted(reasons.items()))


def nothing_to_convert(left: dict[str, int]) -> dict[str, str]:
    """Status and reason of a network in which nothing is selected, from what ``left_behind`` says."""
    others = {reason: count for reason, count in left.items() if reason not in ("1x1", "stem")}
    if others:
        listed = ", ".join(f"{count} {reason}" for reason, count in others.items())
        return {"status": "left", "reason": f"no plain convolution behind the stem; left alone: {listed}"}
    if not left:
        return {"status": "nothing to convert", "reason": "no convolution at all"}
    if "stem" not in left:
        return {"status": "nothing to convert", "reason": "1x1 convolutions only"}
    return {"status": "nothing to convert", "reason": "no spatial convolution behind the stem"}
