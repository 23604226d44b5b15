"""Random statistics, scales and weights: fresh ones hide every folding error."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def randomize_statistics(norm: Any, inputs: tuple[Tensor, ...]) -> None:
    """Running statistics at random around those of the input: activations keep their scale through a deep network."""
    (x,) = inputs
    x = x.transpose(0, 1).flatten(1)
    mean, variance = x.mean(1), x.var(1, correction=0)
    # Few pixels of two random images vary too little: divided by their deviation, rounding grows with every layer.
    variance = torch.maximum(variance, 0.5 * (mean.square() + variance).mean()).clamp(min=1e-2)
    norm.running_mean.copy_(mean + variance.sqrt() * (torch.rand_like(mean) - 0.5))
    norm.running_var.copy_(variance * 2 ** (2 * torch.rand_like(variance) - 1))


def randomize_norms(network: nn.Module) -> nn.Module:
    """Eval mode, with batch norms at random that need no input: they stand for trained ones."""
    with torch.no_grad():
        for norm in batch_norms(network):
            norm.running_mean.uniform_(-0.5, 0.5)
            norm.running_var.uniform_(0.5, 2.0)
            norm.weight.uniform_(0.5, 1.5)
            norm.bias.uniform_(-0.5, 0.5)
    return network.eval()


def batch_norms(network: nn.Module) -> list[Any]:
    """Every module that holds running statistics; what stands in the place of a norm that moved answers for fixed ones."""
    return [m for m in network.modules() if isinstance(m._buffers.get("running_mean"), Tensor)]


def randomize_scales(network: nn.Module) -> None:
    """Scales away from one, biases and zero-initialized weights away from zero: what starts at zero hides errors."""
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if not parameter.is_floating_point() or not parameter.numel():
                continue
            if name.rpartition(".")[2].startswith("bias"):
                parameter.uniform_(-0.1, 0.1)
            elif parameter.numel() == max(parameter.shape, default=1):
                parameter.uniform_(0.5, 1.5)
            elif not parameter.any():
                parameter.normal_(0, 0.02)


def randomize_attention(operators: list[Any]) -> None:
    """The attention branches at about a third of the convolutions' scale."""
    for operator in operators:
        randomize_scales(operator.attention)
        randomize_scales(operator.attention_norm)
        with torch.no_grad():
            for parameter in operator.attention_norm.parameters():
                parameter *= 0.3
