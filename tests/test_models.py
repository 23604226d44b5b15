"""The networks registered with timm, and building a network again from its description."""

from __future__ import annotations

import json

import pytest
import torch

timm = pytest.importorskip("timm")

from xvolution import XVolution2d, XVolutionConfig  # noqa: E402
from xvolution.attention import Linear  # noqa: E402
from xvolution.conversion.config import Conversion, Placement  # noqa: E402
from xvolution.models import ModelError, ModelSpec, build_model  # noqa: E402


def in_stages(*stages: int) -> dict:
    """The description of X-volution in these stages."""
    return Conversion(XVolutionConfig(), Placement(stages=stages)).to_dict()


def operators(model: torch.nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, XVolution2d)]


@pytest.mark.parametrize("depth", [18, 34, 50, 101])
def test_registered_networks_are_timms_with_the_third_stage_converted(depth: int) -> None:
    with torch.device("meta"):
        plain = timm.create_model(f"resnet{depth}")
    model = timm.create_model(f"xvolution_resnet{depth}", num_classes=10)
    blocks = {18: 2, 34: 6, 50: 6, 101: 23}[depth]
    assert len(operators(model)) == blocks * (2 if depth < 50 else 1)
    assert all(name.startswith("layer3.") for name in operators(model))
    assert model.default_cfg["mean"] == plain.default_cfg["mean"]
    assert model.num_classes == 10


def test_registered_networks_take_stages_config_and_timms_arguments() -> None:
    config = XVolutionConfig(attention=Linear(num_heads=2))
    model = timm.create_model(
        "xvolution_resnet18", num_classes=3, in_chans=1, stages=(4,), xvolution=config, layers=[1, 1, 1, 1]
    )
    assert operators(model) == ["layer4.0.conv1", "layer4.0.conv2"]
    assert model.layer4[0].conv1.attention.config == Linear(num_heads=2)
    assert model(torch.zeros(2, 1, 64, 64)).shape == (2, 3)


def test_a_converted_network_starts_as_the_plain_one() -> None:
    small = {"layers": [1, 1, 1, 1], "channels": [8, 8, 16, 32]}
    torch.manual_seed(0)
    plain = build_model(ModelSpec("resnet18", 10, kwargs=small, small_images=True)).eval()
    torch.manual_seed(0)
    xvolution = in_stages(3)
    converted = build_model(ModelSpec("resnet18", 10, kwargs=small, small_images=True, conversion=xvolution)).eval()
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(converted(x), plain(x))


def test_a_description_builds_the_same_network_again() -> None:
    spec = ModelSpec("xvolution_resnet18", 7, kwargs={"layers": [1, 1, 1, 1]}, conversion=in_stages(2))
    again = ModelSpec.from_dict(json.loads(json.dumps(spec.to_dict())))
    assert again == spec
    a, b = build_model(spec), build_model(again)
    assert {k: v.shape for k, v in a.state_dict().items()} == {k: v.shape for k, v in b.state_dict().items()}


def test_the_small_image_stem_keeps_the_resolution() -> None:
    model = build_model(ModelSpec("resnet18", 10, small_images=True))
    assert model.conv1.stride == (1, 1)
    assert model.forward_features(torch.zeros(1, 3, 32, 32)).shape == (1, 512, 4, 4)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (ModelSpec("resnet1850", 10), "timm knows no model"),
        (ModelSpec("resnet18", 10, kwargs={"depth": 3}), "cannot build"),
        (ModelSpec("vgg11", 10, small_images=True), "VGG does not have"),
        (ModelSpec("xvolution_resnet18", 10), "the plain one is called resnet18"),
        (ModelSpec("resnet18", 10, conversion=in_stages(9)), "cannot be converted"),
    ],
    ids=lambda value: value if isinstance(value, str) else value.name,
)
def test_what_cannot_be_built_says_why(spec: ModelSpec, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        build_model(spec)


def test_no_weights_of_these_networks_are_promised_and_the_plain_ones_are_loaded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert timm.list_models("xvolution*", pretrained=True) == []
    assert len(timm.list_models("xvolution*")) == 4
    from xvolution.models import resnet

    asked = []

    def plain(pretrained: bool = False, **kwargs: object) -> torch.nn.Module:
        asked.append(pretrained)
        return timm.create_model("resnet18", **kwargs)

    monkeypatch.setitem(resnet._PLAIN, "resnet18", plain)
    timm.create_model("xvolution_resnet18", pretrained=True, layers=[1, 1, 1, 1])
    assert asked == [True]
