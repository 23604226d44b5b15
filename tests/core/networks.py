"""Networks to convert, and statistics that hide nothing."""

from __future__ import annotations

import torch
from torch import nn


def randomize(model: nn.Module, seed: int = 0) -> nn.Module:
    """Random norms, and random numbers where a parameter starts with one everywhere: fresh ones hide every folding bug."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(tensor: torch.Tensor, low: float, high: float) -> torch.Tensor:
        return low + (high - low) * torch.rand(tensor.shape, generator=generator, dtype=torch.float64)

    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.running_mean.copy_(uniform(module.running_mean, -0.5, 0.5))
                module.running_var.copy_(uniform(module.running_var, 0.5, 2.0))
            if isinstance(module, nn.modules.batchnorm._BatchNorm | nn.GroupNorm):
                module.weight.copy_(uniform(module.weight, 0.5, 1.5))
                module.bias.copy_(uniform(module.bias, -0.5, 0.5))
            if getattr(module, "mean_weight", None) is not None:
                module.mean_weight.copy_(uniform(module.mean_weight, -1.0, 1.0))
            for parameter in module.parameters(recurse=False):
                if parameter.numel() > 1 and parameter.min() == parameter.max():
                    parameter.mul_(uniform(parameter, 0.5, 1.5).to(parameter.dtype))
    return model


class SmallNet(nn.Module):
    """Residual network in two stages that torch.fx traces."""

    def __init__(self, channels: int = 8, classes: int = 5) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, channels, 3, padding=1, bias=False)
        self.stem_norm = nn.BatchNorm2d(channels)
        self.layer1 = Residual(channels)
        self.layer2 = Residual(channels)
        self.head = nn.Linear(channels, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.layer2(self.layer1(self.stem_norm(self.stem(x)).relu()))
        return self.head(x.mean((2, 3)))


class Residual(nn.Module):
    """conv-norm-relu-conv-norm and a shortcut."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm1(self.conv1(x)).relu()
        return (x + self.norm2(self.conv2(y))).relu()
