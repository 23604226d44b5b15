"""Hierarchical pyramidal convolution against its formula."""

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

from xvolution import OperatorConfig, convert
from xvolution.operators import HPConv2d


def reference(x, operator, stride):
    """Level l convolves, group by group, its part of x and its part of the output of level l - 1."""
    outputs = []
    for level, conv in enumerate(operator.input_convs):
        y = []
        reach = conv.kernel_size[0] // 2
        parts = zip(x.chunk(conv.groups, 1), conv.weight.chunk(conv.groups), strict=True)
        for group, (part, weight) in enumerate(parts):
            value = F.conv2d(part, weight, stride=stride, padding=reach)
            if level:
                previous = outputs[-1].chunk(conv.groups, 1)[group]
                kernel = operator.level_convs[level - 1].weight.chunk(conv.groups)[group]
                value = value + F.conv2d(previous, kernel, padding=reach)
            y.append(value)
        outputs.append(torch.cat(y, 1) + conv.bias[:, None, None])
    return torch.cat(outputs, 1)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("levels", [1, 2, 3, 4])
def test_module_is_the_reference(stride, levels):
    torch.manual_seed(0)
    operator = HPConv2d(16, 32, 3, stride, 1, levels=levels, dtype=torch.float64)
    x = torch.randn(2, 16, 14, 11, dtype=torch.float64, requires_grad=True)
    inputs = (x, *operator.parameters())
    y, expected = operator(x), reference(x, operator, stride)
    torch.testing.assert_close(y, expected)
    direction = torch.randn_like(y)
    gradients = (torch.autograd.grad((out * direction).sum(), inputs) for out in (y, expected))
    for gradient, wanted in zip(*gradients, strict=True):
        torch.testing.assert_close(gradient, wanted)


def test_without_strides_it_is_a_convolution_over_the_concatenation():
    torch.manual_seed(0)
    operator = HPConv2d(3, 8, 3, padding=1, levels=2, dtype=torch.float64)
    x = torch.randn(1, 3, 9, 9, dtype=torch.float64)
    first = operator.input_convs[0](x)
    weight = torch.cat([operator.input_convs[1].weight, operator.level_convs[0].weight], 1)
    second = F.conv2d(torch.cat([x, first], 1), weight, operator.input_convs[1].bias, padding=2)
    torch.testing.assert_close(operator(x), torch.cat([first, second], 1))


@pytest.mark.parametrize(("hierarchical", "sides"), [(True, (3, 7, 13, 21)), (False, (3, 5, 7, 9))])
def test_the_receptive_field_of_a_level_adds_up_over_the_levels_below(hierarchical, sides):
    torch.manual_seed(0)
    operator = HPConv2d(16, 64, 3, padding=1, hierarchical=hierarchical, dtype=torch.float64)
    x = torch.randn(1, 16, 31, 31, dtype=torch.float64, requires_grad=True)
    for level, y in enumerate(operator(x).chunk(4, 1)):
        (gradient,) = torch.autograd.grad(y[:, :, 15, 15].sum(), x, retain_graph=True)
        seen = gradient.abs().sum((0, 1)) > 0
        half = sides[level] // 2
        assert seen.sum() == sides[level] ** 2
        assert seen[15 - half : 16 + half, 15 - half : 16 + half].all()


@pytest.mark.parametrize(
    "geometry",
    [
        {"kernel_size": 3, "stride": 2, "padding": 0},
        {"kernel_size": (1, 5), "stride": (2, 1), "padding": (1, 2), "dilation": 2},
        {"kernel_size": 3, "padding": "same", "dilation": 2, "padding_mode": "reflect"},
        {"kernel_size": 2, "padding": "valid", "bias": False},
        {"kernel_size": 4, "stride": 3, "padding": 1, "groups": 4, "padding_mode": "circular"},
    ],
)
def test_output_size_is_that_of_the_convolution(geometry):
    x = torch.randn(1, 16, 23, 20)
    assert HPConv2d(16, 32, **geometry)(x).shape == nn.Conv2d(16, 32, **geometry)(x).shape


def test_an_output_group_sees_its_input_group_alone():
    torch.manual_seed(0)
    operator = HPConv2d(16, 64, 3, padding=1, groups=2)
    x = torch.randn(1, 16, 12, 12)
    changed = torch.cat([x[:, :8], torch.randn(1, 8, 12, 12)], 1)
    (before, other), (after, different) = (operator(v).chunk(2, 1) for v in (x, changed))
    torch.testing.assert_close(before, after)
    assert (other - different).abs().amin((0, 2, 3)).max() > 0


def test_parameters_by_formula():
    operator = HPConv2d(64, 64, 3, padding=1, bias=False)
    kernels, groups = (3, 5, 7, 9), (1, 4, 8, 16)
    from_input = sum(16 * 64 // g * k * k for k, g in zip(kernels, groups, strict=True))
    from_levels = sum(16 * 16 // g * k * k for k, g in zip(kernels[1:], groups[1:], strict=True))
    assert sum(p.numel() for p in operator.parameters()) == from_input + from_levels


def test_without_hierarchy_a_resnet50_has_the_parameters_of_pyconvresnet50():
    """24.85 million, which follows from its kernels and groups: 4, 3, 2 and 1 levels in the four stages."""
    network = timm.create_model("resnet50")
    for stage, levels in enumerate((4, 3, 2), 1):
        config = OperatorConfig(operator="hpconv", options={"levels": levels, "hierarchical": False})
        network = convert(network, config, stages=(stage,), kernel_sizes=(3,), inplace=True)
    assert round(sum(p.numel() for p in network.parameters()) / 1e6, 2) == 24.85


def test_bad_input_is_a_sentence():
    with pytest.raises(ValueError, match="levels is 5; allowed are 1 to 4"):
        HPConv2d(16, 16, 3, levels=5)
    with pytest.raises(ValueError, match="the levels have 0, 0, 0, 3 output channels"):
        HPConv2d(16, 3, 3)
    with pytest.raises(ValueError, match="groups=16 does not divide"):
        HPConv2d(16, 16, 3, groups=16)
