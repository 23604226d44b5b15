"""In which layouts an operator can be deployed, and the module of each."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from xvolution.deploy.content import MixedConv, SharedKernelConv, SharedValueConv, TwoBranchConv, WeightedConv
from xvolution.deploy.deployed import DeployedXVolution, MergedConv
from xvolution.deploy.fold import FoldedOperator, union_of
from xvolution.deploy.gated import SingleGatedConv, SplitGatedConv
from xvolution.nn import ImageAttention, LinearAttention


def build(
    folded: FoldedOperator, attention: nn.Module | None, layout: str, factory: dict[str, Any]
) -> DeployedXVolution:
    """The deployed module of a folded operator in one layout (see ``layouts_for``)."""
    with torch.no_grad():
        if folded.gate is not None:
            gated = SingleGatedConv if layout == "single" else SplitGatedConv
            deployed: DeployedXVolution = gated(folded.convolution, folded.gate, factory)
        elif attention is None:
            deployed = MergedConv(folded.convolution, factory)
        elif folded.shared is not None:
            of_shared = SharedKernelConv if layout == "single" else SharedValueConv
            deployed = of_shared(folded, folded.shared, attention, factory)
        elif isinstance(attention, LinearAttention) and layout == "single":
            deployed = MixedConv(folded, attention, factory)
        elif isinstance(attention, ImageAttention) and layout == "single":
            deployed = WeightedConv(folded, attention, factory)
        else:
            deployed = TwoBranchConv(folded, attention, factory)
    return deployed.eval()


def layouts_for(folded: FoldedOperator, attention: nn.Module | None) -> tuple[str, ...]:
    """Layouts in which an operator can be deployed, the one with the fewest multiplications first."""
    if folded.gate is not None:
        pointwise = max(union_of(folded.convolution, folded.gate).kernel_size) == 1
        return ("single", "split") if pointwise else ("split", "single")
    if attention is None:
        return ("single",)
    if isinstance(attention, LinearAttention) and type(folded.attention_norm) is nn.Identity:
        return ("split", "single")
    if isinstance(attention, ImageAttention) and type(folded.attention_norm) is nn.Identity:
        return ("single", "split")
    norms = (folded.convolution.norm, folded.attention_norm)
    if folded.shared is not None and all(type(norm) is nn.Identity for norm in norms):
        return ("single", "split")
    return ("split",)
