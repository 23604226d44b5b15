"""What only ``PixelShift`` has: terms over all pixels, several windows, norms of its own, and one convolution with a gate."""

from unittest import mock

import pytest
import torch
from torch import nn

from tests.core.execution import relative_error
from tests.core.networks import randomize
from xvolution import XVolution2d, dynamic_kernel, reparameterize, unfolded_of
from xvolution.attention import ChannelGate, PixelShift, PixelShiftDot
from xvolution.geometry import ConvSite, Geometry
from xvolution.numerics import image_mean
from xvolution.operator import fold


def branch_of(config, **options):
    """The branch alone, without norms, beside a 3x3 convolution on 8 -> 16 channels."""
    return XVolution2d(8, 16, 3, padding=1, attention=config, norm_layer=None, zero_init=False, **options).attention


@pytest.mark.parametrize("weight", [1.0, 4.0, 0.0])
def test_the_term_over_all_pixels_starts_with_the_weight_asked_for(weight):
    branch = branch_of(PixelShift() if weight == 1 else PixelShift(pooled_key_init=weight))
    with torch.no_grad():
        branch.windows[0].weight.zero_()  # leaves the term alone
    x = torch.randn(2, 8, 9, 9)
    mean_key = branch.key(x).mean((2, 3), keepdim=True)
    query = branch.query(x) + branch.context(x.mean((2, 3), keepdim=True))
    torch.testing.assert_close(branch(x), branch.value(query.sigmoid() * weight * mean_key))


def test_the_query_sees_the_whole_image():
    branch = branch_of(PixelShift(pooled_key=False))
    x = torch.randn(2, 8, 9, 9)
    far = x.clone()
    far[:, :, 8, 8] += 100
    changed = (branch(x) - branch(far)).abs().amax(1)
    assert changed[:, 0, 0].min() > 1e-3
    without = branch_of(PixelShift(pooled_query=False, pooled_key=False))
    assert without.context is None
    assert without.mean_weight is None
    torch.testing.assert_close(without(x)[:, :, :7, :7], without(far)[:, :, :7, :7], rtol=0, atol=0)


def test_several_dilations_sum_several_windows():
    plain = PixelShift(pooled_query=False, pooled_key=False, dilation=(1, 3))
    branch, x = branch_of(plain), torch.randn(2, 8, 9, 9)
    assert [window.dilation for window in branch.windows] == [(1, 1), (3, 3)]
    query, key = branch.query(x).sigmoid(), branch.key(x)
    windows = [
        nn.functional.conv2d(key, window.weight, padding=dilation, dilation=dilation, groups=branch.channels)
        for window, dilation in zip(branch.windows, (1, 3), strict=True)
    ]
    torch.testing.assert_close(branch(x), branch.value(query * (windows[0] + windows[1])))
    assert PixelShift(dilation=[1, 3]) == PixelShift(dilation=(1, 3))


@pytest.mark.parametrize("pooled_query", [False, True])
@pytest.mark.parametrize("pooled_key", [False, True])
def test_the_single_layout_is_one_standard_convolution_and_a_gate(pooled_key, pooled_query):
    operator = XVolution2d(
        8, 16, 3, padding=1, attention=PixelShift(pooled_key=pooled_key, pooled_query=pooled_query)
    ).eval()
    shapes = {
        name: (type(module), module.in_channels, module.out_channels, module.kernel_size)
        for name, module in reparameterize(operator, layout="single").named_modules()
        if isinstance(module, nn.Conv2d)
    }
    expected = {"conv": (nn.Conv2d, 8, 16 + 2 * 4, (3, 3)), "value": (nn.Conv2d, 4, 16, (1, 1))}
    if pooled_key or pooled_query:
        expected["context"] = (nn.Conv2d, 8, 4 * (pooled_key + pooled_query), (1, 1))
    assert shapes == expected


def test_attention_channels_are_a_ratio_or_a_number_in_whole_groups():
    for ratio, groups, channels in ((0.25, 1, 4), (0.3, 1, 5), (0.25, 8, 8), (1.0, 2, 16)):
        assert branch_of(PixelShift(attention_ratio=ratio), groups=groups).channels == channels
    for wanted, groups, channels in ((6, 1, 6), (6, 4, 8), (32, 1, 32)):
        assert branch_of(PixelShift(attention_channels=wanted), groups=groups).channels == channels


def test_beside_a_pointwise_convolution_the_branch_is_narrow_and_pools_keys_alone():
    def built(kernel_size, config, groups=1):
        branch = XVolution2d(48, 96, kernel_size, groups=groups, attention=config).attention
        return branch.channels, branch.context is not None, branch.mean_weight is not None

    assert built(3, PixelShift()) == (24, True, True)
    assert built(1, PixelShift()) == (8, False, True)
    assert built(1, PixelShift(), groups=12) == (12, False, True)
    assert built(1, PixelShift(attention_ratio=0.25, pooled_query=True)) == (24, True, True)
    assert built(1, PixelShift(attention_channels=16)) == (16, False, True)


@pytest.mark.parametrize("layout", ["split", "parts"])
def test_keys_are_pooled_over_attention_channels_where_they_are_at_hand(layout):
    operator = randomize(XVolution2d(8, 16, 3, padding=1, attention=PixelShift(pooled_query=False))).eval()
    deployed, x = reparameterize(operator, layout=layout), torch.randn(2, 8, 9, 9)
    with mock.patch("xvolution.attention.pixel_shift.image_mean", side_effect=image_mean) as mean:
        deployed(x)
    assert [call.args[0].shape[1] for call in mean.call_args_list] == [operator.attention.channels]


def test_query_and_key_as_two_convolutions_are_split_from_nothing():
    operator = randomize(XVolution2d(8, 16, 3, padding=1)).eval()
    graph = torch.export.export(reparameterize(operator, layout="parts"), (torch.randn(1, 8, 9, 9),)).graph
    assert not [node for node in graph.nodes if "split" in str(node.target) or "chunk" in str(node.target)]


@pytest.mark.parametrize("kind", [PixelShift, PixelShiftDot])
def test_the_window_is_the_convolutions_but_sees_neighbours_beside_a_pointwise_one(kind):
    def size(kernel_size, window):
        branch = XVolution2d(8, 16, kernel_size, attention=kind(window=window)).attention
        return branch.shifts.kernel_size if kind is PixelShiftDot else branch.windows[0].kernel_size

    assert size((3, 5), None) == size((3, 5), "conv") == (3, 5)
    assert size(1, None) == size(1, 3) == (3, 3)
    assert size(1, "conv") == (1, 1)
    assert size(3, (1, 5)) == (1, 5)


@pytest.mark.parametrize(
    ("norm_layer", "options", "present"),
    [
        (nn.BatchNorm2d, {}, (True, True)),
        (nn.BatchNorm2d, {"query_norm": False}, (False, True)),
        (lambda channels: nn.GroupNorm(2, channels), {}, (False, False)),
        (lambda channels: nn.GroupNorm(2, channels), {"window_norm": True}, (False, True)),
        (None, {"query_norm": True}, (False, False)),
    ],
    ids=["batch", "batch, not of the query", "group", "group of the window", "none"],
)
def test_norms_inside_are_there_where_they_fold_or_are_asked_for(norm_layer, options, present):
    branch = XVolution2d(8, 16, 3, attention=PixelShift(**options), norm_layer=norm_layer, zero_init=False).attention
    found = tuple(not isinstance(norm, nn.Identity) for norm in (branch.query_norm, branch.window_norm))
    assert found == present


@pytest.mark.parametrize(("layout", "stride"), [("single", 2), ("split", 2), ("split", 1), ("parts", 1)])
@pytest.mark.parametrize("inner", [("query_norm",), ("window_norm",), ("query_norm", "window_norm")])
@pytest.mark.parametrize("norm", ["GroupNorm", "LayerNorm2d"])
def test_norms_inside_that_cannot_fold_stay(inner, layout, stride, norm):
    layers = pytest.importorskip("timm.layers")
    norm_layer = layers.LayerNorm2d if norm == "LayerNorm2d" else lambda channels: nn.GroupNorm(2, channels)
    config = PixelShift(gate="tanh", query_norm="query_norm" in inner, window_norm="window_norm" in inner)
    options = {"attention": config, "norm_layer": norm_layer, "zero_init": False, "dtype": torch.float64}
    operator = randomize(XVolution2d(8, 16, 3, stride, 1, **options)).double().eval()
    x = torch.randn(2, 8, 9, 9, dtype=torch.float64)
    deployed = reparameterize(operator, layout=layout)
    assert relative_error(operator(x), deployed(x)) <= 1e-12
    assert set(unfolded_of(deployed)) == {"conv_norm", "attention_norm", *inner}
    operator.conv_norm = operator.attention_norm = nn.Identity()
    with pytest.raises(ValueError, match=f"{norm} does not fold into a kernel"):
        dynamic_kernel(operator, x, (0, 0))


@pytest.mark.parametrize(
    "config",
    [PixelShift(attention_ratio=1.0), PixelShift(attention_ratio=1.0, gate="tanh", pooled_key_init=2.0)],
    ids=str,
)
def test_gradcheck(config):
    site = ConvSite(2, 4, Geometry.create(3, 2, 1, dims=2), dtype=torch.float64)
    branch = config.build(site)
    x = torch.randn(1, 2, 4, 5, dtype=torch.float64, requires_grad=True)
    names, parameters = zip(*branch.named_parameters(), strict=True)

    def run(x, *parameters):
        return torch.func.functional_call(branch, dict(zip(names, parameters, strict=True)), (x,))

    assert torch.autograd.gradcheck(run, (x, *(p.detach().requires_grad_() for p in parameters)))


@pytest.mark.parametrize("images", [1, 8], ids=["modules", "fused"])
@pytest.mark.parametrize("config", [PixelShift(), ChannelGate()], ids=str)
def test_the_gradient_of_channels_last_is_channels_last(config, images):
    """A gradient in another memory format is as right, and slows everything down that takes it from there."""
    module = XVolution2d(64, 64, 3, padding=1, attention=config).to(memory_format=torch.channels_last)
    x = torch.randn(images, 64, 32, 32).contiguous(memory_format=torch.channels_last).requires_grad_()
    formats = []
    operand = x.relu()
    operand.register_hook(lambda grad: formats.append(grad.is_contiguous(memory_format=torch.channels_last)))
    module(operand).square().sum().backward()
    assert formats == [True]


@pytest.mark.parametrize("images", [1, 32], ids=["modules", "fused"])
@pytest.mark.parametrize(
    ("config", "place"),
    [
        (PixelShift(dilation=2), {}),
        (PixelShift(dilation=(1, 3)), {}),
        (PixelShift(), {"dilation": 2}),
        (PixelShift(), {"stride": 2}),
        (PixelShift(dilation=2), {"stride": 2}),
        (PixelShift(window=5), {}),
    ],
    ids=["dilated", "two windows", "dilated convolution", "stride", "stride and dilated", "larger"],
)
@pytest.mark.parametrize("kernel_size", [3, 4])
def test_the_gradient_of_windows_in_bfloat16(images, config, place, kernel_size):
    """In channels-last, torch's own weight gradient of a dilated depthwise convolution is memory that nobody wrote."""
    torch.manual_seed(0)
    module = XVolution2d(64, 64, kernel_size, padding="same_upper", attention=config, zero_init=False, **place)
    module = module.to(memory_format=torch.channels_last)
    x = torch.randn(images, 64, 32, 32).contiguous(memory_format=torch.channels_last)
    cotangent = torch.randn_like(module(x))

    def gradients(enabled):
        module.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            y = module(x)
        (y.float() * cotangent).sum().backward()
        return [window.weight.grad.clone() for window in module.attention.windows]

    for expected, found in zip(gradients(False), gradients(True), strict=True):
        assert ((found - expected).norm() / expected.norm()).item() < 0.1


@pytest.mark.parametrize(
    ("place", "expected"),
    [
        ({}, ("split", "parts", "single")),
        ({"stride": 2}, ("split", "single")),
        ({"groups": 2}, ("split", "single")),
        ({"padding_mode": "reflect"}, ("split", "parts", "single")),
        ({"padding": 0}, ("split", "single")),
    ],
    ids=str,
)
def test_query_and_key_are_parts_where_they_would_be_one_convolution(place, expected):
    operator = randomize(XVolution2d(8, 16, 3, **{"padding": 1, **place}, zero_init=False, dtype=torch.float64)).eval()
    assert fold(operator).layouts == expected
    x, weights = torch.randn(2, 8, 9, 9, dtype=torch.float64), {}
    for layout in expected:
        deployed = reparameterize(operator, layout=layout)
        assert relative_error(operator(x), deployed(x)) <= 1e-12
        weights[layout] = {name for name, _ in deployed.named_parameters()}
    assert ("query_key.weight" in weights["split"]) == ("parts" in expected)
    if "parts" in expected:
        assert {"query.weight", "key.weight"} <= weights["parts"]


@pytest.mark.parametrize(("layout", "groups"), [("split", 1), ("split", 2), ("parts", 1)])
@pytest.mark.parametrize("pooled_query", [False, True])
def test_weights_that_pooled_keys_by_a_convolution_load(layout, groups, pooled_query):
    attention = PixelShift(pooled_query=pooled_query)
    options = {"padding": 1, "groups": groups, "attention": attention, "dtype": torch.float64}
    operator = randomize(XVolution2d(8, 16, 3, **options)).double().eval()
    folded, deployed = fold(operator), reparameterize(operator, layout=layout)
    of_sum = folded.mean_weight.unsqueeze(1) * folded.key_weight
    rows = [part.unflatten(0, (groups, -1)) for part in (folded.context_weight, of_sum) if part is not None]
    stored = deployed.state_dict()
    del stored["mean_weight"]
    stored["context.weight"] = torch.cat(rows, 1).flatten(0, 1)[..., None, None]
    fresh, x = reparameterize(XVolution2d(8, 16, 3, **options).eval(), layout=layout), torch.randn(2, 8, 9, 9).double()
    fresh.load_state_dict(stored)
    torch.testing.assert_close(fresh(x), deployed(x), rtol=1e-12, atol=1e-12)
    stored["context.weight"] = stored["context.weight"][:-1]
    with pytest.raises(RuntimeError, match="mean_weight"):
        fresh.load_state_dict(stored)


@pytest.mark.parametrize("attention", [PixelShift, ChannelGate])
def test_a_pooled_query_of_low_rank_sees_the_channels_of_other_groups(attention):
    """In a depthwise convolution: another channel's mean changes what a channel answers with it, and nothing without."""
    torch.manual_seed(0)
    x = torch.randn(1, 32, 6, 6, dtype=torch.float64)
    other = x.clone()
    other[:, 5] += 1.0
    for reduction in (None, 4):
        options = {"groups": 32, "norm_layer": None, "zero_init": False, "dtype": torch.float64}
        layer = XVolution2d(32, 32, 3, padding=1, attention=attention(reduction=reduction), **options).eval()
        for module in (layer, reparameterize(layer)):
            changed = (module(other) - module(x)).abs().amax((0, 2, 3)) > 1e-9
            assert changed[5]
            assert changed.sum() == (1 if reduction is None else 32)


def test_the_parameters_of_a_pooled_query_of_low_rank():
    """C_in R + R A in the place of C_in A / groups, where R is C_in / reduction, at least 8 and at most A."""
    sizes = {}
    for reduction in (None, 4, 16):
        layer = XVolution2d(64, 64, 3, padding=1, groups=64, attention=PixelShift(reduction=reduction))
        sizes[reduction] = sum(parameter.numel() for parameter in layer.attention.context.parameters())
    assert sizes == {None: 64, 4: 2 * 64 * 16, 16: 2 * 64 * 8}
    beside_projection = XVolution2d(64, 16, 1, attention=PixelShift(reduction=4)).attention
    assert sum(parameter.numel() for parameter in beside_projection.context.parameters()) == 64 * 8 + 8 * 8
    assert XVolution2d(64, 16, 1).attention.context is None
