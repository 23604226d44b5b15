"""A convolution and a context of the whole image."""

import torch
from torch import nn

from tests.core.networks import randomize
from tests.operators.checks import agrees, runs_everywhere
from xvolution.conversion.summary import count_parameters
from xvolution.operators import ConvContext2d


def reference(operator, x):
    """Term by term, in eval mode."""
    first, _, second = operator.context
    hidden = (x.mean((2, 3)) @ first.weight.flatten(1).T + first.bias).clamp(min=0)
    vector = operator.context_norm((hidden @ second.weight.flatten(1).T)[:, :, None, None])
    return operator.conv_norm(operator.conv(x)) + vector.expand(-1, -1, 5, 5)


def test_it_is_its_formula():
    torch.manual_seed(0)
    operator = randomize(ConvContext2d(8, 12, 3, 2, 1)).double().eval()
    x = torch.randn(3, 8, 9, 9, dtype=torch.float64)
    agrees(operator, lambda x: reference(operator, x), x)


def test_the_context_is_the_same_wherever_the_pixels_are():
    """Without the convolution, pixels in another order give the same output, and the same at every pixel."""
    torch.manual_seed(0)
    operator = randomize(ConvContext2d(8, 12, 3, padding=1)).double().eval()
    nn.init.zeros_(operator.conv_norm.weight)
    x = torch.randn(2, 8, 6, 6, dtype=torch.float64)
    shuffled = x.flatten(2)[:, :, torch.randperm(36)].reshape(x.shape)
    y = operator(x)
    torch.testing.assert_close(operator(shuffled), y)
    torch.testing.assert_close(y, y[:, :, :1, :1].expand_as(y))
    assert (y[0] - y[1]).abs().max() > 1e-3


def test_its_parameters():
    """Two 1x1 layers, C_in A + A and A C_out, and two norms beside the convolution."""
    operator = ConvContext2d(8, 12, 3, padding=1, bias=False)
    assert count_parameters(operator) == 9 * 8 * 12 + (8 * 3 + 3) + 3 * 12 + 2 * 2 * 12


def test_it_runs_everywhere():
    torch.manual_seed(0)
    runs_everywhere(randomize(ConvContext2d(8, 12, 3, padding=1)), torch.randn(2, 8, 6, 6))
