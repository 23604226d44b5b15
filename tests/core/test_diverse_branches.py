"""Diverse branches: what is summed, and that one convolution is left of it once deployed."""

import pytest
import torch
from torch import nn

from tests.core.networks import SmallNet, randomize
from tests.core.references import convolution_branch
from xvolution import ReparameterizationError, XVolution2d, XVolutionConfig, convert, reparameterize
from xvolution.conv_branches import NormalizedConvolution, PointwiseThenConvolution, PointwiseThenPooling
from xvolution.conversion.summary import count_parameters

KINDS = [NormalizedConvolution, PointwiseThenPooling, PointwiseThenConvolution]


def trained(*arguments, **options):
    options = {"attention": None, "diverse_branches": True, "zero_init": False, "dtype": torch.float64, **options}
    return randomize(XVolution2d(*arguments, **options)).eval()


def test_the_branches_are_those_of_the_paper():
    layer = XVolution2d(8, 16, 3, padding=1, groups=2, diverse_branches=True)
    assert [type(branch) for branch in layer.parallel] == KINDS
    assert layer.parallel[0].conv.kernel_size == (1, 1)
    x = torch.randn(2, 8, 6, 6)
    torch.testing.assert_close(layer.parallel[2].inner(x), x)  # starts as the identity
    assert [type(branch) for branch in XVolution2d(8, 16, 1, diverse_branches=True).parallel] == KINDS[2:]
    several = XVolution2d(8, 16, 3, num_conv_branches=3, diverse_branches=True)
    assert [type(branch) for branch in several.parallel] == [NormalizedConvolution, NormalizedConvolution, *KINDS]


@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
@pytest.mark.parametrize("padding", [0, 2, "same", "same_upper"])
def test_one_convolution_is_left_and_the_border_is_the_same(padding, mode):
    """With random norms between the 1x1 and the window: what is read beyond the border is where it would show."""
    stride = 1 if padding == "same" else 2
    layer, x = trained(8, 16, (3, 2), stride, padding, groups=2, padding_mode=mode), torch.randn(2, 8, 9, 8).double()
    deployed = reparameterize(layer)
    assert count_parameters(deployed) == 16 * 4 * 6 + 16
    torch.testing.assert_close(layer(x), convolution_branch(layer, x), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(deployed(x), layer(x), rtol=1e-12, atol=1e-12)


def test_in_training_the_inner_norm_sees_what_it_is_deployed_for():
    layer = trained(8, 16, 3, padding=1).train()
    branch, x = layer.parallel[2], torch.randn(4, 8, 6, 6, dtype=torch.float64)
    branch.inner_norm.momentum = 1.0
    layer(x)
    seen = branch.inner(nn.functional.pad(x, [1] * 4))
    torch.testing.assert_close(branch.inner_norm.running_mean, seen.mean((0, 2, 3)))


@pytest.mark.parametrize("norm_layer", ["BatchNorm2d", None])
def test_conversion_keeps_the_outputs(norm_layer):
    network, x = randomize(SmallNet()).eval(), torch.randn(2, 3, 16, 16)
    converted = convert(network, XVolutionConfig(diverse_branches=True, norm_layer=norm_layer))
    torch.testing.assert_close(converted(x), network(x))
    assert len(converted.layer1.conv1.parallel) == 3
    deployed = reparameterize(randomize(converted).eval(), x, fold_norms=True)
    torch.testing.assert_close(deployed(x), converted(x), rtol=1e-4, atol=1e-5)
    alone = convert(network, XVolutionConfig(norm_layer=norm_layer))
    assert count_parameters(deployed) == count_parameters(reparameterize(alone, x, fold_norms=True))


def test_the_configuration_says_it():
    config = XVolutionConfig(diverse_branches=True)
    assert XVolutionConfig.from_dict(config.to_dict()) == config
    without = {name: value for name, value in config.to_dict().items() if name != "diverse_branches"}
    assert not XVolutionConfig.from_dict(without).diverse_branches


def test_what_cannot_become_one_is_refused():
    with pytest.raises(ValueError, match=r"cannot merge with a GroupNorm, .* without diverse_branches"):
        XVolution2d(8, 16, 3, norm_layer=lambda channels: nn.GroupNorm(2, channels), diverse_branches=True)
    with pytest.raises(ValueError, match=r"reads the outputs of one convolution, but there are 4; use .* without"):
        XVolution2d(8, 16, 3, attention="gated_depthwise", diverse_branches=True)
    layer = trained(8, 16, 3)
    layer.parallel[2].inner_norm = nn.GroupNorm(2, 8).double()
    with pytest.raises(ReparameterizationError, match="one of their norms does not fold"):
        reparameterize(layer.eval())
