"""What every operator is held to: its reference, and the ways in which it is run."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import torch
from torch import Tensor, nn

#: Arguments of ``nn.Conv2d`` behind the channels, for 8 -> 12 of them and images of 9x9 pixels.
GEOMETRIES = [
    {"kernel_size": 3, "padding": 1},
    {"kernel_size": 3, "stride": 2, "padding": 1, "groups": 4, "bias": False},
    {"kernel_size": (1, 5), "stride": (2, 1), "dilation": 2, "padding_mode": "reflect", "padding": (0, 4)},
    {"kernel_size": 1, "stride": 3},
]


def agrees(module: nn.Module, reference: Callable[[Tensor], Tensor], x: Tensor) -> None:
    """Outputs, and gradients of the input and of every parameter, are those of ``reference``, which reads the same parameters."""
    x = x.clone().requires_grad_()
    leaves = [x, *module.parameters()]
    y, expected = module(x), reference(x)
    torch.testing.assert_close(y, expected)
    direction = torch.randn_like(y)
    gradients = torch.autograd.grad(y, leaves, direction)
    # A parameter that softmax or a norm takes out again may be missing from a reference that leaves it out.
    references = torch.autograd.grad(expected, leaves, direction, allow_unused=True)
    for gradient, other in zip(gradients, references, strict=True):
        torch.testing.assert_close(gradient, torch.zeros_like(gradient) if other is None else other)


def runs_everywhere(module: nn.Module, x: Tensor) -> None:
    """Compiles as one graph, exports, and keeps the dtype that a convolution would give under autocast."""
    module.eval()
    with torch.no_grad():
        expected = module(x)
        compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(x), expected)
        torch.testing.assert_close(torch.export.export(module, (x,)).module()(x), expected)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = module(x)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), expected, rtol=0.1, atol=0.1 * float(expected.abs().max()))


def window_pixels(
    x: Tensor, kernel_size: int, stride: int, padding: int, dilation: int = 1, mode: str = "constant"
) -> Tensor:
    """(N, C, H, W) -> (N, C, T, H', W'), pixel by pixel."""
    padded = nn.functional.pad(x, [padding] * 4, mode=mode)
    height, width = ((size - dilation * (kernel_size - 1) - 1) // stride + 1 for size in padded.shape[2:])
    windows = x.new_zeros(*x.shape[:2], kernel_size**2, height, width)
    for row, column in product(range(height), range(width)):
        top, left = row * stride, column * stride
        span = dilation * (kernel_size - 1) + 1
        patch = padded[:, :, top : top + span : dilation, left : left + span : dilation]
        windows[:, :, :, row, column] = patch.flatten(2)
    return windows
