"""Converted models, saved and loaded through each library's own functions; the page's snippets."""

import copy
import pickle

import pytest
import torch
from torch import nn

from tests.core.networks import SmallNet, randomize
from tests.integrations.pages import run
from xvolution import XVolutionConfig, reparameterize
from xvolution.integrations.hub import convert_pretrained, converted_class
from xvolution.operator import XVolution

hub = pytest.importorskip("huggingface_hub", reason="the extra hub is not installed")

PAGE = "integrations/saving.md"
SECTIONS = {
    "transformers": "transformers",
    "segmentation_models_pytorch": "segmentation_models_pytorch",
    "diffusers": "diffusers",
    "monai": "MONAI and networks of your own",
    "timm": "timm",
}


def operators(model):
    return [name for name, module in model.named_modules() if isinstance(module, XVolution)]


class HubNet(SmallNet, hub.PyTorchModelHubMixin):
    """A network of one's own with a configuration."""

    def __init__(self, scale=1.0):
        super().__init__()
        self.scale = scale

    def forward(self, x):
        return self.scale * super().forward(x)


@pytest.fixture
def images():
    return torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("library", SECTIONS)
def test_the_page(library, tmp_path, monkeypatch):
    pytest.importorskip(library)
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    with torch.no_grad():
        names = run(PAGE, SECTIONS[library])
    assert operators(names["loaded"]) == operators(names["converted"]) != []
    assert not any(tensor.is_meta for tensor in names["loaded"].buffers())


def test_arguments_and_conversion_come_back(images, tmp_path):
    torch.manual_seed(0)
    model = randomize(HubNet(scale=3.0)).eval()
    converted = randomize(convert_pretrained(model, XVolutionConfig(num_conv_branches=2), stages=(1,)), seed=2).eval()
    expected = converted(images)
    converted.save_pretrained(tmp_path)
    for cls in (converted_class(HubNet), type(converted)):
        loaded = cls.from_pretrained(tmp_path).eval()
        assert operators(loaded) == operators(converted) == ["layer1.conv1", "layer1.conv2"]
        assert torch.equal(loaded(images), expected)
    torch.testing.assert_close(reparameterize(loaded)(images), expected, rtol=1e-4, atol=1e-4)
    loaded.save_pretrained(tmp_path / "again")
    assert torch.equal(type(loaded).from_pretrained(tmp_path / "again").eval()(images), expected)
    assert not operators(HubNet(scale=2.0))
    assert isinstance(loaded, HubNet)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_and_pickles(copied, images):
    converted = randomize(convert_pretrained(HubNet().eval())).eval()
    twin = copied(converted)
    assert type(twin) is type(converted)
    assert torch.equal(twin(images), converted(images))


def test_a_converted_model_takes_weights_from_before(images):
    torch.manual_seed(0)
    model = randomize(HubNet()).eval()
    converted = convert_pretrained(HubNet().eval())
    converted.load_state_dict(model.state_dict(), strict=False)
    assert torch.equal(converted(images), model(images))


def test_what_cannot_be_kept_is_said():
    with pytest.raises(
        TypeError, match=r"SmallNet has no stored configuration.*class Mine\(SmallNet, PyTorchModelHubMixin\)"
    ):
        convert_pretrained(SmallNet().eval())
    with pytest.raises(ValueError, match="is already converted"):
        convert_pretrained(convert_pretrained(HubNet().eval()))
    with pytest.raises(ValueError, match="is a function, which cannot be stored"):
        convert_pretrained(HubNet().eval(), XVolutionConfig(norm_layer=lambda channels: nn.GroupNorm(2, channels)))
    cls = converted_class(HubNet)
    recipe = {"operator": XVolutionConfig().to_dict(), "norms": {"layer9.conv1": None}}
    with pytest.raises(ValueError, match=r"ConvertedHubNet has no module layer9\.conv1"):
        cls(xvolution=recipe)
