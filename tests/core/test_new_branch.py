"""A branch is one file: ``tests/toy_branch.py`` is registered, and with nothing else changed it goes all the way."""

import json

import pytest
import torch
from torch import nn

from tests.core.execution import relative_error
from tests.core.networks import randomize
from tests.toy_branch import NAME, ToyAverage, ToyAverageAttention, registered
from xvolution import (
    XVolution2d,
    XVolutionConfig,
    conversion_summary,
    convert,
    dynamic_kernel,
    export,
    layouts_of,
    reparameterize,
)
from xvolution.attention import ATTENTION, attention_config
from xvolution.attention.folded import LayoutError
from xvolution.attention.reference import windows
from xvolution.conversion.register import config_from_dict, operator_config, operator_names, options_of, summary_of

CONFIG = ToyAverage(window=5, sharpness=2.0)


@pytest.fixture(autouse=True)
def _registered():
    assert NAME not in ATTENTION
    with registered():
        yield
    assert NAME not in ATTENTION


@pytest.fixture
def resnet():
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    return randomize(timm.create_model("resnet18", num_classes=5)).eval()


def trained(model):
    """One step of training, from zero_init."""
    optimizer = torch.optim.SGD(model.train().parameters(), lr=0.1)
    loss = nn.functional.cross_entropy(model(torch.randn(4, 3, 64, 64)), torch.tensor([0, 1, 2, 3]))
    loss.backward()
    gradients = [p.grad for m in model.modules() if isinstance(m, ToyAverageAttention) for p in m.parameters()]
    assert gradients
    assert all(gradient is not None and torch.isfinite(gradient).all() for gradient in gradients)
    optimizer.step()
    return randomize(model.eval(), 1)


def test_its_name_and_options_are_known_everywhere():
    assert NAME in operator_names()
    assert attention_config(NAME) == ToyAverage()
    assert attention_config(json.loads(json.dumps(CONFIG.to_dict()))) == CONFIG
    chosen = operator_config(NAME, {"window": 5, "sharpness": 2.0, "zero_init": False})
    assert chosen == XVolutionConfig(attention=CONFIG, zero_init=False)
    assert config_from_dict(json.loads(json.dumps(chosen.to_dict()))) == chosen
    assert {"window", "sharpness", "num_conv_branches"} <= {option.name for option in options_of(NAME)}
    assert summary_of(NAME) == "The average of a window of values, weighed at every pixel by a query."
    with pytest.raises(ValueError, match="'toy_average' does not take num_heads; its options are window, sharpness"):
        attention_config({"type": NAME, "num_heads": 2})
    with pytest.raises(ValueError, match="an attention branch called 'toy_average' is registered already"):
        registered().__enter__()


def test_a_network_is_converted_trained_and_deployed(resnet):
    x = torch.randn(2, 3, 64, 64)
    model = convert(resnet, NAME, stages=(1, 4))
    assert torch.equal(model(x), resnet(x))
    summary = conversion_summary(model)
    model = trained(model)
    names = {name for name, module in model.named_modules() if isinstance(module, XVolution2d)}
    assert len(names) == 8
    assert names == {replaced.name for replaced in summary.replaced}
    wide = model.double()
    for layout in ("single", "split"):
        deployed = reparameterize(wide, x.double(), layout=layout, rtol=1e-11)
        assert layouts_of(deployed) == dict.fromkeys(names, layout)
        assert relative_error(wide(x.double()), deployed(x.double())) <= 1e-11
    with pytest.raises(LayoutError, match="it has 'split', 'single'"):
        reparameterize(model, layout="merged")


def test_a_deployed_network_is_exported(resnet, tmp_path):
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    model = randomize(convert(resnet, NAME, names=("layer2.1.*",))).eval()
    report = export(reparameterize(model, layout="single"), tmp_path / "model.onnx", torch.randn(1, 3, 64, 64))
    assert report.dynamic == "batch and image size"
    assert report.relative_error <= 1e-4


@pytest.mark.parametrize("config", [ToyAverage(), CONFIG], ids=["default", "options"])
@pytest.mark.parametrize("groups", [1, 2])
def test_an_operator_is_exact_and_has_a_kernel_at_a_pixel(config, groups):
    torch.manual_seed(0)
    place = {"stride": 2, "padding": 1, "groups": groups}
    operator = randomize(XVolution2d(8, 16, 3, **place, attention=config, zero_init=False)).double().eval()
    x = torch.randn(2, 8, 9, 10, dtype=torch.float64)
    y = operator(x)
    for layout in ("single", "split"):
        assert relative_error(y, reparameterize(operator, layout=layout)(x)) <= 1e-12
    side = 3 if config.window is None else config.window
    patches = windows(nn.functional.pad(x, (side // 2,) * 4), (side, side), (2, 2), (1, 1)).flatten(3)
    for row, column in ((0, 0), (2, 3), (4, 4)):
        kernel, bias = dynamic_kernel(operator, x, (row, column), return_bias=True)
        assert kernel.shape == (2, 16, 8 // groups, side, side)
        patch = patches[..., row * y.shape[3] + column].unflatten(1, (groups, -1))
        product = torch.einsum("ngit,ngoit->ngo", patch, kernel.flatten(3).unflatten(1, (groups, -1))).flatten(1)
        torch.testing.assert_close(product + bias, y[:, :, row, column])
