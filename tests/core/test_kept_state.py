"""What hangs on modules that a conversion moves or replaces is kept, and code that reads what is gone gets a sentence."""

import pytest
import torch
from torch import nn

from tests.core.networks import Residual, SmallNet, randomize
from xvolution import ConversionError, OperatorConfig, XVolution2d, XVolutionConfig, convert, reparameterize


def images():
    return torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def recorded(module, log):
    module.register_forward_hook(lambda module, args, output: log.append(output.detach().clone()))


@pytest.mark.parametrize("on", ["layer1.conv1", "layer1.norm1", "layer1"])
def test_hooks_on_what_moves_see_what_they_saw(on):
    torch.manual_seed(0)
    model, before, after = randomize(SmallNet()).eval(), [], []
    recorded(model.get_submodule(on), before)
    expected = model(images())
    converted = convert(model, verify=False)
    moved = {"layer1.conv1": "layer1.conv1.conv", "layer1.norm1": "layer1.conv1.conv_norm"}.get(on, on)
    recorded(converted.get_submodule(moved), after)
    seen = len(before)
    assert torch.equal(converted(images()), expected)
    assert torch.equal(before[0], after[0])
    assert len(before) == seen + 1


@pytest.mark.parametrize(
    "config",
    [OperatorConfig(operator="acmix"), OperatorConfig(operator="conv", kernel_size=5), XVolutionConfig(kernel_size=5)],
)
def test_hooks_on_what_is_replaced_go_to_the_replacement(config):
    model, log = SmallNet(), []
    recorded(model.layer1.conv1, log)
    model.layer1.conv1.register_forward_pre_hook(lambda module, args: (0 * args[0],))
    converted = convert(model, config, verify=False)
    log.clear()
    converted(images())
    assert len(log) == 1


class WithActivation(nn.Module):
    """A convolution and timm's norm with activation."""

    def __init__(self):
        super().__init__()
        layers = pytest.importorskip("timm").layers
        self.stem, self.conv = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, padding=1)
        self.norm = layers.BatchNormAct2d(8)

    def forward(self, x):
        return self.norm(self.conv(self.stem(x)))


@pytest.mark.parametrize("hooked", [False, True])
def test_a_norm_with_activation_that_is_hooked_stays_whole(hooked):
    torch.manual_seed(0)
    model, log = randomize(WithActivation()).eval(), []
    if hooked:
        recorded(model.norm, log)
    converted = convert(model, names=["conv"])
    assert isinstance(converted.conv.conv_norm, nn.Identity if hooked else nn.BatchNorm2d)
    log.clear()
    y = converted(images())
    assert torch.equal(y, model(images()))
    assert len(log) == (2 if hooked else 0)
    assert all(torch.equal(seen, y) for seen in log)


def test_what_stands_in_the_place_of_a_norm_is_one_that_changes_nothing():
    converted = randomize(convert(SmallNet())).eval()
    deployed = reparameterize(converted)
    for net in (converted, deployed):
        left = net.layer1.norm1
        assert isinstance(left, nn.Identity)
        assert torch.equal(left.weight, torch.ones(left.num_features))
        assert torch.equal(left.running_var + left.eps, torch.ones(left.num_features))
        assert not left.bias.any()
        assert not left.running_mean.any()
        for missing in (left, net.layer1.conv1):
            with pytest.raises(AttributeError, match=r"no attribute 'other'$"):
                _ = missing.other


class MergesItself(Residual):
    """Folds its norms into its convolutions, as networks that re-parameterize themselves do."""

    def reparameterize(self):
        for conv, norm in ((self.conv1, self.norm1), (self.conv2, self.norm2)):
            scale = norm.weight / (norm.running_var + norm.eps).sqrt()
            conv.weight.data *= scale.reshape(-1, 1, 1, 1)


class AddsKernels(Residual):
    """Merges two convolutions into one, as networks with parallel branches do."""

    def reparameterize(self):
        self.conv1.weight.data += self.conv2.weight.data


@pytest.mark.parametrize("deployed", [False, True])
def test_networks_that_merge_themselves_keep_their_operators(deployed):
    timm = pytest.importorskip("timm")
    model = randomize(nn.Sequential(nn.Conv2d(3, 8, 3), MergesItself(8))).eval()
    converted = randomize(convert(model)).eval()
    assert isinstance(converted[1].conv1, XVolution2d)
    merged = timm.utils.reparameterize_model(reparameterize(converted) if deployed else converted)
    x = images()
    torch.testing.assert_close(merged(x), converted(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("deployed", [False, True])
def test_networks_that_add_kernels_get_a_sentence_from_timm(deployed):
    timm = pytest.importorskip("timm")
    converted = convert(nn.Sequential(nn.Conv2d(3, 8, 3), AddsKernels(8)).eval())
    with pytest.raises(ConversionError, match=r"if the network merges its layers itself .* do that before convert"):
        timm.utils.reparameterize_model(reparameterize(converted) if deployed else converted)


class LowRank(nn.Module):
    """Wraps a layer as LoRA does."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer
        self.scale = nn.Parameter(torch.ones(1, dtype=layer.weight.dtype))

    def forward(self, x):
        return self.layer(x) * self.scale.to(self.layer.weight.dtype)


def test_a_wrapper_that_reads_the_weight_of_what_it_wraps():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), LowRank(nn.Conv2d(8, 8, 3))).eval()
    converted = convert(model)
    assert isinstance(converted[1].layer, XVolution2d)
    assert torch.equal(converted(images()), model(images()))
    torch.testing.assert_close(reparameterize(converted)(images()), model(images()))
    assert LowRank(XVolution2d(3, 8, 3, dtype=torch.float64)).scale.dtype == torch.float64
