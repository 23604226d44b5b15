"""What is special to the branches other than ``PixelShift``."""

import pytest
import torch
from torch import nn

from tests.core.cases import CASES
from xvolution import XVolution2d, reparameterize
from xvolution.attention import ChannelGate, GatedDepthwise, Global, Linear, PixelShiftDot
from xvolution.attention.global_attention import TEMPERATURE
from xvolution.geometry import ConvSite, Geometry


def build(config, groups=1):
    """The branch alone in fp64 on 4 -> 8 channels beside a 3x3 convolution of stride 2."""
    return config.build(ConvSite(4, 8, Geometry.create(3, 2, 1, dims=2), groups, dtype=torch.float64))


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize(
    "config",
    [Linear(0.5, num_heads=2), Global(0.5, num_heads=2, qk_norm=True), PixelShiftDot(0.5, num_heads=2), ChannelGate()],
    ids=str,
)
def test_gradcheck(config, groups):
    branch, x = build(config, groups), torch.randn(1, 4, 5, 4, dtype=torch.float64, requires_grad=True)
    names, parameters = zip(*branch.named_parameters(), strict=True)

    def run(x, *parameters):
        return torch.func.functional_call(branch, dict(zip(names, parameters, strict=True)), (x,))

    assert torch.autograd.gradcheck(run, (x, *(p.detach().requires_grad_() for p in parameters)), fast_mode=True)


@pytest.mark.parametrize("branch", ["linear", "global", "pixel_shift_dot"])
def test_heads_are_counted_in_each_group(branch):
    attention = XVolution2d(8, 16, 3, groups=2, attention=CASES[branch].kind(num_heads=4)).attention
    assert attention.heads == 8
    assert attention.query.out_channels == 8  # a quarter of 16 channels is rounded up to whole heads


def test_temperatures_start_as_one_number_for_each_head():
    attention = XVolution2d(8, 16, 3, attention=Global(num_heads=2, qk_norm=True)).attention
    assert torch.equal(attention.temperature, torch.full((2,), TEMPERATURE))
    assert XVolution2d(8, 16, 3, attention="global").attention.temperature is None


def test_cosines_do_not_depend_on_the_length_of_query_and_key():
    branch = XVolution2d(8, 16, 3, padding=1, attention=Global(qk_norm=True)).attention.double()
    x = torch.randn(1, 8, 6, 6, dtype=torch.float64)
    expected = branch(x)
    with torch.no_grad():
        for part in (branch.query.weight, branch.query.bias, branch.key.weight, branch.key.bias):
            part.mul_(100)
    torch.testing.assert_close(branch(x), expected)


def test_a_separable_channel_gate_has_fewer_weights():
    plain, separable = (
        XVolution2d(8, 16, 3, attention=ChannelGate(separable=each)).attention for each in (False, True)
    )
    count = [sum(parameter.numel() for parameter in branch.parameters()) for branch in (plain, separable)]
    assert count == [16 * 8 + 16 + 16 * 8 * 9, 16 * 8 + 16 + 16 * 8 + 16 * 9]
    assert separable.value_weight.shape == plain.value_weight.shape == (16, 8, 3, 3)


def test_channel_keys_weigh_the_input():
    branch = XVolution2d(8, 16, 3, padding=1, attention=ChannelGate(channel_keys=True)).attention.double()
    x = torch.randn(2, 8, 5, 5, dtype=torch.float64)
    of_outputs, of_inputs = branch.weights(x)
    assert (of_outputs.shape, of_inputs.shape) == ((2, 16, 1, 1), (2, 8, 1, 1))
    torch.testing.assert_close(branch(x), of_outputs * branch.value(of_inputs * x))


def test_gated_depthwise_reads_the_convolution_before_its_norm():
    operator = XVolution2d(8, 16, 3, padding=1, attention=GatedDepthwise(gate="one", window=1)).eval()
    nn.init.ones_(operator.attention.window.weight)
    x = torch.randn(2, 8, 5, 5)
    torch.testing.assert_close(operator.attention(x, operator.conv(x)), operator.conv(x))
    with pytest.raises(
        ValueError, match="reads the outputs of one convolution, but there are 2; use num_conv_branches=1"
    ):
        XVolution2d(8, 16, 3, attention="gated_depthwise", num_conv_branches=2)


@pytest.mark.parametrize("window", [(1, 4), (5, 2), 4])
def test_the_window_over_the_values_may_have_any_size(window):
    operator = XVolution2d(8, 16, 3, 2, 1, attention=GatedDepthwise(window=window), norm_layer=None, zero_init=False)
    operator, x = operator.double().eval(), torch.randn(2, 8, 9, 8, dtype=torch.float64)
    expected = operator.conv(x) + CASES["gated_depthwise"].reference(operator, x)
    torch.testing.assert_close(operator(x), expected, rtol=1e-12, atol=1e-12)
    for layout in ("single", "split"):
        torch.testing.assert_close(reparameterize(operator, layout=layout)(x), expected, rtol=1e-12, atol=1e-12)


def test_gated_depthwise_is_the_convolution_and_one_depthwise_once_deployed():
    deployed = reparameterize(XVolution2d(8, 16, 3, padding=1, attention="gated_depthwise").eval(), layout="single")
    shapes = {
        name: (module.out_channels, module.kernel_size, module.groups)
        for name, module in deployed.named_modules()
        if isinstance(module, nn.Conv2d)
    }
    assert shapes == {
        "conv": (16, (3, 3), 1),
        "attention.query": (16, (1, 1), 1),
        "attention.window": (16, (5, 5), 16),
    }
