"""XVolution2d in the place of nn.Conv2d: signature, errors, dtypes, state dicts."""

import copy
import pickle

import pytest
import torch
from torch import nn

from tests.core.networks import randomize
from xvolution import XVolution2d, reparameterize

PLAIN = {"gate": "identity", "query_context": False, "global_term": False, "query_norm": False, "window_norm": False}
BRANCHES = [
    {},
    {"num_conv_branches": 2},
    {"attention": None, "num_conv_branches": 2},
    PLAIN,
    {"similarity": "dot", "heads": 2},
    {"attention": "linear", "heads": 2},
    {"attention": "global", "heads": 2},
    {"attention": "global", "query_key_norm": True},
    {"attention": "image"},
    {"attention": "image", "separable": True},
    {"attention": "image", "channel_keys": True},
    {"attention": "shared"},
]


@pytest.mark.parametrize("options", BRANCHES)
@pytest.mark.parametrize(
    "arguments",
    [
        (8, 16, 3),
        (8, 16, (3, 5), 2, (1, 2)),
        (8, 16, 2, 1, "same"),
        (8, 8, 4, 1, "same", 1, 8),
        (8, 16, 3, 1, "valid", (2, 1), 2, False),
        (8, 16, 3, 1, (2, 1), 1, 4, True, "circular"),
        (8, 16, 3, 1, 1, 1, 1, True, "reflect"),
        (8, 16, 3, 1, 3, 1, 1, True, "replicate"),
    ],
)
def test_positional_arguments_mean_what_they_mean_to_conv2d(arguments, options):
    if arguments[-1] == 8 and options.get("heads"):
        options = {**options, "heads": 1}
    layer, conv = XVolution2d(*arguments, **options), nn.Conv2d(*arguments)
    x = torch.randn(2, 8, 9, 11)
    assert layer(x).shape == conv(x).shape
    conv.load_state_dict(layer.conv.state_dict())
    torch.testing.assert_close(layer.eval()(x), layer.conv_norm(conv(x)))
    assert layer.extra_repr() == conv.extra_repr()


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
)
def test_wrong_arguments_fail_as_conv2d_does(arguments):
    arguments = {"in_channels": 8, "out_channels": 16, "kernel_size": 3, **arguments}
    with pytest.raises(ValueError) as expected:  # noqa: PT011 - the messages are compared below
        nn.Conv2d(**arguments)
    with pytest.raises(ValueError) as actual:  # noqa: PT011
        XVolution2d(**arguments)
    assert str(actual.value) == str(expected.value)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"attention": "softmax"}, "attention is 'softmax'; allowed are"),
        ({"attention": None, "window": 5}, "attention=None does not take window"),
        ({"num_conv_branches": 0}, "num_conv_branches is 0"),
        (
            {"num_conv_branches": 2, "norm_layer": lambda channels: nn.GroupNorm(2, channels)},
            "cannot become one with a GroupNorm",
        ),
        ({"similarity": "cosine"}, "similarity is 'cosine'; allowed are"),
        ({"gate": "relu"}, "gate is 'relu'; allowed are"),
        ({"heads": 2}, "use similarity='dot'"),
        ({"similarity": "dot", "gate": "tanh"}, "does not take gate"),
        ({"similarity": "dot", "heads": 3}, "divide the 16 output channels"),
        ({"attention": "global", "window": 5}, "does not take window"),
        ({"attention": "linear", "global_init": 1.0}, "does not take global_init"),
        ({"similarity": "dot", "global_init": 1.0}, "does not take global_init"),
        ({"attention": "image", "window": 5, "heads": 2}, "'image' does not take window, heads"),
        ({"attention": "shared", "separable": True, "heads": 2}, "'shared' does not take separable, heads"),
        ({"attention": "shared", "window": 0}, "window is 0; it must be a positive integer"),
        ({"attention": "shared", "num_conv_branches": 2}, "reads the outputs of one convolution"),
        ({"attention": "image", "gate": "relu"}, "gate is 'relu'; allowed are"),
        ({"separable": True}, "'pssa' does not take separable"),
        ({"attention": "linear", "channel_keys": True}, "'linear' does not take channel_keys"),
        ({"query_key_norm": True}, "'pssa' does not take query_key_norm"),
        ({"global_term": False, "global_init": 1.0}, "pass global_term=True"),
        ({"attention_ratio": 0}, "attention_ratio is 0"),
        ({"shift_distance": 0}, "shift_distance is 0"),
        ({"attention": nn.Identity(), "norm_layer": None}, "pass zero_init=False"),
    ],
)
def test_options_that_do_not_belong_are_refused_with_a_sentence(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        XVolution2d(8, 16, 3, **options)


def test_a_module_as_attention_branch():
    layer = XVolution2d(8, 16, 3, 2, 1, attention=nn.Conv2d(8, 16, 1, 2), zero_init=False)
    assert layer(torch.randn(2, 8, 8, 8)).shape == (2, 16, 4, 4)
    wrong = XVolution2d(8, 16, 3, 2, 1, attention=nn.Conv2d(8, 16, 1), zero_init=False)
    with pytest.raises(ValueError, match="must map"):
        wrong(torch.randn(2, 8, 8, 8))


@pytest.mark.parametrize("options", BRANCHES)
@pytest.mark.parametrize("mode", ["zeros", "reflect", "circular"])
def test_unbatched_and_empty_inputs(options, mode):
    layer = randomize(XVolution2d(8, 16, 3, padding=1, padding_mode=mode, zero_init=False, **options)).eval()
    x = torch.randn(8, 9, 9)
    torch.testing.assert_close(layer(x), layer(x[None])[0])
    deployed = reparameterize(layer)
    torch.testing.assert_close(deployed(x), deployed(x[None])[0])
    if mode == "zeros":
        assert layer(torch.empty(0, 8, 9, 9)).shape == deployed(torch.empty(0, 8, 9, 9)).shape == (0, 16, 9, 9)


@pytest.mark.parametrize("options", BRANCHES)
def test_zero_init_starts_at_the_convolution(options):
    x = torch.randn(2, 8, 9, 9)
    norm_layers = [nn.BatchNorm2d, None]
    if "num_conv_branches" not in options:
        norm_layers.append(lambda channels: nn.GroupNorm(2, channels))
    for norm_layer in norm_layers:
        extra = {k: v for k, v in options.items() if norm_layer is not None or not k.endswith("_norm")}
        layer = XVolution2d(8, 16, 3, padding=1, norm_layer=norm_layer, **extra).eval()
        torch.testing.assert_close(layer(x), layer.conv_norm(layer.conv(x)), rtol=0, atol=0)


@pytest.mark.parametrize(("global_init", "weight"), [(None, 1.0), (4.0, 4.0), (0.0, 0.0)])
def test_the_term_over_all_pixels_starts_with_the_weight_asked_for(global_init, weight):
    branch = XVolution2d(8, 16, 3, padding=1, global_init=global_init, norm_layer=None, zero_init=False).attention
    with torch.no_grad():
        branch.windows[0].weight.zero_()  # leaves the term alone
    x = torch.randn(2, 8, 9, 9)
    mean_key = branch.key(x).mean((2, 3), keepdim=True)
    query = branch.query(x) + branch.context(x.mean((2, 3), keepdim=True))
    torch.testing.assert_close(branch(x), branch.value(query.sigmoid() * weight * mean_key))


def test_the_query_sees_the_whole_image():
    branch = XVolution2d(8, 16, 3, padding=1, global_term=False, norm_layer=None, zero_init=False).attention
    x = torch.randn(2, 8, 9, 9)
    far = x.clone()
    far[:, :, 8, 8] += 100
    changed = (branch(x) - branch(far)).abs().amax(1)
    assert changed[:, 0, 0].min() > 1e-3
    without = XVolution2d(8, 16, 3, padding=1, query_context=False, global_term=False, norm_layer=None).attention
    assert without.context is None
    torch.testing.assert_close(without(x)[:, :, :7, :7], without(far)[:, :, :7, :7], rtol=0, atol=0)


@pytest.mark.parametrize("attention", ["pssa", None])
@pytest.mark.parametrize("norm_layer", [nn.BatchNorm2d, None])
def test_several_convolutions_are_summed_and_become_one(attention, norm_layer):
    options = {"num_conv_branches": 3, "attention": attention, "norm_layer": norm_layer}
    layer = XVolution2d(8, 16, 3, 2, 1, groups=2, zero_init=False, dtype=torch.float64, **options)
    layer = randomize(layer).eval()
    x = torch.randn(2, 8, 9, 9, dtype=torch.float64)
    expected = layer.conv_norm(layer.conv(x)) + sum(branch.norm(branch.conv(x)) for branch in layer.parallel)
    if attention is not None:
        expected = expected + layer.attention_norm(layer.attention(x))
    assert len(layer.parallel) == 2
    torch.testing.assert_close(layer(x), expected)
    deployed = reparameterize(layer, example_inputs=x, layout="split")
    torch.testing.assert_close(deployed(x), expected, rtol=1e-12, atol=1e-12)
    once = XVolution2d(8, 16, 3, 2, 1, groups=2, attention=attention, norm_layer=norm_layer, dtype=torch.float64).eval()
    weights = [sum(p.numel() for p in each.parameters()) for each in (deployed, reparameterize(once, layout="split"))]
    assert weights[0] == weights[1]  # nothing of the further convolutions is left


def test_without_attention_what_is_deployed_is_the_plain_convolution():
    layer = randomize(XVolution2d(8, 16, 3, padding=1, attention=None, num_conv_branches=2, zero_init=False)).eval()
    deployed = reparameterize(layer, example_inputs=torch.randn(2, 8, 9, 9))
    assert [type(module) for module in deployed.modules() if list(module.parameters(recurse=False))] == [nn.Conv2d]


def test_a_norm_that_does_not_fold_keeps_convolutions_apart():
    conv = nn.Conv2d(8, 16, 3, padding=1)
    for norm in (nn.GroupNorm(2, 16), nn.BatchNorm2d(16, track_running_stats=False)):
        with pytest.raises(ValueError, match="or num_conv_branches=1"):
            XVolution2d.from_conv(conv, conv_norm=norm, num_conv_branches=2)
    layer = XVolution2d(8, 16, 3, num_conv_branches=2)
    layer.conv_norm = nn.GroupNorm(2, 16)
    layer.eval()
    with pytest.raises(ValueError, match="a norm of theirs does not fold"):
        reparameterize(layer)
    assert XVolution2d.from_conv(conv, conv_norm=nn.GroupNorm(2, 16))(torch.randn(1, 8, 9, 9)).shape == (1, 16, 9, 9)


@pytest.mark.parametrize("options", BRANCHES)
def test_every_parameter_learns(options):
    layer = XVolution2d(8, 16, 3, padding=1, zero_init=False, **options)
    layer(torch.randn(4, 8, 9, 9)).square().sum().backward()
    for name, parameter in layer.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name


@pytest.mark.parametrize("options", BRANCHES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("zero_init", [True, False])
def test_low_precision_does_not_overflow_on_activations_of_a_thousand(options, dtype, zero_init):
    torch.manual_seed(0)
    x = 1e3 * torch.randn(2, 16, 12, 12)
    layer = XVolution2d(16, 16, 3, padding=1, zero_init=zero_init, **options)
    low = copy.deepcopy(layer).eval().to(dtype)
    with torch.autocast("cpu", dtype=dtype):
        y = layer(x)
    assert torch.isfinite(y).all()
    y.float().square().mean().backward()
    assert all(torch.isfinite(p.grad).all() for p in layer.parameters())
    assert torch.isfinite(low(x.to(dtype))).all()
    deployed = reparameterize(low)
    assert torch.isfinite(deployed(x.to(dtype))).all()


@pytest.mark.parametrize("options", BRANCHES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 0.01), (torch.bfloat16, 0.06)])
def test_low_precision_computes_the_same(options, dtype, tolerance):
    torch.manual_seed(0)
    x = torch.randn(2, 16, 12, 12).to(dtype)
    low = randomize(XVolution2d(16, 16, 3, padding=1, zero_init=False, **options)).eval().to(dtype)
    expected = copy.deepcopy(low).double()(x.double())
    for layer in (low, reparameterize(low, layout="single"), reparameterize(low, layout="split")):
        assert (layer(x).double() - expected).abs().max() / expected.abs().max() < tolerance


def test_a_plain_state_dict_loads_into_the_convolution_branch():
    conv, layer = nn.Conv2d(8, 16, 3), XVolution2d(8, 16, 3)
    missing, unexpected = layer.load_state_dict(conv.state_dict(), strict=False)
    assert not unexpected
    assert {"conv.weight", "conv.bias"}.isdisjoint(missing)
    assert "attention.query.weight" in missing
    assert torch.equal(layer.conv.weight, conv.weight)
    assert torch.equal(layer.conv.bias, conv.bias)
    with pytest.raises(RuntimeError, match=r"Missing key.*attention\.query\.weight"):
        layer.load_state_dict(conv.state_dict())


@pytest.mark.parametrize("options", BRANCHES)
def test_copy_pickle_and_state_dict_round_trips(options):
    layer = randomize(XVolution2d(8, 16, 3, padding=1, zero_init=False, **options)).eval()
    fresh = XVolution2d(8, 16, 3, padding=1, **options).eval()
    fresh.load_state_dict(layer.state_dict())
    x = torch.randn(1, 8, 6, 6)
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), fresh):
        assert torch.equal(twin(x), layer(x))


def test_device_and_dtype_reach_every_parameter():
    layer = XVolution2d(
        8, 16, 3, query_norm=True, window_norm=True, global_term=True, device="meta", dtype=torch.bfloat16
    )
    assert {parameter.device.type for parameter in layer.parameters()} == {"meta"}
    assert {parameter.dtype for parameter in layer.parameters()} == {torch.bfloat16}


def test_channels_last_stays():
    layer = XVolution2d(16, 16, 3, padding=1, zero_init=False).to(memory_format=torch.channels_last)
    x = torch.randn(2, 16, 8, 8).to(memory_format=torch.channels_last)
    assert layer(x).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("options", BRANCHES)
def test_compiles_without_a_graph_break(options):
    torch._dynamo.reset()  # what other operators compiled to counts towards a limit
    layer = XVolution2d(8, 16, 3, padding=1, zero_init=False, **options).eval()
    x = torch.randn(2, 8, 9, 9)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), layer(x))
