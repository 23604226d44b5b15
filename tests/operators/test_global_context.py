"""A global context behind a convolution."""

import pytest
import torch
from torch import nn

from tests.core.networks import SmallNet, randomize
from tests.operators.checks import GEOMETRIES, agrees
from xvolution import convert
from xvolution.conversion.summary import count_parameters
from xvolution.operators import GlobalContext2d


def trained(*args, **options):
    """With the layer that starts at zero at random."""
    operator = randomize(GlobalContext2d(*args, **options))
    for parameter in operator.transform[3].parameters():
        nn.init.normal_(parameter)
    return operator


def reference(operator, x):
    """Image by image and pixel by pixel."""
    first, norm, _, last = operator.transform
    images = []
    for z in operator.conv_norm(operator.conv(x)):
        pixels = z.flatten(1).T
        powers = torch.stack([(operator.score.weight.flatten() @ pixel).exp() for pixel in pixels])
        context = sum(power * pixel for power, pixel in zip(powers, pixels, strict=True)) / powers.sum()
        hidden = first.weight.flatten(1) @ context + first.bias
        hidden = (hidden - hidden.mean()) / (hidden.var(correction=0) + norm.eps).sqrt()
        hidden = (hidden * norm.weight.flatten() + norm.bias.flatten()).clamp(min=0)
        images.append(z + (last.weight.flatten(1) @ hidden + last.bias)[:, None, None])
    return torch.stack(images)


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_it_is_its_formula(geometry):
    torch.manual_seed(0)
    operator = trained(8, 12, **geometry).double()
    agrees(operator, lambda x: reference(operator, x), torch.randn(2, 8, 9, 9, dtype=torch.float64))


@pytest.mark.parametrize(("channels", "reduction", "hidden"), [(256, 16, 16), (64, 16, 8), (64, 4, 16)])
def test_its_parameters(channels, reduction, hidden):
    """C for the scores, two layers with biases, C R + R and R C + C, and a layer norm of R."""
    operator = GlobalContext2d(3, channels, 3, bias=False, reduction=reduction)
    assert (
        count_parameters(operator) == 27 * channels + channels + 2 * channels * hidden + hidden + channels + 2 * hidden
    )


def test_it_starts_without_effect():
    torch.manual_seed(0)
    network = randomize(SmallNet()).eval()
    x = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(convert(network, "gc")(x), network(x))


def test_the_context_is_the_same_at_every_pixel():
    torch.manual_seed(0)
    operator = trained(8, 12, 3, padding=1).eval()
    x = torch.randn(2, 8, 6, 6)
    added = operator(x) - operator.conv(x)
    torch.testing.assert_close(added, added[:, :, :1, :1].expand_as(added))
    assert (added[0] - added[1]).abs().max() > 1e-3


def test_bad_input_is_a_sentence():
    with pytest.raises(ValueError, match="reduction is 0; it must be a positive integer"):
        GlobalContext2d(8, 8, 3, reduction=0)
