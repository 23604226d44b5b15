"""Weights in, weights out: copies, files, the meta device, and parametrized weights on every branch."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

from tests.core.execution import BRANCHES, FORMS, images, network
from tests.core.networks import SmallNet, randomize
from xvolution import XVolutionConfig, convert, layouts_of, reparameterize
from xvolution.deploy import unfolded_of

LAYOUTS = ("single", "split")


@pytest.mark.parametrize(("branch", "form"), FORMS)
def test_copies_and_pickles_compute_the_same(branch, form):
    model, x = network(branch, form), images()
    expected = model(x)
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(copied(x), expected)
        for parameter in copied.parameters():
            parameter.data.zero_()
    assert torch.equal(model(x), expected)


@pytest.mark.parametrize(("branch", "form"), FORMS)
def test_safetensors_round_trip_into_a_fresh_network(branch, form, tmp_path):
    files = pytest.importorskip("safetensors.torch")
    model, x = network(branch, form), images()
    files.save_file(model.state_dict(), tmp_path / "model.safetensors")
    fresh = convert(SmallNet(), XVolutionConfig(**BRANCHES[branch])).eval()
    if form != "training":
        fresh = reparameterize(fresh, layout=layouts_of(model))
    fresh.load_state_dict(files.load_file(tmp_path / "model.safetensors"))
    assert torch.equal(fresh(x), model(x))


@pytest.mark.parametrize("branch", BRANCHES)
def test_a_network_is_built_on_the_meta_device(branch):
    with torch.device("meta"):
        model = convert(SmallNet(), XVolutionConfig(**BRANCHES[branch])).eval()
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    x, trained = images(), network(branch, "training")
    for layout in LAYOUTS:
        deployed = reparameterize(model, layout=layout).to_empty(device="cpu")
        filled = reparameterize(trained, layout=layout)
        deployed.load_state_dict(filled.state_dict())
        assert torch.equal(deployed(x), filled(x))
    model.to_empty(device="cpu").load_state_dict(trained.state_dict())
    assert torch.equal(model(x), trained(x))


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
@pytest.mark.parametrize("branch", BRANCHES)
def test_parametrized_weights_are_materialized_exactly(branch, change):
    model, x = network(branch, "training").double(), images().double()
    parts = [name for name, module in model.layer1.conv1.named_modules() if isinstance(module, nn.Conv2d)]
    for part in parts:
        CHANGES[change](model.layer1.conv1.get_submodule(part))
    optimizer = torch.optim.SGD(model.train().parameters(), lr=0.1)
    model(x).square().mean().backward()
    optimizer.step()
    model.eval()
    for layout in LAYOUTS:
        deployed = reparameterize(model, x, layout=layout, rtol=1e-10)
        assert not any(parametrize.is_parametrized(module) for module in deployed.modules())
        assert not any(name.endswith(("_orig", "_mask")) for name in deployed.state_dict())
        assert layouts_of(deployed)
    assert len(parts) >= 3


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("norm", ["group", "layer", "none"])
@pytest.mark.parametrize("branch", BRANCHES)
def test_norms_that_cannot_fold_stay(branch, norm, layout):
    layers = pytest.importorskip("timm.layers")
    norm_layer = {"group": lambda channels: nn.GroupNorm(2, channels), "layer": layers.LayerNorm2d, "none": None}[norm]
    options = {**BRANCHES[branch], "norm_layer": norm_layer, "zero_init": False}
    if branch == "pssa":
        options |= {"query_norm": norm != "none", "window_norm": norm != "none"}
    plain = SmallNet()
    for stage in (plain.layer1, plain.layer2):
        stage.norm1 = stage.norm2 = nn.Identity() if norm_layer is None else norm_layer(8)
    model = randomize(convert(plain, XVolutionConfig(**options))).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.rand_like(parameter))
    x = images().double()
    deployed = reparameterize(model, x, layout=layout, rtol=1e-11, atol=1e-11)
    kept = {name.split(".")[-1] for name in unfolded_of(deployed) if name.startswith("layer1.conv1.")}
    expected = {"attention_norm"} | ({"query_norm", "window_norm"} if branch == "pssa" else set())
    assert kept == (set() if norm == "none" else expected)
