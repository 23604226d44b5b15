"""Conversion keeps what a network computes, and says what it did."""

import copy
import json
import pickle

import pytest
import torch
from torch import nn

from tests.core.networks import Residual, SmallNet, randomize
from xvolution import ConversionError, XVolution2d, XVolutionConfig, conversion_summary, convert, reparameterize
from xvolution.attention import ChannelGate, GatedDepthwise, Global, Linear, PixelShift, PixelShiftDot
from xvolution.conversion.config import Conversion, Placement
from xvolution.conversion.register import conversion_from_dict, operator_names
from xvolution.convolutions import conv_over
from xvolution.geometry import Geometry
from xvolution.operators import ACmix2d


def operators_in(model):
    return [name for name, module in model.named_modules() if isinstance(module, XVolution2d)]


@pytest.fixture
def network():
    torch.manual_seed(0)
    return randomize(SmallNet()).eval()


@pytest.fixture
def images():
    return torch.randn(2, 3, 16, 16)


def test_outputs_stay_and_norms_move_in(network, images):
    converted = convert(network, XVolutionConfig())
    assert operators_in(converted) == ["layer1.conv1", "layer1.conv2", "layer2.conv1", "layer2.conv2"]
    assert torch.equal(converted(images), network(images))
    assert isinstance(converted.layer1.conv1.conv_norm, nn.BatchNorm2d)
    assert isinstance(converted.layer1.norm1, nn.Identity)
    assert isinstance(network.layer1.norm1, nn.BatchNorm2d)


@pytest.mark.parametrize(
    "options",
    [
        {"attention": PixelShift(gate="sigmoid", query_norm=True, window_norm=True, pooled_key=True)},
        {"attention": PixelShiftDot(num_heads=2)},
        {"attention": Linear()},
        {"attention": Global()},
        {"attention": ChannelGate()},
        {"attention": GatedDepthwise()},
        {"norm_layer": None},
        {"norm_layer": lambda channels: nn.GroupNorm(2, channels)},
        {"attention": lambda conv: nn.Conv2d(conv.in_channels, conv.out_channels, 1)},
    ],
)
def test_outputs_stay_with_every_branch(network, images, options):
    assert torch.equal(convert(network, XVolutionConfig(**options))(images), network(images))


def test_without_zero_init_the_attention_has_an_effect(network, images):
    converted = convert(network, XVolutionConfig(zero_init=False))
    assert not torch.allclose(converted(images), network(images))


def test_inplace_changes_the_model_itself(network, images):
    expected = network(images)
    assert convert(network, XVolutionConfig(), inplace=True) is network
    assert torch.equal(network(images), expected)


def test_modes_of_all_modules_are_kept(network):
    network.train()
    network.layer2.eval()
    converted = convert(network)
    assert converted.layer1.conv1.training
    assert converted.layer1.conv1.conv_norm.training
    assert not converted.layer2.conv1.training


def test_selection(network):
    def names(filter_fn=None, **where):
        return operators_in(convert(network, XVolutionConfig(), filter_fn=filter_fn, **where))

    assert names(stages=(2,)) == ["layer2.conv1", "layer2.conv2"]
    assert names(names=("layer1.*1", "stem")) == ["stem", "layer1.conv1"]
    assert names(kernel_sizes=(3,), stages=(1,)) == ["layer1.conv1", "layer1.conv2"]
    assert names(lambda module, name: name.endswith("conv2")) == ["layer1.conv2", "layer2.conv2"]
    assert names(lambda module, name: True)[0] == "stem"
    with pytest.raises(ValueError, match=r"has 2 stages, counted from 1 \(1: layer1, 2: layer2\)"):
        names(stages=(3,))
    with pytest.raises(
        ValueError, match=r"selects no convolution of SmallNet; its convolutions are: stem 3x3, layer1\.conv1 3x3"
    ):
        names(kernel_sizes=(7,))
    with pytest.raises(ValueError, match="has no convolution that can be"):
        convert(nn.Linear(2, 2))


def test_what_goes_in_by_name_or_configuration(network, images):
    linear = convert(network, "linear")
    assert all(linear.get_submodule(name).attention.config == Linear() for name in operators_in(linear))
    assert torch.equal(linear(images), network(images))
    acmix = convert(network, "acmix", stages=(2,))
    assert type(acmix.layer2.conv1) is ACmix2d
    assert type(acmix.layer1.conv1) is nn.Conv2d
    heads = convert(network, XVolutionConfig(attention=Linear(num_heads=4)), names=("layer2.*",))
    assert operators_in(heads) == ["layer2.conv1", "layer2.conv2"]
    assert heads.layer2.conv1.attention.heads == 4
    by_name = convert(network, XVolutionConfig(attention="linear"), stages=[1])
    assert by_name.layer1.conv1.attention.config == Linear()


class Padded(nn.Conv2d):
    """Computes no plain convolution: it puts ones around its image."""

    def forward(self, x):
        return super().forward(nn.functional.pad(x, (1, 1, 1, 1), value=1.0))


@pytest.mark.parametrize("first", [nn.Conv2d, Padded])
def test_the_stem_is_the_first_convolution_whatever_it_computes(first, images):
    model = nn.Sequential(first(3, 4, 3), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3)).eval()
    assert operators_in(convert(model, example_inputs=images)) == ["1", "2"]


class EncoderDecoder(nn.Module):
    """An encoder without numbered stages, and a decoder with three."""

    def __init__(self, layers):
        super().__init__()
        self.encoder = nn.Sequential(*(nn.Conv2d(4 if i else 3, 4, 3, padding=1) for i in range(layers)))
        self.decoder = nn.Module()
        self.decoder.stages = nn.ModuleList(nn.Conv2d(4, 4, 3, padding=1) for _ in range(4))

    def forward(self, x):
        x = self.encoder(x)
        for stage in self.decoder.stages:
            x = stage(x)
        return x


@pytest.mark.parametrize(("layers", "stem"), [(1, 1), (2, 2), (3, 1), (6, 1)])
def test_an_encoder_is_no_stem(layers, stem, images):
    model = EncoderDecoder(layers).eval()
    inside = [f"encoder.{index}" for index in range(stem, layers)]
    assert operators_in(convert(model, example_inputs=images)) == [*inside, *(f"decoder.stages.{i}" for i in range(4))]


def test_a_replacement_that_does_not_fit_names_the_layer(network, images):
    network.layer2.conv1 = conv_over(Geometry((3, 3), (1, 1), ((2, 0), (0, 2)), (1, 1)), 8, 8)
    with pytest.raises(ValueError, match=r"^layer2\.conv1: .* which nn.Conv2d cannot express; leave it out"):
        convert(network, "acmix", names=["layer2.conv1"], example_inputs=images)


def test_requests_that_mean_nothing_are_sentences(network):
    with pytest.raises(ValueError, match=r"stages is 3; give a list or tuple, such as \(3,\)"):
        convert(network, stages=3)
    with pytest.raises(ValueError, match=r"names is 'layer2'; give a list or tuple, such as \('layer2',\)"):
        convert(network, names="layer2")
    with pytest.raises(ValueError, match="kernel_sizes is 3; give a list"):
        convert(network, kernel_sizes=3)
    with pytest.raises(ValueError, match=r"operator is 'linaer'; allowed are .*'linear', .*'acmix'") as refusal:
        convert(network, "linaer")
    assert all(repr(name) in str(refusal.value) for name in operator_names())
    with pytest.raises(ValueError, match=r"attention is 'pssa'; allowed are 'channel_gate', .*'pixel_shift'"):
        XVolutionConfig(attention="pssa")


def test_converting_again_changes_nothing(network, images):
    once = convert(network, XVolutionConfig())
    twice = convert(once, XVolutionConfig())
    assert operators_in(twice) == operators_in(once)
    assert torch.equal(twice(images), once(images))
    more = convert(convert(network, XVolutionConfig(), stages=(1,)), XVolutionConfig())
    assert operators_in(more) == operators_in(once)
    with pytest.raises(ValueError, match="selects no convolution"):
        convert(once, names=("nonsense",))


def test_shared_modules_are_replaced_once_and_stay_shared(images):
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = Residual(3)
            self.again = self.first
            self.alone = nn.Conv2d(3, 3, 3, padding=1)
            self.alias = self.alone

        def forward(self, x):
            return self.alias(self.alone(self.again(self.first(x))))

    model = randomize(Shared()).eval()
    converted = convert(model, filter_fn=lambda module, name: True)
    assert converted.first is converted.again
    assert converted.alone is converted.alias
    assert isinstance(converted.alone, XVolution2d)
    assert torch.equal(converted(images), model(images))


def test_a_norm_with_another_reader_stays_where_it_is(images):
    class Branching(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3, padding=1)
            self.norm = nn.BatchNorm2d(3)

        def forward(self, x):
            y = self.conv(x)
            return self.norm(y) + y

    model = randomize(Branching()).eval()
    converted = convert(model, filter_fn=lambda module, name: True)
    assert isinstance(converted.conv.conv_norm, nn.Identity)
    assert isinstance(converted.norm, nn.BatchNorm2d)
    assert torch.equal(converted(images), model(images))


class Untraceable(nn.Module):
    """Control flow that torch.fx refuses; registration order that misleads: ``norm`` follows ``pre`` but reads ``post``."""

    def __init__(self):
        super().__init__()
        self.pre = nn.Conv2d(3, 3, 3, padding=1)
        self.norm = nn.BatchNorm2d(3)
        self.post = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x):
        if x.sum() > 1e9:
            return x
        return self.norm(self.post(self.pre(x).relu()))


def test_untraceable_models_are_paired_by_what_they_do(images):
    model = randomize(Untraceable()).eval()
    converted = convert(model, filter_fn=lambda module, name: True)
    assert isinstance(converted.pre.conv_norm, nn.Identity)
    assert isinstance(converted.post.conv_norm, nn.BatchNorm2d)
    assert torch.equal(converted(images), model(images))


def test_a_watched_pair_with_a_second_reader_is_dropped(images):
    class Hidden(Untraceable):
        def forward(self, x):
            if x.sum() > 1e9:
                return x
            y = self.post(x)
            return self.norm(y) + y

    model = Hidden().eval()  # fresh statistics make the norm nearly the identity; the proof must not be fooled
    converted = convert(model, filter_fn=lambda module, name: name == "post")
    assert isinstance(converted.post.conv_norm, nn.Identity)
    assert torch.equal(converted(images), model(images))


def test_a_network_that_uses_the_convolution_otherwise_is_refused():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3, padding=1)

        def forward(self, x):
            return self.conv(x) + self.conv.weight.sum()

    with pytest.raises(ConversionError, match=r"reads conv\.weight.* Leave the convolution out by names or filter_fn"):
        convert(Tied(), filter_fn=lambda module, name: True)


def test_checkpoints_of_the_plain_model_load(network, images):
    checkpoint = network.state_dict()
    converted = convert(SmallNet(), XVolutionConfig()).eval()
    missing, unexpected = converted.load_state_dict(checkpoint, strict=False)
    assert not unexpected
    assert missing
    assert all(".attention" in name for name in missing)
    assert torch.equal(converted(images), network(images))
    twin = pickle.loads(pickle.dumps(converted))
    twin.load_state_dict(copy.deepcopy(converted).state_dict())
    assert torch.equal(twin(images), converted(images))


def test_the_summary_counts(network):
    converted = convert(network, stages=(2,))
    summary = conversion_summary(converted)
    assert [row.name for row in summary.replaced] == ["layer2.conv1", "layer2.conv2"]
    assert summary.parameters_before == sum(p.numel() for p in network.parameters())
    assert summary.parameters_after == sum(p.numel() for p in converted.parameters())
    assert summary.flops_after > summary.flops_before > 0
    assert "layer2.conv1  3x3 8->8  layer2.norm1" in str(summary)
    assert "2 convolutions replaced" in str(summary)


def test_the_configuration_survives_json():
    config = XVolutionConfig(attention=PixelShift(gate="tanh", dilation=(1, 2)))
    assert XVolutionConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    conversion = Conversion(config, Placement.of([3], None, ["a.*"]))
    assert conversion_from_dict(json.loads(json.dumps(conversion.to_dict()))) == conversion
    with pytest.raises(ValueError, match="unknown fields colour"):
        XVolutionConfig.from_dict({"colour": 1})
    with pytest.raises(ValueError, match="norm_layer is 'Batch'"):
        XVolutionConfig(norm_layer="Batch")
    with pytest.raises(ValueError, match="attention of this configuration is a function"):
        XVolutionConfig(attention=lambda conv: conv).to_dict()


@pytest.mark.parametrize("source", ["torchvision", "timm"])
@pytest.mark.parametrize("name", ["resnet50"])
def test_resnets_convert_by_stage(source, name):
    models = pytest.importorskip("timm" if source == "timm" else "torchvision.models")
    torch.manual_seed(0)
    model = randomize((models.create_model if source == "timm" else models.get_model)(name)).eval()
    x = torch.randn(1, 3, 64, 64)
    converted = convert(model, stages=(3,))
    assert operators_in(converted) == [f"layer3.{block}.conv2" for block in range(6)]
    assert torch.equal(converted(x), model(x))


def test_tensorflow_padding_converts_and_deploys_exactly():
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    model = randomize(timm.create_model("tf_efficientnet_lite0")).double().eval()
    x = torch.randn(1, 3, 65, 50, dtype=torch.float64)
    converted = convert(model, kernel_sizes=(3, 5), example_inputs=x)
    kinds = {type(converted.get_submodule(name).conv).__name__ for name in operators_in(converted)}
    assert kinds == {"Conv2d", "Conv2dSame"}
    assert torch.equal(converted(x), model(x))
    for name in operators_in(converted):
        nn.init.normal_(converted.get_submodule(name).attention_norm.weight, std=0.1)
    deployed = reparameterize(converted, x, layout="single")
    assert (deployed(x) - converted(x)).abs().max() < 1e-12 * converted(x).abs().max()


@pytest.mark.parametrize(
    ("name", "stage"), [("regnety_002", "s2"), ("convnext_atto", "stages.1"), ("efficientnet_b0", "blocks.1")]
)
def test_other_timm_networks_convert_by_feature_info(name, stage):
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    model = randomize(timm.create_model(name)).eval()
    converted = convert(model, stages=(2,))
    assert operators_in(converted)
    assert all(operator.startswith(f"{stage}.") for operator in operators_in(converted))
    x = torch.randn(1, 3, 64, 64)
    assert torch.equal(converted(x), model(x))
