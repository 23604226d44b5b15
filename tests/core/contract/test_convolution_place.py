"""An operator stands where ``nn.Conv2d`` stood: arguments, errors, shapes, unbatched and empty inputs, state dicts."""

import pytest
import torch
from torch import nn

from tests.core.cases import CASES, VARIANTS
from tests.core.execution import FORMS, TRAINING, build, operator
from tests.core.networks import randomize
from xvolution import XVolution1d, XVolution2d, XVolution3d, reparameterize
from xvolution.attention import PixelShift
from xvolution.convolutions import CONVOLUTIONS

ARGUMENTS = [
    (8, 16, 3),
    (8, 16, (3, 5), 2, (1, 2)),
    (8, 16, 2, 1, "same"),
    (8, 8, 4, 1, "same", 1, 8),
    (8, 16, 3, 1, "valid", (2, 1), 2, False),
    (8, 16, 3, 1, (2, 1), 1, 4, True, "circular"),
    (8, 16, 3, 1, 1, 1, 1, True, "reflect"),
    (8, 16, 3, 1, 3, 1, 1, True, "replicate"),
]


@pytest.mark.parametrize(("branch", "variant"), VARIANTS)
@pytest.mark.parametrize("arguments", ARGUMENTS, ids=str)
def test_positional_arguments_mean_what_they_mean_to_conv2d(arguments, branch, variant):
    depthwise = arguments[6:7] == (8,)
    variant = "default" if depthwise and variant == "heads" else variant  # one channel cannot be shared by two heads
    layer, conv = build(branch, variant, *arguments), nn.Conv2d(*arguments)
    x = torch.randn(2, 8, 9, 11)
    assert layer(x).shape == conv(x).shape
    conv.load_state_dict(layer.conv.state_dict())
    torch.testing.assert_close(layer.eval()(x), layer.conv_norm(conv(x)))
    assert layer.extra_repr() == conv.extra_repr()
    for name in (
        "in_channels",
        "out_channels",
        "kernel_size",
        "stride",
        "padding",
        "dilation",
        "groups",
        "padding_mode",
    ):
        assert getattr(layer, name) == getattr(conv, name), name


@pytest.mark.parametrize("branch", CASES)
@pytest.mark.parametrize(
    "arguments",
    [
        {"groups": 3},
        {"in_channels": 8, "out_channels": 15, "groups": 2},
        {"padding": "full"},
        {"padding": "same", "stride": 2},
        {"padding_mode": "mirror"},
        {"groups": 0},
    ],
    ids=str,
)
def test_wrong_arguments_fail_as_conv2d_does(arguments, branch):
    arguments = {"in_channels": 8, "out_channels": 16, "kernel_size": 3, **arguments}
    with pytest.raises(ValueError) as expected:  # noqa: PT011 - the messages are compared below
        nn.Conv2d(**arguments)
    with pytest.raises(ValueError) as actual:  # noqa: PT011
        XVolution2d(**arguments, attention=branch)
    assert str(actual.value) == str(expected.value)


@pytest.mark.parametrize(("kind", "size"), [(XVolution1d, (12,)), (XVolution3d, (5, 6, 7))])
@pytest.mark.parametrize("branch", CASES)
def test_signals_and_videos(kind, size, branch):
    torch.manual_seed(0)
    layer = kind(4, 8, 3, 2, 1, attention=branch, zero_init=False)
    x = torch.randn(2, 4, *size, requires_grad=True)
    y = layer(x)
    assert y.shape == CONVOLUTIONS[kind.dims](4, 8, 3, 2, 1)(x).shape
    y.square().mean().backward()
    assert all(torch.isfinite(p.grad).all() for p in (x, *layer.parameters()))
    assert layer(x[0]).shape == y.shape[1:]


@pytest.mark.parametrize(("branch", "variant", "form"), FORMS)
@pytest.mark.parametrize("mode", ["zeros", "reflect", "circular"])
def test_unbatched_and_empty_inputs(branch, variant, form, mode):
    module, x = operator(branch, variant, form, padding_mode=mode), torch.randn(4, 9, 9)
    torch.testing.assert_close(module(x), module(x[None])[0])
    if mode == "zeros":
        assert module(torch.empty(0, 4, 9, 9)).shape == (0, 8, 9, 9)


@pytest.mark.parametrize(("branch", "variant", "form"), [form for form in FORMS if form[2] != TRAINING])
def test_deployed_forms_tell_the_geometry_of_the_convolution(branch, variant, form):
    # Layout "parts" is one of stride 1 and no groups alone.
    place = {"padding": 1} if form == "parts" else {"stride": (2, 1), "padding": (1, 2), "groups": 2}
    trained, deployed = (operator(branch, variant, each, **place) for each in (TRAINING, form))
    names = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")
    for name in names:
        assert getattr(deployed, name) == getattr(trained, name), name
    assert f"layout={form}" in repr(deployed)


@pytest.mark.parametrize("branch", CASES)
def test_a_plain_state_dict_loads_into_the_convolution_branch(branch):
    conv, layer = nn.Conv2d(8, 16, 3), XVolution2d(8, 16, 3, attention=branch)
    missing, unexpected = layer.load_state_dict(conv.state_dict(), strict=False)
    assert not unexpected
    assert {"conv.weight", "conv.bias"}.isdisjoint(missing)
    assert "attention_norm.weight" in missing
    assert torch.equal(layer.conv.weight, conv.weight)
    assert torch.equal(layer.conv.bias, conv.bias)
    with pytest.raises(RuntimeError, match=r"Missing key.*attention\."):
        layer.load_state_dict(conv.state_dict())


@pytest.mark.parametrize(("branch", "variant"), VARIANTS)
def test_device_and_dtype_reach_every_parameter(branch, variant):
    layer = build(branch, variant, device="meta", dtype=torch.bfloat16)
    assert {parameter.device.type for parameter in layer.parameters()} == {"meta"}
    assert {parameter.dtype for parameter in layer.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize(("branch", "variant"), VARIANTS)
@pytest.mark.parametrize("norm", ["batch", "none", "group"])
def test_zero_init_starts_at_the_convolution(branch, variant, norm):
    norm_layer = {"batch": nn.BatchNorm2d, "none": None, "group": lambda channels: nn.GroupNorm(2, channels)}[norm]
    layer, x = build(branch, variant, norm_layer=norm_layer).eval(), torch.randn(2, 8, 9, 9)
    torch.testing.assert_close(layer(x), layer.conv_norm(layer.conv(x)), rtol=0, atol=0)
    moving = build(branch, variant, norm_layer=norm_layer, zero_init=False).eval()
    assert not torch.allclose(moving(x), moving.conv_norm(moving.conv(x)))


@pytest.mark.parametrize(("branch", "variant"), VARIANTS)
def test_every_parameter_learns(branch, variant):
    layer = randomize(build(branch, variant, zero_init=False)).train()
    layer(torch.randn(4, 8, 9, 9)).sin().sum().backward()
    for name, parameter in layer.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name


@pytest.mark.parametrize(("branch", "variant"), VARIANTS)
def test_training_moves_the_attention(branch, variant):
    """From zero_init: after a few steps the attention has an effect, and nothing of it stands still."""
    torch.manual_seed(0)
    layer, x = build(branch, variant), torch.randn(4, 8, 9, 9)
    before = {name: parameter.detach().clone() for name, parameter in layer.attention.named_parameters()}
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        layer(x).sin().sum().backward()
        optimizer.step()
    layer.eval()
    assert not torch.allclose(layer(x), layer.conv_norm(layer.conv(x)))
    still = [name for name, parameter in layer.attention.named_parameters() if torch.equal(parameter, before[name])]
    assert not still


@pytest.mark.parametrize("mode", ["circular", "reflect"])
@pytest.mark.parametrize("form", ["training", "single", "split"])
def test_a_window_that_reaches_beyond_what_the_image_can_repeat_is_said(mode, form):
    torch.manual_seed(0)
    trained = XVolution2d(4, 8, 3, padding=1, padding_mode=mode, attention=PixelShift(window=5, dilation=2)).eval()
    module = trained if form == "training" else reparameterize(trained, layout=form)
    x = torch.randn(1, 4, 3, 9)
    assert trained.conv(x).shape == (1, 8, 3, 9)
    there = 3 if mode == "circular" else 2
    sentence = (
        f"padding_mode='{mode}' can pad a map of 3 pixels by at most {there}, but the window reaches 4 pixels beyond"
    )
    with pytest.raises(ValueError, match=sentence):
        module(x)
    assert module(torch.randn(1, 4, 5, 9)).shape == (1, 8, 5, 9)


@pytest.mark.parametrize("mode", ["circular", "reflect"])
def test_where_the_plain_convolution_fails_torch_says_so(mode):
    trained = XVolution2d(4, 8, 9, padding=4, padding_mode=mode).eval()
    with pytest.raises(RuntimeError, match="Padding") as plain:
        nn.Conv2d(4, 8, 9, padding=4, padding_mode=mode)(torch.randn(1, 4, 3, 9))
    with pytest.raises(RuntimeError) as refusal:
        trained(torch.randn(1, 4, 3, 9))
    assert str(refusal.value) == str(plain.value)
