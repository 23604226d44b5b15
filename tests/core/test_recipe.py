"""A network that is converted as another one was, without a forward pass."""

import pytest
import torch

from tests.core.networks import SmallNet, randomize
from xvolution import XVolution2d, XVolutionConfig, conversion_summary, convert, load_unconverted
from xvolution.attention import ChannelGate
from xvolution.conversion.recipe import Recipe


@pytest.fixture
def images():
    return torch.randn(2, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("attention", [ChannelGate(), None])
def test_the_second_network_is_converted_alike(attention, images):
    torch.manual_seed(0)
    config = XVolutionConfig(attention=attention)
    first = randomize(convert(SmallNet().double(), config, stages=(1,))).eval()
    values = Recipe.of(first, config).to_dict()
    second = SmallNet().double()
    Recipe.from_dict(values).convert_(second)
    second.load_state_dict(first.state_dict())
    assert torch.equal(second.eval()(images), first(images))
    assert conversion_summary(second).proof.startswith("converted like another network")
    plain = randomize(SmallNet().double(), seed=4).eval()
    load_unconverted(second, plain.state_dict())
    first.load_state_dict(second.state_dict())
    assert torch.equal(first(images), second(images))


def test_on_the_meta_device():
    recipe = Recipe.of(convert(SmallNet()), XVolutionConfig())
    with torch.device("meta"):
        network = SmallNet()
        recipe.convert_(network)
    assert isinstance(network.layer1.conv1, XVolution2d)
    assert all(tensor.is_meta for tensor in (*network.parameters(), *network.buffers()))


def test_another_architecture_is_refused_and_stays():
    recipe = Recipe(XVolutionConfig(), {"layer1.conv1": "layer1.norm1", "layer9.conv1": None})
    network = SmallNet()
    with pytest.raises(ValueError, match=r"SmallNet has no module layer9\.conv1"):
        recipe.convert_(network)
    assert not isinstance(network.layer1.conv1, XVolution2d)
