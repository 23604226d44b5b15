"""Efficient channel attention behind a convolution."""

import pytest
import torch

from tests.core.networks import randomize
from tests.operators.checks import GEOMETRIES, agrees
from xvolution.conversion.summary import count_parameters
from xvolution.operators import EfficientChannelAttention2d


def reference(operator, x):
    """Channel by channel: the weighted means of its neighbours, of which there are none beyond the first and the last."""
    window = operator.attention.weight.flatten()
    reach = len(window) // 2
    z = operator.conv_norm(operator.conv(x))
    channels = []
    for c in range(z.shape[1]):
        score = torch.zeros(len(x), dtype=x.dtype)
        for tap, weight in enumerate(window):
            if 0 <= (neighbour := c + tap - reach) < z.shape[1]:
                score = score + weight * z[:, neighbour].flatten(1).sum(1) / z[0, 0].numel()
        channels.append(z[:, c] / (1 + (-score).exp())[:, None, None])
    return torch.stack(channels, 1)


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_it_is_its_formula(geometry):
    torch.manual_seed(0)
    operator = randomize(EfficientChannelAttention2d(8, 12, **geometry)).double()
    agrees(operator, lambda x: reference(operator, x), torch.randn(2, 8, 9, 9, dtype=torch.float64))


@pytest.mark.parametrize(("channels", "window"), [(4, 1), (8, 3), (64, 3), (128, 5), (512, 5), (2048, 7)])
def test_its_parameters(channels, window):
    """The paper's table: as many as the window has, for all channels together."""
    operator = EfficientChannelAttention2d(3, channels, 3, bias=False)
    assert count_parameters(operator) == 27 * channels + window


def test_bad_input_is_a_sentence():
    for window in (0, 4):
        with pytest.raises(ValueError, match=f"window is {window}; it must be a positive odd integer"):
            EfficientChannelAttention2d(8, 8, 3, window=window)
