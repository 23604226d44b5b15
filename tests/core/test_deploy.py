"""Whole networks are re-parameterized: in which layout, with which norms, and what is said when it fails."""

import pytest
import torch
from torch import nn

from tests.core.execution import relative_error
from tests.core.networks import SmallNet, randomize
from xvolution import ReparameterizationError, XVolution2d, XVolutionConfig, convert, layouts_of, reparameterize
from xvolution import operator as deploying
from xvolution.attention import PixelShift
from xvolution.attention.folded import LayoutError

CONFIG = XVolutionConfig(attention=PixelShift(gate="tanh", window_norm=True))


@pytest.fixture
def network():
    torch.manual_seed(0)
    return randomize(convert(SmallNet(), CONFIG)).eval()


@pytest.fixture
def images():
    return torch.randn(2, 3, 16, 16)


@pytest.mark.parametrize("layout", ["auto", "single", "split", "parts"])
def test_networks_reparameterize(network, images, layout):
    deployed = reparameterize(network, images, layout=layout)
    assert relative_error(network(images), deployed(images)) <= 1e-5
    assert not any(isinstance(module, XVolution2d) for module in deployed.modules())
    assert any(isinstance(module, XVolution2d) for module in network.modules())
    assert set(layouts_of(deployed)) == {"layer1.conv1", "layer1.conv2", "layer2.conv1", "layer2.conv2"}
    assert isinstance(deployed.stem_norm, nn.BatchNorm2d)


@pytest.mark.parametrize("with_example", [True, False])
def test_other_norms_fold_on_request(network, images, with_example):
    deployed = reparameterize(network, images if with_example else None, fold_norms=True)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in deployed.modules())
    assert not any(module.training for module in deployed.modules())
    assert relative_error(network(images), deployed(images)) <= 1e-5


def test_a_deployed_state_dict_loads_into_a_freshly_built_deployed_model(network, images):
    deployed = reparameterize(network, images)
    fresh = convert(SmallNet(), CONFIG).eval()
    fresh = reparameterize(fresh, layout=layouts_of(deployed))
    fresh.load_state_dict(deployed.state_dict())
    assert torch.equal(fresh(images), deployed(images))


def test_timm_reparameterizes_as_we_do(network, images):
    timm = pytest.importorskip("timm")
    deployed = timm.utils.reparameterize_model(network)
    assert not any(isinstance(module, XVolution2d) for module in deployed.modules())
    assert relative_error(network(images), deployed(images)) <= 1e-5
    with pytest.raises(ReparameterizationError, match=r"call model\.eval"):
        timm.utils.reparameterize_model(network.train())


def test_train_mode_is_refused_anywhere_in_the_model(network):
    network.layer2.conv1.attention_norm.train()
    with pytest.raises(
        ReparameterizationError, match=r"layer2\.conv1\.attention_norm is in train mode.*call model\.eval"
    ):
        reparameterize(network)


def test_unknown_layouts_are_refused(network):
    sentence = r"layer1\.conv1: it has no layout 'fast'; it has 'split', 'parts', 'single'; give one of these layouts, or 'auto'"
    with pytest.raises(LayoutError, match=sentence):
        reparameterize(network, layout="fast")
    with pytest.raises(ValueError, match=r"no entry for layer1\.conv1"):
        reparameterize(network, layout={})


def test_each_operator_can_have_a_layout_of_its_own(network, images):
    names = ("layer1.conv1", "layer1.conv2", "layer2.conv1", "layer2.conv2")
    wanted = dict(zip(names, ("single", "split", "parts", "single"), strict=True))
    deployed = reparameterize(network, images, layout=wanted)
    assert layouts_of(deployed) == wanted
    assert relative_error(network(images), deployed(images)) <= 1e-5


def test_a_failure_in_place_leaves_the_model_as_it_was(network, images):
    expected, modules = network(images), dict(network.named_modules())
    with pytest.raises(LayoutError):
        reparameterize(
            network, images, layout={**dict.fromkeys(modules, "split"), "layer2.conv2": "fast"}, inplace=True
        )
    assert dict(network.named_modules()) == modules
    assert torch.equal(network(images), expected)
    assert reparameterize(network, images, inplace=True) is network
    assert relative_error(expected, network(images)) <= 1e-5


class Amplifies(nn.Module):
    """Makes more of rounding than a comparison of outputs allows."""

    def __init__(self, single=False):
        super().__init__()
        self.body, self.single = SmallNet(), single

    def forward(self, x):
        y = self.body(x.float() if self.single else x)
        return (1e5 * y).sin()


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("layout", ["auto", "split", "parts"])
def test_networks_that_make_much_of_rounding_are_compared_in_fp64(images, layout, inplace):
    torch.manual_seed(0)
    network = randomize(convert(Amplifies(), CONFIG), 1).eval()
    expected = network(images)
    deployed = reparameterize(network, images, layout=layout, fold_norms=True, inplace=inplace)
    assert (deployed is network) == inplace
    assert not any(isinstance(module, XVolution2d | nn.BatchNorm2d) for module in deployed.modules())
    assert relative_error(expected, deployed(images)) > 1e-4
    assert all(parameter.dtype == torch.float32 for parameter in deployed.parameters())


def test_a_network_that_cannot_be_run_in_fp64_is_told_of_rtol(images):
    network = randomize(convert(Amplifies(single=True), CONFIG), 1).eval()
    before = dict(network.named_modules())
    for inplace in (False, True):
        with pytest.raises(ReparameterizationError, match=r"differs from the trained one .* give a larger rtol"):
            reparameterize(network, images, inplace=inplace)
    assert dict(network.named_modules()) == before
    assert reparameterize(network, images, rtol=3) is not network
    with pytest.raises(ReparameterizationError, match="allowed 1e-09"):
        reparameterize(network, images, rtol=1e-9, atol=0)


def test_a_network_that_asks_for_the_class_of_its_operators_is_refused(images):
    class Asks(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = SmallNet()

        def forward(self, x):
            return self.body(x) + 0.01 * isinstance(self.body.layer2.conv1, XVolution2d)

    network = randomize(convert(Asks(), CONFIG, verify=False)).eval()
    with pytest.raises(ReparameterizationError, match=r"; in fp64 by .*it checks their class"):
        reparameterize(network, images)


class Draws(nn.Module):
    """Dropout in eval mode too."""

    def __init__(self):
        super().__init__()
        self.body = SmallNet()

    def forward(self, x):
        return nn.functional.dropout(self.body(x), 0.5, training=True)


def test_a_network_that_draws_random_numbers_is_recognized(images):
    network = randomize(convert(Draws(), CONFIG)).eval()
    with pytest.warns(UserWarning, match=r"Draws draws random numbers in eval mode.*each operator was"):
        deployed = reparameterize(network, images)
    assert layouts_of(deployed)


def test_an_operator_that_differs_is_named_where_the_network_hides_it(network, images, monkeypatch):
    class Hides(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = network

        def forward(self, x):
            return x.mean() + 1e-9 * self.body(x)

    fold_right = deploying.fold

    def fold_wrong(operator):
        folded = fold_right(operator)
        folded.convolution.bias += 0.01
        return folded

    monkeypatch.setattr(deploying, "fold", fold_wrong)
    monkeypatch.setattr(deploying, "require_exact", lambda *_: None)
    with pytest.raises(ReparameterizationError, match=r"the first module that differs is body\.layer1\.conv1: its dep"):
        reparameterize(Hides().eval(), images)


def test_the_first_module_that_differs_is_named(network, images, monkeypatch):
    broken, fold_right = network.layer1.conv2, deploying.fold

    def fold_wrong(operator):
        folded = fold_right(operator)
        if torch.equal(operator.conv.weight.float(), broken.conv.weight):
            folded.convolution.bias += 1
        return folded

    monkeypatch.setattr(deploying, "fold", fold_wrong)
    with pytest.raises(
        ReparameterizationError, match=r"^layer1\.conv2: the operator does not compute the same as its dep"
    ):
        reparameterize(network)
    monkeypatch.setattr(deploying, "require_exact", lambda *_: None)
    with pytest.raises(ReparameterizationError, match=r"first module that differs is layer1\.conv2"):
        reparameterize(network, images)
