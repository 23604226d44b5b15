"""The operator whatever its branch: several convolutions, no attention, any module as attention, and what it refuses."""

import copy
import pickle

import pytest
import torch
from torch import nn

from tests.core.execution import relative_error
from tests.core.networks import randomize
from xvolution import XVolution1d, XVolution2d, XVolution3d, reparameterize
from xvolution.attention import PixelShift
from xvolution.attention.folded import LayoutError
from xvolution.operator import ReparameterizationError

SEVERAL = [{"num_conv_branches": 2}, {"attention": None, "num_conv_branches": 2}, {"diverse_branches": True}]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"num_conv_branches": 0}, "num_conv_branches is 0; it must be at least 1"),
        (
            {"num_conv_branches": 2, "norm_layer": lambda channels: nn.GroupNorm(2, channels)},
            "cannot merge with a GroupNorm",
        ),
        ({"attention": nn.Identity(), "norm_layer": None}, "pass zero_init=False"),
    ],
    ids=["no convolution", "a norm that does not fold", "nothing to zero"],
)
def test_options_that_do_not_fit_are_refused_with_a_sentence(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        XVolution2d(8, 16, 3, **options)


def test_a_module_as_attention_branch():
    layer = XVolution2d(8, 16, 3, 2, 1, attention=nn.Conv2d(8, 16, 1, 2), zero_init=False)
    assert layer(torch.randn(2, 8, 8, 8)).shape == (2, 16, 4, 4)
    wrong = XVolution2d(8, 16, 3, 2, 1, attention=nn.Conv2d(8, 16, 1), zero_init=False)
    with pytest.raises(ValueError, match="must map"):
        wrong(torch.randn(2, 8, 8, 8))


@pytest.mark.parametrize(
    "norm_layer", [nn.BatchNorm2d, lambda channels: nn.GroupNorm(2, channels)], ids=["batch", "group"]
)
def test_a_module_stays_attention_and_exact(norm_layer):
    layer = XVolution2d(8, 16, 3, padding=1, attention=nn.Conv2d(8, 16, 1), norm_layer=norm_layer, zero_init=False)
    layer, x = randomize(layer).double().eval(), torch.randn(2, 8, 9, 9, dtype=torch.float64)
    assert relative_error(layer(x), reparameterize(layer, layout="split")(x)) <= 1e-12
    with pytest.raises(LayoutError, match="it has 'split'"):
        reparameterize(layer, layout="single")


@pytest.mark.parametrize("options", SEVERAL, ids=str)
@pytest.mark.parametrize("norm_layer", [nn.BatchNorm2d, None], ids=["batch", "none"])
def test_zero_init_starts_at_the_first_convolution(options, norm_layer):
    layer, x = XVolution2d(8, 16, 3, padding=1, norm_layer=norm_layer, **options).eval(), torch.randn(2, 8, 9, 9)
    torch.testing.assert_close(layer(x), layer.conv_norm(layer.conv(x)), rtol=0, atol=0)


@pytest.mark.parametrize("attention", ["pixel_shift", None])
@pytest.mark.parametrize("norm_layer", [nn.BatchNorm2d, None], ids=["batch", "none"])
def test_several_convolutions_are_summed_and_become_one(attention, norm_layer):
    options = {"attention": attention, "norm_layer": norm_layer, "dtype": torch.float64}
    layer = XVolution2d(8, 16, 3, 2, 1, groups=2, num_conv_branches=3, zero_init=False, **options)
    layer = randomize(layer).eval()
    x = torch.randn(2, 8, 9, 9, dtype=torch.float64)
    expected = layer.conv_norm(layer.conv(x)) + sum(branch.norm(branch.conv(x)) for branch in layer.parallel)
    if attention is not None:
        expected = expected + layer.attention_norm(layer.attention(x))
    assert len(layer.parallel) == 2
    torch.testing.assert_close(layer(x), expected)
    layout = "single" if attention is None else "split"
    deployed = reparameterize(layer, example_inputs=x, layout=layout)
    torch.testing.assert_close(deployed(x), expected, rtol=1e-12, atol=1e-12)
    once = XVolution2d(8, 16, 3, 2, 1, groups=2, **options).eval()
    weights = [sum(p.numel() for p in each.parameters()) for each in (deployed, reparameterize(once, layout=layout))]
    assert weights[0] == weights[1]  # nothing of the further convolutions is left


def test_every_parameter_of_several_convolutions_learns():
    layer = XVolution2d(8, 16, 3, padding=1, num_conv_branches=3, zero_init=False)
    layer(torch.randn(4, 8, 9, 9)).square().sum().backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in layer.parameters())


@pytest.mark.parametrize("options", SEVERAL, ids=str)
@pytest.mark.parametrize(
    "arguments", [(8, 16, (3, 5), 2, (1, 2)), (8, 16, 3, 1, (2, 1), 1, 4, True, "circular")], ids=str
)
def test_several_convolutions_take_the_arguments_of_one(options, arguments):
    layer, conv = XVolution2d(*arguments, **options).eval(), nn.Conv2d(*arguments)
    conv.load_state_dict(layer.conv.state_dict())
    x = torch.randn(2, 8, 9, 11)
    torch.testing.assert_close(layer(x), layer.conv_norm(conv(x)))
    assert layer.extra_repr() == conv.extra_repr()


@pytest.mark.parametrize("options", SEVERAL, ids=str)
@pytest.mark.parametrize("mode", ["zeros", "reflect", "circular"])
def test_several_convolutions_take_unbatched_and_empty_inputs(options, mode):
    layer = randomize(XVolution2d(8, 16, 3, padding=1, padding_mode=mode, zero_init=False, **options)).eval()
    deployed, x = reparameterize(layer), torch.randn(8, 9, 9)
    for module in (layer, deployed):
        torch.testing.assert_close(module(x), module(x[None])[0])
        if mode == "zeros":
            assert module(torch.empty(0, 8, 9, 9)).shape == (0, 16, 9, 9)


@pytest.mark.parametrize("options", SEVERAL, ids=str)
def test_several_convolutions_are_copied_pickled_and_loaded(options):
    layer = randomize(XVolution2d(8, 16, 3, padding=1, zero_init=False, **options)).eval()
    fresh, x = XVolution2d(8, 16, 3, padding=1, **options).eval(), torch.randn(1, 8, 6, 6)
    fresh.load_state_dict(layer.state_dict())
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), fresh):
        assert torch.equal(twin(x), layer(x))


@pytest.mark.parametrize("options", SEVERAL, ids=str)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 0.01), (torch.bfloat16, 0.06)])
def test_several_convolutions_in_half_precision_compute_the_same(options, dtype, tolerance):
    torch.manual_seed(0)
    x = torch.randn(2, 16, 12, 12).to(dtype)
    low = randomize(XVolution2d(16, 16, 3, padding=1, zero_init=False, **options)).eval().to(dtype)
    expected = copy.deepcopy(low).double()(x.double())
    for layer in (low, reparameterize(low)):
        assert relative_error(expected, layer(x).double()) < tolerance


def test_without_attention_what_is_deployed_is_the_plain_convolution():
    layer = randomize(XVolution2d(8, 16, 3, padding=1, attention=None, num_conv_branches=2, zero_init=False)).eval()
    deployed = reparameterize(layer, example_inputs=torch.randn(2, 8, 9, 9))
    assert [type(module) for module in deployed.modules() if list(module.parameters(recurse=False))] == [nn.Conv2d]
    with pytest.raises(LayoutError, match="it has 'single'"):
        reparameterize(layer, layout="split")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("attention", ["pixel_shift", None])
def test_several_convolutions_in_half_precision_stay_finite(attention, dtype):
    torch.manual_seed(0)
    layer = (
        XVolution2d(16, 16, 3, padding=1, attention=attention, num_conv_branches=2, zero_init=False).eval().to(dtype)
    )
    x = (1e3 * torch.randn(2, 16, 12, 12)).to(dtype)
    assert torch.isfinite(layer(x)).all()
    assert torch.isfinite(reparameterize(layer)(x)).all()


@pytest.mark.parametrize("options", SEVERAL, ids=str)
def test_operators_of_several_convolutions_compile(options):
    torch._dynamo.reset()
    layer, x = XVolution2d(8, 16, 3, padding=1, zero_init=False, **options).eval(), torch.randn(2, 8, 9, 9)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), layer(x))
    torch._dynamo.reset()


def test_a_norm_that_does_not_fold_keeps_convolutions_apart():
    conv = nn.Conv2d(8, 16, 3, padding=1)
    for norm in (nn.GroupNorm(2, 16), nn.BatchNorm2d(16, track_running_stats=False)):
        with pytest.raises(ValueError, match="or num_conv_branches=1"):
            XVolution2d.from_conv(conv, conv_norm=norm, num_conv_branches=2)
    layer = XVolution2d(8, 16, 3, num_conv_branches=2)
    layer.conv_norm = nn.GroupNorm(2, 16)
    layer.eval()
    with pytest.raises(ReparameterizationError, match=r"^XVolution2d: .*one of their norms does not fold"):
        reparameterize(layer)
    assert XVolution2d.from_conv(conv, conv_norm=nn.GroupNorm(2, 16))(torch.randn(1, 8, 9, 9)).shape == (1, 16, 9, 9)


@pytest.mark.parametrize(
    "norm_layer",
    [lambda channels: nn.GroupNorm(2, channels), lambda channels: nn.BatchNorm2d(channels, track_running_stats=False)],
    ids=["group", "batch without statistics"],
)
def test_norms_that_need_the_map_stay(norm_layer):
    layer = (
        XVolution2d(8, 16, 3, padding=1, norm_layer=norm_layer, zero_init=False, dtype=torch.float64).double().eval()
    )
    x = torch.randn(2, 8, 9, 9, dtype=torch.float64)
    for layout in ("single", "split"):
        assert relative_error(layer(x), reparameterize(layer, layout=layout)(x)) <= 1e-12


def test_norms_are_taken_in_the_operators_dimensions():
    assert type(XVolution1d(4, 4, 3).attention_norm) is nn.BatchNorm1d
    assert type(XVolution3d(4, 4, 3, norm_layer=nn.InstanceNorm1d, zero_init=False).conv_norm) is nn.InstanceNorm3d


def test_the_wrong_dimension_is_refused():
    with pytest.raises(ValueError, match=r"XVolution2d replaces an nn\.Conv2d, not a Conv1d"):
        XVolution2d.from_conv(nn.Conv1d(4, 4, 3))
    with pytest.raises(ValueError, match="has 3 numbers for 2 dimensions"):
        XVolution2d(4, 4, (3, 3, 3), padding="same_upper")


def test_fuse_is_the_layout_with_the_fewest_multiplications():
    layer = XVolution2d(8, 16, 3, padding=1)
    with pytest.raises(ReparameterizationError, match=r"train mode.*call model\.eval"):
        layer.fuse()
    assert layer.eval().fuse().layout == "split"
    assert XVolution2d(8, 16, 1, attention=PixelShift(window="conv")).eval().fuse().layout == "single"
