"""Squeeze-and-excitation behind a convolution."""

import pytest
import torch
from torch import nn

from tests.core.networks import SmallNet, randomize
from tests.operators.checks import GEOMETRIES, agrees
from xvolution import OperatorConfig, convert
from xvolution.conversion.summary import count_parameters
from xvolution.operators import SqueezeExcitation2d


def reference(operator, x):
    """Image by image and channel by channel."""
    first, _, second = operator.excitation
    images = []
    for z in operator.conv_norm(operator.conv(x)):
        mean = torch.stack([channel.sum() / channel.numel() for channel in z])
        hidden = (first.weight.flatten(1) @ mean + first.bias).clamp(min=0)
        weights = operator.scale / (1 + (-(second.weight.flatten(1) @ hidden + second.bias)).exp())
        images.append(torch.stack([weight * channel for weight, channel in zip(weights, z, strict=True)]))
    return torch.stack(images)


@pytest.mark.parametrize("zero_init", [False, True])
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_it_is_its_formula(geometry, zero_init):
    torch.manual_seed(0)
    operator = randomize(SqueezeExcitation2d(8, 12, **geometry, zero_init=zero_init)).double()
    assert operator.scale == (2 if zero_init else 1)
    agrees(operator, lambda x: reference(operator, x), torch.randn(2, 8, 9, 9, dtype=torch.float64))


@pytest.mark.parametrize(("channels", "reduction", "hidden"), [(256, 16, 16), (64, 16, 8), (64, 4, 16), (4, 1, 8)])
def test_its_parameters(channels, reduction, hidden):
    """Two layers with biases, C R + R and R C + C, beside the convolution; R is C / reduction, and 8 at least."""
    operator = SqueezeExcitation2d(3, channels, 3, bias=False, reduction=reduction)
    assert count_parameters(operator) == 27 * channels + 2 * channels * hidden + hidden + channels


def test_the_convolution_and_its_norm_are_kept():
    torch.manual_seed(0)
    network = randomize(SmallNet()).eval()
    converted = convert(network, "se", names=("layer1.conv1",))
    operator = converted.layer1.conv1
    assert torch.equal(operator.conv.weight, network.layer1.conv1.weight)
    assert torch.equal(operator.conv_norm.running_var, network.layer1.norm1.running_var)
    nn.init.constant_(operator.excitation[2].bias, 100.0)  # weights of one
    x = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(converted(x), network(x))


def test_it_may_start_as_its_convolution():
    torch.manual_seed(0)
    network = randomize(SmallNet()).eval()
    config = OperatorConfig(operator="se", options={"zero_init": True})
    x = torch.randn(2, 3, 16, 16)
    assert torch.equal(convert(network, config)(x), network(x))
    assert not torch.allclose(convert(network, "se")(x), network(x), rtol=0.1)


def test_another_kernel_size_has_new_weights_and_the_norm():
    network = SmallNet()
    config = OperatorConfig(operator="se", options={"reduction": 4}, kernel_size=5)
    operator = convert(network, config, names=("layer1.conv1",)).layer1.conv1
    assert operator.conv.kernel_size == (5, 5)
    assert isinstance(operator.conv_norm, nn.BatchNorm2d)


def test_bad_input_is_a_sentence():
    with pytest.raises(ValueError, match="reduction is 0; it must be a positive integer"):
        SqueezeExcitation2d(8, 8, 3, reduction=0)
