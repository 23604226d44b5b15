"""The nearest static convolutions: exact where the operator is static, and the least-squares solution elsewhere."""

import pytest
import torch
from torch import nn

from tests.core.networks import SmallNet, randomize
from xvolution import ReparameterizationError, XVolution2d, XVolutionConfig, collapse, convert
from xvolution.attention import PixelShift


@pytest.fixture
def network():
    torch.manual_seed(0)
    return randomize(convert(SmallNet(), XVolutionConfig(attention=PixelShift(gate="tanh", window_norm=True)))).eval()


@pytest.fixture
def images():
    return torch.randn(2, 3, 16, 16)


def test_collapse_recovers_an_operator_that_is_static():
    operator = randomize(XVolution2d(4, 8, 3, 2, 1, groups=2, dtype=torch.float64)).eval()
    nn.init.zeros_(operator.attention_norm.weight)
    static, report = collapse(operator, [torch.randn(4, 4, 12, 12, dtype=torch.float64)])
    assert type(static) is nn.Conv2d
    assert report.output < 1e-6
    x = torch.randn(1, 4, 9, 9, dtype=torch.float64)
    torch.testing.assert_close(static(x), operator(x), rtol=1e-5, atol=1e-6)


def test_collapse_is_the_least_squares_solution():
    torch.manual_seed(0)
    operator = randomize(XVolution2d(3, 4, 3, padding=1, zero_init=False, dtype=torch.float64)).eval()
    batches = [torch.randn(4, 3, 10, 10, dtype=torch.float64) + 1 for _ in range(2)]
    static, report = collapse(operator, batches)
    x = torch.cat(batches)
    patches = nn.functional.unfold(x, 3, padding=1).transpose(1, 2).flatten(0, 1)
    patches = torch.cat([patches, torch.ones_like(patches[:, :1])], 1)
    y = operator(x).flatten(2).transpose(1, 2).flatten(0, 1)
    solution = torch.linalg.lstsq(patches, y).solution
    torch.testing.assert_close(static.weight.flatten(1).T, solution[:-1], rtol=1e-5, atol=1e-6)
    expected = ((static(x) - operator(x)).norm() / operator(x).norm()).item()
    assert report.output == pytest.approx(expected, rel=1e-6)
    assert report.layers[""] == pytest.approx(expected, rel=1e-4)
    assert 0 < expected < 1


def test_collapse_of_a_network(network, images):
    static, report = collapse(network, [images, (torch.randn(2, 3, 16, 16),)])
    assert not any(isinstance(module, XVolution2d) for module in static.modules())
    assert set(report.layers) == {"layer1.conv1", "layer1.conv2", "layer2.conv1", "layer2.conv2"}
    assert "model output" in str(report)
    with pytest.raises(ValueError, match="no batch"):
        collapse(network, [])
    with pytest.raises(ValueError, match="no X-volution"):
        collapse(SmallNet().eval(), [images])
    with pytest.raises(ReparameterizationError, match="train mode"):
        collapse(network.train(), [images])
