"""Of a depthwise convolution and the projection behind it, the projection is replaced; 1x1 of one channel a group multiply."""

import pytest
import torch
from torch import nn

from tests.core.networks import randomize
from xvolution import XVolution2d, XVolutionConfig, conversion_summary, convert, reparameterize
from xvolution.attention import ATTENTION, PixelShift
from xvolution.conversion.register import conversion_from_dict
from xvolution.conversion.upgrade import upgrade_conversion
from xvolution.convolutions import CONVOLUTIONS, conv_over
from xvolution.geometry import Geometry
from xvolution.numerics import CONVOLVE


class SqueezeExcitation(nn.Module):
    """Its first convolution has the depthwise one's channels as well, and reads one pixel."""

    def __init__(self, channels):
        super().__init__()
        self.reduce, self.expand = nn.Conv2d(channels, 4, 1), nn.Conv2d(4, channels, 1)

    def forward(self, x):
        return x * self.expand(self.reduce(x.mean((2, 3), keepdim=True)).relu()).sigmoid()


class InvertedResidual(nn.Module):
    """1x1, depthwise 3x3, squeeze-and-excitation, 1x1 projection. Registered in another order than they run."""

    def __init__(self, channels, kernel_size=3):
        super().__init__()
        self.project, self.project_norm = nn.Conv2d(4 * channels, channels, 1, bias=False), nn.BatchNorm2d(channels)
        self.attend = SqueezeExcitation(4 * channels)
        self.expand, self.expand_norm = nn.Conv2d(channels, 4 * channels, 1, bias=False), nn.BatchNorm2d(4 * channels)
        depthwise = {"padding": kernel_size // 2, "groups": 4 * channels, "bias": False}
        self.depthwise = nn.Conv2d(4 * channels, 4 * channels, kernel_size, **depthwise)
        self.depthwise_norm = nn.BatchNorm2d(4 * channels)

    def forward(self, x):
        y = self.expand_norm(self.expand(x)).relu()
        y = self.attend(self.depthwise_norm(self.depthwise(y)).relu())
        return x + self.project_norm(self.project(y))


class Dense(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)

    def forward(self, x):
        return x + self.norm(self.conv(x)).relu()


def network():
    torch.manual_seed(0)
    stem = nn.Conv2d(3, 8, 3, padding=1)
    return randomize(nn.Sequential(stem, InvertedResidual(8), Dense(8), InvertedResidual(8, 5))).double().eval()


def operators_in(model):
    return [name for name, module in model.named_modules() if isinstance(module, XVolution2d)]


@pytest.fixture
def images():
    return torch.randn(2, 3, 12, 13, dtype=torch.float64)


@pytest.mark.parametrize("given", [True, False])
def test_the_projection_takes_the_place_of_the_depthwise_convolution(images, given):
    model = network()
    converted = convert(model, example_inputs=images if given else None)
    assert operators_in(converted) == ["1.project", "2.conv", "3.project"]
    assert torch.equal(converted(images), model(images))
    assert isinstance(converted[1].project.conv_norm, nn.BatchNorm2d)
    windows = [converted.get_submodule(name).attention.windows[0].kernel_size for name in operators_in(converted)]
    assert windows == [(3, 3)] * 3
    assert "operators replace the projections after 2 depthwise convolutions, which are kept" in str(
        conversion_summary(converted)
    )
    randomize(converted, 1)
    for layout in ("single", "split"):
        torch.testing.assert_close(
            reparameterize(converted, layout=layout)(images), converted(images), rtol=1e-11, atol=1e-11
        )


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({"at_projections": False}, ["1.depthwise", "2.conv", "3.depthwise"]),
        ({"kernel_sizes": (5,)}, ["3.depthwise"]),
        ({"names": ("1.*wise", "2.conv")}, ["1.depthwise", "2.conv"]),
        ({"filter_fn": lambda conv, name: name == "3.depthwise"}, ["3.depthwise"]),
    ],
    ids=["asked for", "kernel sizes", "names", "filter"],
)
def test_who_chooses_gets_what_is_chosen(images, options, names):
    assert operators_in(convert(network(), example_inputs=images, **options)) == names


def test_other_operators_stand_where_the_depthwise_convolution_stood(images):
    converted = convert(network(), "conv", example_inputs=images)
    assert {name for name, module in converted.named_modules() if type(module) is nn.Conv2d} >= {"1.depthwise"}


def test_files_of_format_1_keep_their_places_and_windows():
    conversion = conversion_from_dict(upgrade_conversion({"stages": [3]}))
    assert not conversion.where.at_projections
    branch = PixelShift(window="conv", attention_ratio=0.25, pooled_query=True)
    assert conversion.operator == XVolutionConfig(attention=branch)


@pytest.mark.parametrize("branch", ATTENTION)
def test_every_branch_stands_beside_a_projection(images, branch):
    model = network()
    converted = convert(model, branch, example_inputs=images)
    assert torch.equal(converted(images), model(images))
    assert operators_in(converted) == ["1.project", "2.conv", "3.project"]


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("multiplier", [1, 3])
@pytest.mark.parametrize("stride", [1, 2])
def test_one_channel_a_group_is_multiplied(dims, multiplier, stride):
    place = {"groups": 6, "dtype": torch.float64}
    expected = CONVOLUTIONS[dims](6, 6 * multiplier, 1, stride, **place)
    actual = conv_over(Geometry.create(1, stride, dims=dims), 6, 6 * multiplier, **place)
    actual.load_state_dict(expected.state_dict())
    x = torch.randn(2, 6, *(5,) * dims, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(actual(x), expected(x), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(actual(x[0]), expected(x[0]), rtol=1e-12, atol=1e-12)
    found, wanted = (
        torch.autograd.grad(conv(x).square().sum(), (x, *conv.parameters())) for conv in (actual, expected)
    )
    torch.testing.assert_close(found, wanted, rtol=1e-11, atol=1e-11)
    assert actual(x).dtype == torch.float64


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_products_are_computed_in_the_dtype_of_autocast(dtype):
    conv = conv_over(Geometry.create(1), 6, 6, groups=6)
    x = torch.randn(2, 6, 5, 5)
    with torch.autocast("cpu", dtype=dtype):
        assert conv(x).dtype == dtype
    assert conv(x).dtype == torch.float32


@pytest.mark.parametrize("form", ["training", "single", "split"])
def test_torch_convolves_no_single_channel_with_one_pixel(form, monkeypatch):
    """Eager torch takes 6 to 10 times as long for it."""
    operator = randomize(XVolution2d(8, 8, 3, padding=1, groups=8, zero_init=False)).eval()
    module = operator if form == "training" else reparameterize(operator, layout=form)
    seen, convolve, conv2d = [], CONVOLVE[2], nn.functional.conv2d

    def record(function):
        return lambda x, weight, *rest, **more: seen.append(weight.shape) or function(x, weight, *rest, **more)

    monkeypatch.setitem(CONVOLVE, 2, record(convolve))
    monkeypatch.setattr(nn.functional, "conv2d", record(conv2d))
    module(torch.randn(2, 8, 6, 6))
    assert seen
    assert not [shape for shape in seen if shape[1:] == (1, 1, 1)]
