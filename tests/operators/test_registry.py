"""Every registered operator takes the place of a convolution, by name."""

import inspect
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.core.networks import SmallNet
from xvolution import XVolution2d, XVolutionConfig, convert
from xvolution.operators import (
    OPERATORS,
    XVOLUTIONS,
    OperatorConfig,
    conversion,
    conversion_from_dict,
    operator_names,
    register,
)
from xvolution.surgery import Conversion


@pytest.mark.parametrize("name", OPERATORS)
def test_the_interface_is_that_of_a_convolution(name):
    convolution = list(inspect.signature(nn.Conv2d.__init__).parameters)[1:]
    assert list(inspect.signature(OPERATORS[name].build).parameters)[: len(convolution)] == convolution


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("stride", [1, 2])
def test_shape_gradients_and_dtype(name, stride):
    torch.manual_seed(0)
    operator = OPERATORS[name].build(8, 16, 3, stride, 1, dtype=torch.float64)
    x = torch.randn(2, 8, 16, 16, dtype=torch.float64, requires_grad=True)
    y = operator(x)
    assert y.shape == nn.Conv2d(8, 16, 3, stride, 1).double()(x).shape
    assert y.dtype == torch.float64
    y.square().mean().backward()
    assert torch.isfinite(x.grad).all()
    for parameter_name, parameter in operator.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert torch.isfinite(parameter.grad).all(), parameter_name


@pytest.mark.parametrize("name", operator_names())
def test_conversion_puts_it_in(name):
    torch.manual_seed(0)
    network = SmallNet()
    converted = convert(network, conversion(name, placement=Conversion(names=("layer1.conv*",))))
    built = XVolution2d if name in XVOLUTIONS else OPERATORS[name].build
    if isinstance(built, type):
        assert type(converted.layer1.conv1) is built
    assert type(converted.layer2.conv1) is nn.Conv2d
    x = torch.randn(2, 3, 16, 16)
    assert converted(x).shape == network(x).shape
    assert len(converted.summary.replaced) == 2


@pytest.mark.parametrize("name", operator_names())
def test_the_configuration_survives_json(name):
    config = conversion(name, placement=Conversion(stages=(2, 3)))
    assert conversion_from_dict(config.to_dict()) == config


def test_another_kernel_size_keeps_the_output_size():
    network = SmallNet()
    x = torch.randn(1, 3, 16, 16)
    for name in ("conv", "xvolution"):
        converted = convert(network, conversion(name, {"kernel_size": 5}))
        assert converted.layer1.conv1.kernel_size == (5, 5)
        assert converted(x).shape == network(x).shape


def test_bad_requests_are_sentences():
    with pytest.raises(ValueError, match=r"operator is 'convolution'; allowed are .*'conv', "):
        conversion("convolution")
    with pytest.raises(ValueError, match="operator is 'nothing'"):
        OperatorConfig(operator="nothing")
    with pytest.raises(ValueError, match="'conv' does not take window; it has none"):
        conversion("conv", {"window": 3})
    with pytest.raises(ValueError, match="unknown fields windows"):
        conversion("xvolution", {"windows": 3})
    with pytest.raises(ValueError, match="registered already"):
        register("conv", "again", "again")(nn.Conv2d)
    with pytest.raises(ValueError, match="cannot take the place of a kernel"):
        convert(SmallNet(), conversion("conv", {"kernel_size": 4}))


def test_what_an_option_starts_from():
    base = XVolutionConfig(stages=(3,), attention_ratio=0.5)
    assert conversion("xvolution-dot", {"heads": 2}, base, base) == XVolutionConfig(
        stages=(3,), attention_ratio=0.5, similarity="dot", heads=2
    )


def test_every_operator_and_option_is_on_the_page():
    page = (Path(__file__).parents[2] / "docs" / "operators.md").read_text()
    rows = {line.split("`")[1]: line for line in page.splitlines() if line.startswith("| `")}
    assert set(rows) == set(operator_names())
    for name, operator in OPERATORS.items():
        if name != "attention-attention":
            assert all(f"`{option}`" in rows[name] for option in operator.options), name
        assert f"| {operator.pixels} |" in rows[name]
