"""What a model costs by arithmetic: operations and parameters."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode


def count_flops(model: nn.Module, *inputs: Tensor) -> int:
    """Floating point operations of one forward pass, a multiplication and its addition counting as two.

    Counts what ``torch.utils.flop_counter`` counts: convolutions, matrix products and attention. Normalization,
    activations and the element-wise gate are not in it. The model is run in evaluation mode and comes back as it was.

    Args:
        model: any module.
        *inputs: what its forward takes; the count is for the whole batch.
    """
    training = {module: module.training for module in model.modules()}
    counter = FlopCounterMode(display=False)
    model.eval()
    try:
        with torch.no_grad(), counter:
            model(*inputs)
    finally:
        for module, mode in training.items():
            module.training = mode
    return counter.get_total_flops()


def count_parameters(model: nn.Module) -> int:
    """Number of parameters; one that is shared counts once."""
    return sum(parameter.numel() for parameter in model.parameters())
