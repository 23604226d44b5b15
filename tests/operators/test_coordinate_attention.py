"""Coordinate attention behind a convolution."""

import pytest
import torch

from tests.core.networks import randomize
from tests.operators.checks import GEOMETRIES, agrees
from xvolution.conversion.summary import count_parameters
from xvolution.operators import CoordinateAttention2d


def reference(operator, x):
    """Row by row and column by column, in eval mode."""
    norm = operator.squeeze_norm
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()

    def hidden(mean):
        squeezed = mean @ operator.squeeze.weight.flatten(1).T + operator.squeeze.bias
        normed = (squeezed - norm.running_mean) * scale + norm.bias
        return normed * (normed + 3).clamp(0, 6) / 6

    def weights(layer, mean):
        return 1 / (1 + (-(hidden(mean) @ layer.weight.flatten(1).T + layer.bias)).exp())

    z = operator.conv_norm(operator.conv(x))
    rows = [weights(operator.rows, z[:, :, i].sum(2) / z.shape[3]) for i in range(z.shape[2])]
    columns = [weights(operator.columns, z[:, :, :, j].sum(2) / z.shape[2]) for j in range(z.shape[3])]
    return torch.stack(
        [torch.stack([z[:, :, i, j] * r * c for j, c in enumerate(columns)], 2) for i, r in enumerate(rows)], 2
    )


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_it_is_its_formula(geometry):
    torch.manual_seed(0)
    operator = randomize(CoordinateAttention2d(8, 12, **geometry)).double().eval()
    agrees(operator, lambda x: reference(operator, x), torch.randn(2, 8, 9, 7, dtype=torch.float64))


def test_in_training_the_norm_sees_rows_and_columns_together():
    torch.manual_seed(0)
    operator = CoordinateAttention2d(4, 8, 3, padding=1).double()
    operator.squeeze_norm.momentum = 1.0
    x = torch.randn(2, 4, 6, 5, dtype=torch.float64)
    operator(x)
    z = operator.conv(x)
    means = torch.cat([z.mean(3), z.mean(2)], 2)[..., None]
    torch.testing.assert_close(operator.squeeze_norm.running_mean, operator.squeeze(means).mean((0, 2, 3)))


@pytest.mark.parametrize(("channels", "hidden"), [(512, 16), (64, 8)])
def test_its_parameters(channels, hidden):
    """Three layers with biases, C R + R and two of R C + C, and a norm of R."""
    operator = CoordinateAttention2d(3, channels, 3, bias=False)
    assert count_parameters(operator) == 27 * channels + 3 * channels * hidden + hidden + 2 * channels + 2 * hidden


def test_bad_input_is_a_sentence():
    with pytest.raises(ValueError, match="reduction is 0; it must be a positive integer"):
        CoordinateAttention2d(8, 8, 3, reduction=0)
