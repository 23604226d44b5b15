"""What a conversion runs, proves and says, and that it leaves a model as it was when it fails."""

import copy
from dataclasses import dataclass

import pytest
import torch
from torch import nn

from tests.core.networks import Residual, SmallNet, randomize
from xvolution import (
    ConversionError,
    OperatorConfig,
    ReparameterizationError,
    XVolution2d,
    XVolutionConfig,
    conversion_summary,
    convert,
    reparameterize,
)
from xvolution.conversion.config import ConversionConfig


class Untraceable(nn.Module):
    """A residual network behind control flow that torch.fx refuses; counts how often it runs."""

    def __init__(self, norms=True):
        super().__init__()
        self.body = SmallNet() if norms else nn.Sequential(nn.Conv2d(3, 3, 3), nn.Conv2d(3, 5, 3))

    def forward(self, x):
        return x if x.sum() > 1e9 else self.body(x)


def counted(model):
    """The model, and how often it and its copies run."""
    runs = []
    model.register_forward_hook(lambda *_: runs.append(1))
    return model, runs


@pytest.fixture
def images():
    return torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def in_eval(model):
    torch.manual_seed(0)
    return randomize(model).eval()


@pytest.mark.parametrize("config", ["xvolution", "acmix"])
def test_a_network_that_torch_fx_reads_runs_before_and_after(images, config):
    model, runs = counted(in_eval(SmallNet()))
    convert(model, config, example_inputs=images)
    assert len(runs) == 2
    runs.clear()
    convert(model, config)
    assert len(runs) == 3, "to find the size of its images"
    for inputs in (images, None):
        runs.clear()
        convert(model, config, example_inputs=inputs, verify=False)
        assert not runs


def test_what_torch_fx_cannot_read_runs_for_its_norms_too(images):
    # To see which norm follows which convolution; then as ever.
    model, runs = counted(in_eval(Untraceable()))
    converted = convert(model, example_inputs=images)
    assert isinstance(converted.body.layer1.conv1.conv_norm, nn.BatchNorm2d)
    assert len(runs) == 1 + 2
    runs.clear()
    convert(model, example_inputs=images, verify=False)
    assert len(runs) == 1
    model, runs = counted(in_eval(Untraceable(norms=False)))
    convert(model, example_inputs=images)
    assert len(runs) == 1 + 2
    runs.clear()
    convert(model, example_inputs=images, verify=False)
    assert len(runs) == 1


@dataclass(frozen=True)
class FailsHalfWay(ConversionConfig):
    """Raises at the second convolution."""

    takes_norm = True

    def replacement(self, conv, norm):
        if conv.in_channels == 8:
            raise ValueError("no replacement for this one")
        return XVolution2d.from_conv(conv, conv_norm=norm)

    def to_dict(self):
        return {"type": "fails"}


class Tied(nn.Module):
    """Reads the weight of a convolution beside calling it, or asks for its class."""

    def __init__(self, reads_weight=False):
        super().__init__()
        self.stem = nn.Conv2d(3, 3, 3, padding=1)
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.norm = nn.BatchNorm2d(3)
        self.reads_weight = reads_weight

    def forward(self, x):
        more = self.conv.weight.sum() if self.reads_weight else int(isinstance(self.conv, nn.Conv2d))
        return self.norm(self.conv(self.stem(x))) + more


class Mixed(nn.Module):
    """Two convolutions of which only the first is replaced by ``FailsHalfWay``."""

    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.layer = Residual(8)

    def forward(self, x):
        return self.layer(self.norm(self.first(x)))


def snapshot(model):
    """Everything that a failed change could leave changed."""
    modules = [(name, module, module.training) for name, module in model.named_modules(remove_duplicate=False)]
    hooks = [len(module._load_state_dict_pre_hooks) for module in model.modules()]
    parameters = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    return modules, hooks, parameters, sorted(vars(model))


def assert_untouched(model, before, state, expected, images):
    modules, hooks, parameters, attributes = snapshot(model)
    assert all(a[0] == b[0] and a[1] is b[1] and a[2] == b[2] for a, b in zip(modules, before[0], strict=True))
    assert (hooks, attributes) == (before[1], before[3])
    assert all(a is b and c == d for (a, c), (b, d) in zip(parameters, before[2], strict=True))
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert torch.equal(copy.deepcopy(model).eval()(images), expected)


@pytest.mark.parametrize(
    ("model", "config", "error", "message"),
    [
        (Tied, None, ConversionError, "outputs differ by .*; leave that convolution out"),
        (
            lambda: Tied(reads_weight=True),
            None,
            ConversionError,
            r"the network reads stem\.weight|the network reads conv\.weight",
        ),
        (Mixed, FailsHalfWay(), ValueError, "no replacement for this one"),
        (SmallNet, OperatorConfig(operator="lesa", options={"num_heads": 3}), ValueError, "num_heads is 3"),
    ],
    ids=["outputs differ", "computes with a weight", "replacement raises", "operator refuses"],
)
@pytest.mark.parametrize("training", [True, False])
def test_a_conversion_in_place_that_fails_leaves_the_model_as_it_was(model, config, error, message, training, images):
    model = in_eval(model()).train(training)
    next(module for module in model.modules() if isinstance(module, nn.BatchNorm2d)).train(not training)
    next(model.parameters()).requires_grad_(False)
    before, state = snapshot(model), copy.deepcopy(model.state_dict())
    expected = copy.deepcopy(model).eval()(images)
    with pytest.raises(error, match=message):
        convert(model, config, filter_fn=lambda module, name: True, example_inputs=images, inplace=True)
    assert_untouched(model, before, state, expected, images)


class Counter(nn.Module):
    """An operator of somebody else inside of a network: fails once the modules around it are deployed."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(3, 3, 3, padding=1)
        self.norm = nn.BatchNorm2d(3)

    def forward(self, x):
        return self.norm(self.layer(x)) + (0 if isinstance(self.layer, XVolution2d) else 1)


@pytest.mark.parametrize("layout", ["auto", "single", "no such layout"])
def test_a_deployment_in_place_that_fails_leaves_the_model_as_it_was(layout, images):
    model = in_eval(nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), Counter(), nn.BatchNorm2d(3)))
    model[1].layer = XVolution2d.from_conv(model[1].layer, zero_init=False)
    before, state, expected = snapshot(model), copy.deepcopy(model.state_dict()), model(images)
    with pytest.raises((ReparameterizationError, ValueError), match=r"differs from the trained one|no such layout"):
        reparameterize(model, images, layout=layout, inplace=True, fold_norms=True)
    assert_untouched(model, before, state, expected, images)


class ReadsNorm(SmallNet):
    """Reads an attribute of a norm, which cannot be taken away."""

    def forward(self, x):
        return super().forward(x) * self.layer1.norm1.eps


class ReadsConvolution(SmallNet):
    """Computes with the weight of a convolution, which says no longer what its layer computes."""

    def forward(self, x):
        return super().forward(x) * self.layer1.conv1.weight.mean()


@pytest.mark.parametrize("traceable", [True, False])
def test_a_norm_that_the_network_reads_stays_where_it_is(traceable, images):
    body = in_eval(ReadsNorm())
    model = body if traceable else Untraceable().eval()
    if not traceable:
        model.body = body
    converted = convert(model, example_inputs=images)
    layer = (converted if traceable else converted.body).layer1
    assert isinstance(layer.norm1, nn.BatchNorm2d)
    assert isinstance(layer.conv1.conv_norm, nn.Identity)
    assert isinstance(layer.conv2.conv_norm, nn.BatchNorm2d)
    assert torch.equal(converted(images), model(images))


@pytest.mark.parametrize("traceable", [True, False])
def test_a_network_that_reads_a_convolution_is_refused_unless_that_is_left_out(traceable, images):
    model = in_eval(ReadsConvolution())
    if not traceable:
        outer = Untraceable().eval()
        outer.body, model = model, outer
    with pytest.raises(ConversionError, match=r"reads (body\.)?layer1\.conv1\.weight, but an X-volution has replaced"):
        convert(model, example_inputs=images)
    converted = convert(model, filter_fn=lambda _, name: name.endswith("conv2"), example_inputs=images)
    assert sum(isinstance(module, XVolution2d) for module in converted.modules()) == 2
    assert torch.equal(converted(images), model(images))


def test_frozen_norms_and_everything_about_parameters_are_kept():
    model = randomize(SmallNet()).train().to(memory_format=torch.channels_last)
    frozen = {"layer1.norm1", "layer2.norm2", "stem_norm"}
    for name in frozen:
        model.get_submodule(name).eval()
    model.layer2.conv1.eval()
    model.layer1.conv2.double()
    for name in ("layer1.conv1.weight", "layer2.norm2.bias"):
        model.get_parameter(name).requires_grad_(False)
    modes = {module: module.training for module in model.modules() if not list(module.children())}
    before = {name: (p, p.requires_grad, p.dtype, p.device, p.stride()) for name, p in model.named_parameters()}
    converted = convert(model, inplace=True, verify=False)
    operators = {name: module for name, module in converted.named_modules() if isinstance(module, XVolution2d)}
    assert len(operators) == 4
    assert not converted.layer1.conv1.conv_norm.training
    assert converted.layer1.conv1.training
    assert converted.layer1.conv1.attention_norm.training
    assert not converted.layer2.conv2.conv_norm.training
    assert not converted.layer2.conv1.attention_norm.training
    assert all(module.training == modes[module] for module in converted.modules() if module in modes)
    found = {id(p): (p, p.requires_grad, p.dtype, p.device, p.stride()) for p in converted.parameters()}
    for parameter, *facts in before.values():
        assert found[id(parameter)][1:] == tuple(facts)
    assert all(p.dtype == torch.float64 for p in operators["layer1.conv2"].attention.parameters())


def test_running_a_network_does_not_call_a_train_of_its_own(images):
    class Merging(SmallNet):
        merged = False

        def train(self, mode=True):
            self.merged = not mode
            return super().train(mode)

    model = in_eval(Merging()).train()
    assert not convert(model, example_inputs=images).merged
    assert not model.merged


class Behind(nn.Module):
    """Without biases: nothing comes out of an all-zero image, whatever is done to the convolutions."""

    def __init__(self):
        super().__init__()
        self.convs = nn.Sequential(*(nn.Conv2d(3, 3, 3, padding=1, bias=False) for _ in range(2)))
        self.seen = []

    def forward(self, x, *others, **more):
        tensor = x[0] if isinstance(x, list) else x
        self.seen.append(bool(tensor.any()))
        factor = 1 if isinstance(self.convs[1], nn.Conv2d) else 2
        return self.convs(tensor) * factor


@pytest.mark.parametrize(
    "wrap",
    [
        lambda x: x,
        lambda x: (x, torch.tensor(0)),
        lambda x: {"x": x},
        lambda x: ([x, x],),
        lambda x: [x],
    ],
    ids=["tensor", "tuple", "mapping", "list in a tuple", "list"],
)
def test_outputs_are_never_compared_on_zeros(wrap):
    model = Behind().eval()
    with pytest.raises(ConversionError, match="outputs differ"):
        convert(model, filter_fn=lambda module, name: True, example_inputs=wrap(torch.zeros(1, 3, 8, 8)), inplace=True)
    assert all(model.seen)


class Random(nn.Module):
    """Dropout in eval mode too."""

    def __init__(self):
        super().__init__()
        self.body = SmallNet()

    def forward(self, x):
        return nn.functional.dropout(self.body(x), 0.5, training=True)


class Tokens(nn.Module):
    """Takes no image."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(7, 4)
        self.convs = nn.Sequential(*(nn.Conv1d(4, 4, 3, padding=1) for _ in range(2)))

    def forward(self, tokens):
        return self.convs(self.embedding(tokens).mT)


@pytest.mark.parametrize(
    ("build", "options", "proof"),
    [
        (SmallNet, {}, "outputs before and after differ by 0e+00"),
        (SmallNet, {"verify": False}, "outputs were not compared"),
        (Tokens, {}, "outputs were not compared; give example_inputs to compare them"),
        (Random, {}, "outputs were not compared, because the network draws random numbers"),
        (lambda: SmallNet().to("meta"), {}, "outputs were not compared, because the weights have no values yet"),
        (SmallNet, {"config": "acmix"}, "outputs differ from before, because the operator starts with new weights"),
        (
            SmallNet,
            {"config": XVolutionConfig(zero_init=False)},
            "outputs differ from before, because the operator starts with new weights",
        ),
    ],
    ids=["equal", "verify=False", "no inputs", "random", "meta", "another operator", "without zero_init"],
)
def test_what_is_known_of_the_outputs_is_said(build, options, proof):
    torch.manual_seed(0)
    converted = convert(build().eval(), **options)
    summary = conversion_summary(converted)
    assert summary.proof == proof
    assert f"convolutions replaced; {proof}" in str(summary)


def test_a_random_network_keeps_its_norms_with_their_convolutions(images):
    converted = convert(in_eval(Random()), example_inputs=images)
    assert isinstance(converted.body.layer1.conv1.conv_norm, nn.BatchNorm2d)
