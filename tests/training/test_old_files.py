"""What older versions wrote is read by this one: see `tests/files/README.md`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from xvolution import XVolution2d
from xvolution.conversion.register import conversion_from_dict
from xvolution.conversion.upgrade import upgrade_conversion
from xvolution.models.detection import build_detector
from xvolution.training import TrainConfig, deploy, evaluate, load_model, train
from xvolution.training.detection.metadata import DetectorMetadata

FORMAT1 = Path(__file__).parents[1] / "files" / "format1"
MODELS = ["default", "shared"]
CONVERSIONS = json.loads((FORMAT1 / "conversions.json").read_text())


def stored(model: str) -> tuple[torch.Tensor, torch.Tensor]:
    """(4, 3, 16, 16) images and (4, 10) logits."""
    tensors = load_file(FORMAT1 / "predictions.safetensors")
    return tensors[f"{model}.images"], tensors[f"{model}.logits"]


def assert_answers_as_stored(network: nn.Module, model: str) -> None:
    images, logits = stored(model)
    with torch.inference_mode():
        torch.testing.assert_close(network(images), logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize("file", ["model.safetensors", "last.ckpt", "split.safetensors"])
@pytest.mark.parametrize("model", MODELS)
def test_a_classifier_answers_as_it_did(model: str, file: str) -> None:
    network, metadata = load_model(FORMAT1 / model / file)
    assert_answers_as_stored(network, model)
    assert metadata.form == ("deployed" if file == "split.safetensors" else "training")
    assert set(metadata.layouts.values()) == ({"split"} if metadata.form == "deployed" else set())
    torch.testing.assert_close(metadata.example_images(batch_size=4), stored(model)[0])


@pytest.mark.parametrize("file", ["model.safetensors", "last.ckpt", "split.safetensors"])
@pytest.mark.parametrize("model", MODELS)
def test_a_classifier_is_judged_as_it_was(model: str, file: str) -> None:
    result = evaluate(FORMAT1 / model / file, workers=0, device="cpu")
    checkpoint = torch.load(FORMAT1 / model / "last.ckpt", weights_only=True)
    row = checkpoint["history"][-1]
    assert result.images == 359
    assert result.top1 == pytest.approx(row["val_top1"], abs=1 / 359)
    assert result.loss == pytest.approx(row["val_loss"], rel=1e-4)


@pytest.mark.parametrize("layout", ["single", "split"])
@pytest.mark.parametrize("model", MODELS)
def test_the_training_form_deploys(model: str, layout: str, tmp_path: Path) -> None:
    path = tmp_path / "deployed.safetensors"
    deploy(FORMAT1 / model / "model.safetensors", [path], layout=layout)
    network, metadata = load_model(path)
    assert set(metadata.layouts.values()) == {layout}
    assert_answers_as_stored(network, model)


@pytest.mark.parametrize("model", MODELS)
def test_the_configuration_of_a_run_is_read(model: str) -> None:
    config = TrainConfig.from_dict(json.loads((FORMAT1 / model / "config.json").read_text()))
    assert (config.model, config.data, config.epochs, config.lr) == ("resnet18", "digits", 1, 0.1)
    assert config.stages == [3]
    assert config.operator == ("gated_depthwise" if model == "shared" else "pixel_shift")
    assert config.conversion is not None


def test_a_run_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    settings = json.loads((FORMAT1 / "default" / "config.json").read_text())
    settings |= {"epochs": 2, "resume": str(FORMAT1 / "default" / "last.ckpt"), "output": str(tmp_path / "run")}
    result = train(TrainConfig.from_dict(settings))
    assert [row["epoch"] for row in result.history] == [1, 2]


@pytest.mark.parametrize("entry", CONVERSIONS, ids=range(len(CONVERSIONS)))
def test_a_conversion_builds_the_same_parameters(entry: dict[str, Any]) -> None:
    conversion = conversion_from_dict(upgrade_conversion(entry["values"]) or {})
    operator = conversion.operator.replacement(nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16))
    found = sorted([name, list(tensor.shape)] for name, tensor in operator.state_dict().items())
    assert found == entry["parameters"]


def test_a_detector_is_built_from_its_metadata() -> None:
    metadata = DetectorMetadata.from_dict(json.loads((FORMAT1 / "detector.json").read_text()))
    assert (metadata.class_names, metadata.category_ids) == (["cat", "dog"], [1, 2])
    detector = build_detector(metadata.model)
    converted = [name for name, module in detector.named_modules() if isinstance(module, XVolution2d)]
    assert {name.split(".")[1] for name in converted} == {"body", "fpn"}
