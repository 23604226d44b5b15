"""The nearest static convolutions: exact where the operator is static, and the least-squares solution elsewhere."""

import pytest
import torch
from torch import nn

from tests.core.networks import SmallNet, randomize
from xvolution import ReparameterizationError, XVolution2d, XVolutionConfig, collapse, convert, reparameterize
from xvolution.attention import ChannelGate, PixelShift
from xvolution.operator import fold


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
    with pytest.raises(ValueError, match="calibration is empty"):
        collapse(network, [])
    with pytest.raises(ValueError, match="no X-volution"):
        collapse(SmallNet().eval(), [images])
    with pytest.raises(ReparameterizationError, match="train mode"):
        collapse(network.train(), [images])


CONSTANT = [
    PixelShift(),
    PixelShift(gate="tanh", dilation=(1, 2), query_norm=False, reduction=4),
    PixelShift(gate="identity", pooled_query=False, pooled_key=False),
    ChannelGate(),
    ChannelGate(gate="tanh", separable=True, channel_keys=True),
    ChannelGate(gate="identity", channel_keys=True, reduction=2),
]


@pytest.mark.parametrize("attention", CONSTANT, ids=str)
@pytest.mark.parametrize("groups", [1, 4])
def test_an_operator_with_constant_gates_is_one_convolution_exactly(attention, groups):
    torch.manual_seed(0)
    options = {"groups": groups, "zero_init": False, "dtype": torch.float64}
    operator = randomize(XVolution2d(8, 16, 3, 2, 1, attention=attention, **options)).eval()
    branch, x = operator.attention, torch.randn(2, 8, 9, 9, dtype=torch.float64)
    assert fold(operator).static() is None
    wanted = {name: torch.randn(channels, dtype=torch.float64) for name, channels in branch.gates().items()}
    branch.settle_(wanted)
    for name, logits in wanted.items():
        outputs = []
        handle = branch.get_submodule(name).register_forward_hook(lambda _, __, y, outputs=outputs: outputs.append(y))
        operator(x)
        handle.remove()
        expected = logits[:, None, None].expand(*outputs[0].shape)
        torch.testing.assert_close(outputs[0], expected)  # the gate says what it was told, everywhere
    static, report = collapse(operator, [x])
    assert type(static) is nn.Conv2d or type(static).__mro__[2] is nn.Conv2d
    assert list(report.layers.values()) == [0.0]
    torch.testing.assert_close(static(x), operator(x), rtol=1e-12, atol=1e-12)
    for layout in fold(operator).layouts:
        deployed = reparameterize(operator, layout=layout)
        torch.testing.assert_close(deployed(x), operator(x), rtol=1e-12, atol=1e-12)
    plain = reparameterize(operator)
    assert plain.layout == "conv"
    assert sum(parameter.numel() for parameter in plain.parameters()) == sum(p.numel() for p in static.parameters())


def test_a_branch_that_no_constant_gate_makes_a_convolution_says_so():
    for attention in ("linear", "global", "pixel_shift_dot", "gated_depthwise"):
        branch = XVolution2d(8, 16, 3, padding=1, attention=attention).attention
        assert not branch.gates()
        with pytest.raises(ValueError, match="does not become a convolution when its gate is constant"):
            branch.settle_({})
