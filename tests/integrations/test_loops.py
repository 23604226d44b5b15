"""Training loops of others on converted networks: the page's snippets, on real pictures."""

import random
from functools import partial

import pytest
import torch
from torch import nn

from tests.integrations.pages import run
from xvolution.operator import XVolution

PAGE = "integrations/loops.md"


@pytest.fixture
def pictures(clothing, tmp_path, monkeypatch):
    """A folder ``clothing`` with a few pictures of each class, in the working directory."""
    for kind in sorted((clothing / "train").iterdir()):
        folder = tmp_path / "clothing/train" / kind.name
        folder.mkdir(parents=True)
        for picture in sorted(kind.iterdir())[:4]:
            (folder / picture.name).symlink_to(picture.resolve())
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    random.seed(0)


def learned(model):
    """Names of the operators, whose attention has come to have an effect."""
    found = {name: module for name, module in model.named_modules() if isinstance(module, XVolution)}
    for name, operator in found.items():
        assert isinstance(operator.attention_norm, nn.modules.batchnorm._BatchNorm), name
        assert operator.attention_norm.weight.abs().max() > 0, name
    return list(found)


def in_optimizer(optimizer, model):
    trained = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    return all(id(parameter) in trained for parameter in model.parameters())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_plain_loop(pictures, monkeypatch):
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))  # no minutes of code generation
    names = run(PAGE, "A plain loop")
    assert learned(names["resumed"]) == learned(names["ema"].module) != []
    assert in_optimizer(names["optimizer"], names["resumed"])
    assert list(torch.load("weights.pt")) == list(names["resumed"].state_dict())
    images, ema = names["images"], names["ema"].module
    torch.testing.assert_close(names["deployed"](images), ema(images), rtol=1e-3, atol=1e-3)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_lightning(pictures):
    pytest.importorskip("lightning")
    names = run(PAGE, "Lightning")
    assert learned(names["classifier"].model)
    assert names["second"].global_step == 4
    assert in_optimizer(names["second"].optimizers[0], names["classifier"])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_timm(pictures):
    names = run(PAGE, "timm's train.py")
    assert learned(names["resumed"]) == learned(names["model"]) == learned(names["ema"].module) != []
    assert names["epoch"] == 1
    for name, value in names["model"].state_dict().items():
        assert torch.equal(value, names["resumed"].state_dict()[name]), name
    decays = {id(p): group["weight_decay"] for group in names["optimizer"].param_groups for p in group["params"]}
    assert all(decays[id(p)] == (0.05 if p.ndim > 1 else 0.0) for p in names["resumed"].parameters())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_hugging_face_trainer(pictures):
    pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    names = run(PAGE, "Hugging Face Trainer")
    assert names["resumed"].state.global_step == 4
    assert learned(names["loaded"]) == learned(names["resumed"].model) != []
    for name, value in names["resumed"].model.state_dict().items():
        assert torch.equal(value, names["loaded"].state_dict()[name]), name


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_torchvision(pictures):
    names = run(PAGE, "torchvision's references")
    assert learned(names["model"]) == learned(names["resumed"]) == learned(names["ema"].module) != []
    assert in_optimizer(names["optimizer"], names["model"])
