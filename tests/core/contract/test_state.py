"""Weights in, weights out: copies, files, the meta device, averages, and parametrized weights, of every branch."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.checkpoint import checkpoint

from tests.core.cases import CASES, VARIANTS
from tests.core.execution import CAPTURED_FORMS, FORMS, TRAINING, build, images, layouts, network
from tests.core.networks import SmallNet, randomize
from xvolution import XVolutionConfig, convert, layouts_of, reparameterize


def fresh_network(branch, variant):
    return convert(SmallNet(), XVolutionConfig(attention=CASES[branch].variants[variant])).eval()


@pytest.mark.parametrize(("branch", "variant", "form"), FORMS)
def test_copies_and_pickles_compute_the_same(branch, variant, form):
    model, x = network(branch, variant, form), images()
    expected = model(x)
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(copied(x), expected)
        for parameter in copied.parameters():
            parameter.data.zero_()
    assert torch.equal(model(x), expected)


@pytest.mark.parametrize(("branch", "variant"), VARIANTS)
def test_state_dicts_load_into_a_fresh_operator(branch, variant):
    layer = randomize(build(branch, variant, zero_init=False)).eval()
    fresh = build(branch, variant).eval()
    fresh.load_state_dict(layer.state_dict())
    x = torch.randn(1, 8, 6, 6)
    assert torch.equal(fresh(x), layer(x))


@pytest.mark.parametrize(("branch", "variant", "form"), FORMS)
def test_safetensors_round_trip_into_a_fresh_network(branch, variant, form, tmp_path):
    files = pytest.importorskip("safetensors.torch")
    model, x = network(branch, variant, form), images()
    files.save_file(model.state_dict(), tmp_path / "model.safetensors")
    fresh = fresh_network(branch, variant)
    if form != TRAINING:
        fresh = reparameterize(fresh, layout=layouts_of(model))
    fresh.load_state_dict(files.load_file(tmp_path / "model.safetensors"))
    assert torch.equal(fresh(x), model(x))


@pytest.mark.parametrize(("branch", "variant"), VARIANTS)
def test_a_network_is_built_on_the_meta_device(branch, variant):
    with torch.device("meta"):
        model = fresh_network(branch, variant)
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    x, trained = images(), network(branch, variant, TRAINING)
    for layout in layouts(branch, variant):
        deployed = reparameterize(model, layout=layout).to_empty(device="cpu")
        filled = reparameterize(trained, layout=layout)
        deployed.load_state_dict(filled.state_dict())
        assert torch.equal(deployed(x), filled(x))
    model.to_empty(device="cpu").load_state_dict(trained.state_dict())
    assert torch.equal(model(x), trained(x))


@pytest.mark.parametrize(("branch", "variant"), VARIANTS)
def test_a_moving_average_reparameterizes(branch, variant):
    model, x = network(branch, variant, TRAINING).train(), images()
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.5), use_buffers=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
        average.update_parameters(model)
    average.eval()
    torch.testing.assert_close(reparameterize(average, x)(x), average(x), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(average(x), model.eval()(x))


@pytest.mark.parametrize("branch", CASES)
def test_a_moving_average_of_timm_reparameterizes(branch):
    utils = pytest.importorskip("timm.utils")
    model, x = network(branch, "default", TRAINING), images()
    average = utils.ModelEmaV3(model, decay=0.5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.1)
    average.update(model)
    deployed = reparameterize(average.module.eval(), x)
    torch.testing.assert_close(deployed(x), average(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("branch", "variant", "form"), CAPTURED_FORMS)
def test_activation_checkpointing_changes_no_gradient(branch, variant, form):
    model, x = network(branch, variant, form), images()
    saving = copy.deepcopy(model)
    model(x).square().sum().backward()
    y = saving.stem_norm(saving.stem(x)).relu()
    for stage in (saving.layer1, saving.layer2):
        y = checkpoint(stage, y, use_reentrant=False)
    saving.head(y.mean((2, 3))).square().sum().backward()
    for expected, actual in zip(model.parameters(), saving.parameters(), strict=True):
        torch.testing.assert_close(actual.grad, expected.grad)


class Squashed(nn.Module):
    """A parametrization that is neither linear nor one-to-one."""

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight.tanh() * weight.abs().mean((1, 2, 3), keepdim=True)


CHANGES = {
    "prune": lambda conv: prune.l1_unstructured(conv, "weight", 0.5),
    "weight_norm": parametrizations.weight_norm,
    "spectral_norm": parametrizations.spectral_norm,
    "parametrize": lambda conv: parametrize.register_parametrization(conv, "weight", Squashed()),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize(("branch", "variant"), VARIANTS)
def test_parametrized_weights_are_materialized_exactly(branch, variant, change):
    model, x = network(branch, variant, TRAINING).double(), images().double()
    parts = [name for name, module in model.layer1.conv1.named_modules() if isinstance(module, nn.Conv2d)]
    for part in parts:
        CHANGES[change](model.layer1.conv1.get_submodule(part))
    optimizer = torch.optim.SGD(model.train().parameters(), lr=0.1)
    model(x).square().mean().backward()
    optimizer.step()
    model.eval()
    for layout in layouts(branch, variant):
        deployed = reparameterize(model, x, layout=layout, rtol=1e-10)
        assert not any(parametrize.is_parametrized(module) for module in deployed.modules())
        assert not any(name.endswith(("_orig", "_mask")) for name in deployed.state_dict())
        assert layouts_of(deployed)
    assert "conv" in parts
    assert any(part.startswith("attention.") for part in parts)
