"""Every registered operator takes the place of a convolution, by name, and its options are known, typed and described."""

import inspect
import json
import types
import typing
from pathlib import Path

import pytest
import torch
from docstring_parser import parse
from torch import nn

from tests.core.networks import SmallNet
from xvolution import OperatorConfig, XVolution2d, XVolutionConfig, conversion_summary, convert
from xvolution.attention import ATTENTION, GatedDepthwise, Linear, PixelShift, PixelShiftDot
from xvolution.conversion.config import Conversion, Placement
from xvolution.conversion.register import (
    FORMS,
    OPERATORS,
    config_from_dict,
    conversion_from_dict,
    operator_config,
    operator_names,
    options_of,
    register,
    summary_of,
)


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
    converted = convert(network, name, names=("layer1.conv*",))
    built = OPERATORS[name].build if name in OPERATORS else XVolution2d
    if isinstance(built, type):
        assert type(converted.layer1.conv1) is built
    if name in ATTENTION:
        assert converted.layer1.conv1.attention.config == ATTENTION[name]()
    assert type(converted.layer2.conv1) is nn.Conv2d
    x = torch.randn(2, 3, 16, 16)
    assert converted(x).shape == network(x).shape
    assert len(conversion_summary(converted).replaced) == 2


@pytest.mark.parametrize("name", operator_names())
def test_the_configuration_survives_json(name):
    config = operator_config(name)
    assert config_from_dict(json.loads(json.dumps(config.to_dict()))) == config
    conversion = Conversion(config, Placement(stages=(2, 3), names=("layer*",)))
    assert conversion_from_dict(json.loads(json.dumps(conversion.to_dict()))) == conversion


@pytest.mark.parametrize("name", operator_names())
def test_an_operator_takes_its_own_options_with_their_defaults(name):
    options = options_of(name)
    assert len({option.name for option in options}) == len(options)
    assert operator_config(name, {option.name: option.default for option in options}).replacement(
        nn.Conv2d(8, 8, 3, padding=1), nn.Identity()
    )
    for option in options:
        if name not in OPERATORS:
            assert operator_config(name, {option.name: option.default}) == operator_config(name), option.name
        assert is_of_type(option.default, option.type), option.name


def is_of_type(value, annotation):
    """Whether a value is what a Python annotation says, as a command line takes it."""
    if annotation is type(None) or annotation is None:
        return value is None
    arguments, origin = typing.get_args(annotation), typing.get_origin(annotation)
    if origin is tuple:
        return isinstance(value, tuple) and all(is_of_type(item, arguments[0]) for item in value)
    if origin is typing.Literal:
        return value in arguments
    if origin in (typing.Union, types.UnionType):
        return any(is_of_type(value, argument) for argument in arguments)
    return isinstance(value, annotation) if isinstance(annotation, type) else callable(value)


@pytest.mark.parametrize("name", operator_names())
def test_every_option_is_described_where_it_says(name):
    assert summary_of(name).endswith(".")
    for option in options_of(name):
        documented = option.documented_by
        docstring = parse(documented.__doc__ or "")
        described = {one.strip(): entry.description for entry in docstring.params for one in entry.arg_name.split(",")}
        assert described.get(option.name), f"{documented.__name__} does not describe {option.name}"


def test_a_name_with_options_is_a_configuration():
    assert operator_config() == operator_config("xvolution") == operator_config("pixel_shift") == XVolutionConfig()
    config = XVolutionConfig(attention=Linear(num_heads=4), zero_init=False, kernel_size=5)
    assert operator_config("linear", {"num_heads": 4, "zero_init": False, "kernel_size": 5}) == config
    assert operator_config(config) is config
    assert operator_config("acmix", {"window": 5, "kernel_size": 5}) == OperatorConfig(
        operator="acmix", options={"window": 5}, kernel_size=5
    )


def test_what_an_option_starts_from():
    assert operator_config("pixel_shift_dot", {"num_heads": 2}) == XVolutionConfig(attention=PixelShiftDot(num_heads=2))
    assert operator_config("pixel_shift", {"window": 5}) == XVolutionConfig(attention=PixelShift(window=5))
    assert operator_config("conv-window", {"window": 3}) == XVolutionConfig(
        attention=GatedDepthwise(gate="one", window=3)
    )
    assert operator_config("conv-conv", {"num_conv_branches": 3}) == XVolutionConfig(
        attention=None, num_conv_branches=3
    )
    assert FORMS["conv-window"].config == XVolutionConfig(attention=GatedDepthwise(gate="one"))


def test_another_kernel_size_keeps_the_output_size():
    network = SmallNet()
    x = torch.randn(1, 3, 16, 16)
    for name in ("conv", "xvolution"):
        converted = convert(network, operator_config(name, {"kernel_size": 5}))
        assert converted.layer1.conv1.kernel_size == (5, 5)
        assert converted(x).shape == network(x).shape


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("stride", [1, 2])
def test_padding_by_the_size_of_the_image_is_kept_or_refused(name, stride):
    """TensorFlow's padding, which timm's class computes and does not say."""
    same = pytest.importorskip("timm").layers.Conv2dSame(8, 16, 3, stride=stride)
    network = nn.Sequential(nn.Conv2d(3, 8, 1), same).eval()
    if stride == 2 and name in ("conv", "conv-context", "hpconv", "mobilevit"):
        with pytest.raises(ValueError, match=r"of a Conv2dSame that pads by the size of the image: .*; leave it out"):
            convert(network, name, names=("1",))
        return
    converted = convert(network, name, names=("1",))
    for size in ((9, 10), (8, 7)):
        x = torch.randn(2, 3, *size)
        assert converted(x).shape == network(x).shape


def test_bad_requests_are_sentences():
    with pytest.raises(ValueError, match=r"operator is 'convolution'; allowed are .*'conv', "):
        operator_config("convolution")
    with pytest.raises(ValueError, match="operator is 'nothing'"):
        OperatorConfig(operator="nothing")
    with pytest.raises(ValueError, match="'conv' does not take window; its options are kernel_size"):
        operator_config("conv", {"window": 3})
    with pytest.raises(ValueError, match="'conv' does not take window; it has none"):
        OperatorConfig(operator="conv", options={"window": 3})
    with pytest.raises(ValueError, match="'xvolution' does not take windows; its options are attention_ratio, "):
        operator_config("xvolution", {"windows": 3})
    with pytest.raises(ValueError, match="'linear' does not take window; its options are "):
        operator_config("linear", {"window": 3})
    with pytest.raises(ValueError, match="of type None; this version knows 'xvolution', 'operator'"):
        config_from_dict({"attention": None})
    with pytest.raises(ValueError, match="unknown fields colour"):
        conversion_from_dict({"operator": {"type": "xvolution"}, "where": {"colour": 1}})
    for name in ("conv", "linear", "xvolution"):
        with pytest.raises(ValueError, match="registered already"):
            register(name, "again", "again")(nn.Conv2d)
    with pytest.raises(ValueError, match="cannot replace a kernel"):
        convert(SmallNet(), operator_config("conv", {"kernel_size": 4}))


def test_every_operator_and_option_is_on_the_page():
    page = (Path(__file__).parents[2] / "docs" / "operators.md").read_text()
    rows = {line.split("`")[1]: line for line in page.splitlines() if line.startswith("| `")}
    assert set(rows) == set(operator_names())
    for name, operator in OPERATORS.items():
        if name != "attention-attention":
            assert all(f"`{option}`" in rows[name] for option in operator.options), name
        assert f"| {operator.pixels} |" in rows[name]
