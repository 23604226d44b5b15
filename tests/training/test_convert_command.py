"""`xvolution convert` stores what it was given, converted; `train --weights` begins with that, or with plain weights."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file

from tests.training.conftest import TINY
from xvolution import XVolution2d
from xvolution.cli import main
from xvolution.conversion.register import operator_config, operator_names
from xvolution.models import ModelSpec, build_model
from xvolution.training import InputError, TrainConfig, deploy, evaluate, load_model, train
from xvolution.training.classification.weights import build_from
from xvolution.training.commands import parse_run
from xvolution.training.converting import convert_network
from xvolution.training.fit import TrainResult

NARROW = {"layers": [1, 1, 1, 1], "channels": [8, 8, 16, 32]}
#: How a small network is built by name.
SMALL = [
    "--model-kwargs",
    '{"layers": [1, 1, 1, 1], "channels": [8, 8, 16, 32]}',
    "--small-images",
    "--image-size",
    "16",
]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> TrainResult:
    output = str(tmp_path_factory.mktemp("plain") / "run")
    return train(TrainConfig(**{**TINY, "epochs": 1}, output=output, operator="conv"))


@pytest.fixture(scope="module")
def converted(plain: TrainResult) -> Path:
    path = plain.run_dir / "converted.safetensors"
    assert main(["convert", str(plain.weights), "--output", str(path), "--stages", "[2, 3]", "--gate", "tanh"]) == 0
    return path


def test_a_checkpoint_answers_as_before_and_is_read_by_evaluate_and_deploy(
    plain: TrainResult, converted: Path, tmp_path: Path
) -> None:
    before, described = load_model(plain.weights)
    after, metadata = load_model(converted)
    operators = [name for name, module in after.named_modules() if isinstance(module, XVolution2d)]
    assert operators == ["layer2.0.conv1", "layer2.0.conv2", "layer3.0.conv1", "layer3.0.conv2"]
    assert after.get_submodule("layer2.0.conv1").attention.config.gate == "tanh"
    images = torch.randn(4, 3, 16, 16)
    torch.testing.assert_close(after(images), before(images), rtol=1e-5, atol=1e-5)
    assert (metadata.class_names, metadata.data) == (described.class_names, described.data)
    assert metadata.preprocessing == described.preprocessing
    assert evaluate(converted).top1 == evaluate(plain.weights).top1
    deployed = tmp_path / "deployed.safetensors"
    assert "attention hardly contributes yet" in str(deploy(converted, [deployed], layout="split"))
    torch.testing.assert_close(load_model(deployed)[0](images), before(images), rtol=1e-4, atol=1e-4)


def test_the_command_says_how_to_train_it_and_that_training_begins_there(
    plain: TrainResult, converted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "again.safetensors"
    capsys.readouterr()
    assert main(["convert", str(plain.weights), "--output", str(path), "--stages", "[2, 3]", "--gate", "tanh"]) == 0
    printed = capsys.readouterr().out
    assert "4 convolutions replaced; outputs before and after differ by" in printed
    assert re.search(r"layer1\.0\.conv1 +3x3 64->8 +outside of the stages 2, 3\n", printed)
    command = shlex.split(printed.splitlines()[-1].removeprefix("train it: "))
    assert command[:2] == ["xvolution", "train"]
    flags = ["--data", "digits", "--lr", "1e-9", "--epochs", "1", "--limit-train-batches", "1", "--accelerator", "cpu"]
    config = parse_run([*command[2:-2], *flags, "--output", str(tmp_path / "run"), "--progress", "off"])
    assert isinstance(config, TrainConfig)
    assert (config.weights, config.stages, config.small_images, config.image_size) == (str(path), [2, 3], True, 16)
    result = train(config)
    assert f"starts from the weights of {path}\n" in capsys.readouterr().out
    began, now = load_model(path)[0].state_dict(), load_model(result.weights)[0].state_dict()
    for name in ("conv1.weight", "layer2.0.conv1.attention.value.weight", "fc.weight"):
        torch.testing.assert_close(now[name], began[name], rtol=0, atol=1e-6)


def test_a_network_by_name_is_built_and_stored(tmp_path: Path) -> None:
    path = tmp_path / "named.safetensors"
    flags = ["--no-pretrained", "--num-classes", "7", "--operator", "linear", "--num-heads", "2"]
    assert main(["convert", "resnet18", "--output", str(path), *flags, *SMALL]) == 0
    model, metadata = load_model(path)
    assert (metadata.model.name, metadata.class_names[-1], metadata.preprocessing.image_size) == ("resnet18", "6", 16)
    assert model.layer3[0].conv1.attention.config.num_heads == 2
    with pytest.raises(InputError, match=r"the file does not say on which data the network was trained; give --data\."):
        evaluate(path)


def test_a_weights_file_that_does_not_say_its_network_is_told_it(tmp_path: Path) -> None:
    network = timm.create_model("resnet18", num_classes=5, **NARROW).eval()
    weights, path = tmp_path / "timm.safetensors", tmp_path / "converted.safetensors"
    save_file(network.state_dict(), weights)
    config = TrainConfig(model_kwargs=NARROW, image_size=32)
    with pytest.raises(InputError, match="does not name its network; give timm's name of the network with --model"):
        convert_network(str(weights), path, config)
    convert_network(str(weights), path, config, model="resnet18")
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(load_model(path)[0](images), network(images), rtol=1e-5, atol=1e-5)
    with pytest.raises(InputError, match=r"weights of .* do not fit the network"):
        convert_network(str(weights), path, config, model="resnet50")


def test_a_network_of_torchvision_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shown = ["convert", "torchvision:mobilenet_v2", "--stages", "null", "--image-size", "64"]
    assert main([*shown, "--dry-run"]) == 0
    assert "its projection features.17.conv.2 is replaced instead" in capsys.readouterr().out
    assert main([*shown, "--output", str(tmp_path / "m.safetensors")]) == 2
    assert "can be shown with --dry-run but not stored" in capsys.readouterr().err
    assert main(["convert", "torchvision:nothing", "--dry-run"]) == 2


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "NAME is missing; usage: xvolution convert NAME"),
        (["resnet18"], "give --output FILE for the converted network, or --dry-run"),
        (["resnet18", "--dry-run", "--lr", "3"], "there is no flag --lr."),
        (["resnet18", "--dry-run", "--operator", "conv"], "--operator is conv, which does not change the network"),
        (["resnet18", "--output", "x.onnx"], "x.onnx ends with .onnx; converted networks are stored as .safetensors"),
        (["resnet18", "--dry-run", "--no-pretrained", "--stages", "[9]"], "resnet18 cannot be converted: "),
        (["nothing.safetensors", "--dry-run"], "there is no file nothing.safetensors"),
    ],
)
def test_what_cannot_be_is_a_sentence(arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", *arguments]) == 2
    assert sentence in capsys.readouterr().err


def test_converted_and_deployed_networks_are_not_converted(
    converted: Path, trained: TrainResult, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="is already converted; give a file of the plain network"):
        convert_network(str(converted), None, TrainConfig())
    deployed = tmp_path / "deployed.safetensors"
    deploy(trained.weights, [deployed], layout="split")
    with pytest.raises(InputError, match="is in deployed form; give a file of the plain network"):
        convert_network(str(deployed), None, TrainConfig())
    with pytest.raises(InputError, match="is in deployed form, which cannot be trained"):
        begins(_spec(10), deployed)


def _spec(classes: int, name: str = "resnet18", **changes: Any) -> ModelSpec:
    conversion = TrainConfig(**{"stages": [2, 3], "operator_options": {"gate": "tanh"}, **changes}).conversion
    values = None if conversion is None else conversion.to_dict()
    return ModelSpec(name, classes, kwargs=NARROW, small_images=True, conversion=values)


def begins(spec: ModelSpec, path: Path) -> dict[str, Any]:
    return build_from(str(path), spec, torch.zeros(1, 3, 32, 32)).state_dict()


def test_plain_weights_begin_a_converted_network_with_other_classes(
    plain: TrainResult, converted: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = load_model(plain.weights)[0].state_dict()
    found = begins(_spec(3), plain.weights)
    assert (
        f"starts from the weights of {plain.weights}; new for 3 classes: fc.weight, fc.bias" in capsys.readouterr().out
    )
    assert torch.equal(found["layer2.0.conv1.conv.weight"], given["layer2.0.conv1.weight"])
    assert torch.equal(found["layer2.0.conv1.conv_norm.running_var"], given["layer2.0.bn1.running_var"])
    assert len(found["fc.weight"]) == 3
    same = begins(_spec(10), converted)
    assert torch.equal(same["fc.weight"], given["fc.weight"])
    into_plain = begins(_spec(10, operator="conv", operator_options={}), plain.weights)
    assert torch.equal(into_plain["layer2.0.conv1.weight"], given["layer2.0.conv1.weight"])


@pytest.mark.parametrize("held", [None, "state_dict", "model"])
def test_a_state_dict_in_timms_names_begins_a_converted_network(held: str | None, tmp_path: Path) -> None:
    """Alone, or in a checkpoint with the names of a parallel module, also in the format of torch before 1.6."""
    plain = build_model(_spec(10, operator="conv", operator_options={}))
    state = {name: value * 1.5 if value.is_floating_point() else value for name, value in plain.state_dict().items()}
    content: Any = state
    if held is not None:
        content = {held: {f"module.{name}": value for name, value in state.items()}, "epoch": 7}
    path = tmp_path / "timm.pth"
    torch.save(content, path, _use_new_zipfile_serialization=held != "model")
    found = begins(_spec(10), path)
    assert torch.equal(found["layer2.0.conv1.conv_norm.weight"], state["layer2.0.bn1.weight"])
    assert torch.equal(found["fc.weight"], state["fc.weight"])


@pytest.mark.parametrize("operator", operator_names())
def test_plain_weights_begin_every_operator(operator: str, plain: TrainResult) -> None:
    given = load_model(plain.weights)[0].state_dict()
    spec = _spec(10, operator=operator, operator_options={}, stages=[3])
    found = begins(spec, plain.weights)
    assert torch.equal(found["layer2.0.conv1.weight"], given["layer2.0.conv1.weight"])
    if operator_config(operator).takes_norm:
        assert torch.equal(found["layer3.0.conv1.conv.weight"], given["layer3.0.conv1.weight"])
        assert torch.equal(found["layer3.0.conv1.conv_norm.running_var"], given["layer3.0.bn1.running_var"])


def test_a_file_of_torch_without_weights_begins_nothing(tmp_path: Path) -> None:
    path = tmp_path / "timm.pth"
    for content in ({}, {"epoch": 7}, [torch.zeros(2)], {"state_dict": {"weight": "text"}}, {"model": {}}):
        torch.save(content, path)
        with pytest.raises(
            InputError, match=r"holds no weights; give a state dict, a \.safetensors file or a checkpoint"
        ):
            begins(_spec(10), path)
    torch.save({"weight": torch.tensor([float("nan")])}, path)
    with pytest.raises(InputError, match="NaN or infinite"):
        begins(_spec(10), path)


def test_weights_of_another_network_begin_nothing(plain: TrainResult, converted: Path) -> None:
    with pytest.raises(InputError, match="holds the weights of resnet18; give --model resnet18"):
        begins(_spec(10, "resnet34"), plain.weights)
    with pytest.raises(InputError, match="has another conversion"):
        begins(_spec(10, stages=[2]), converted)
    with pytest.raises(InputError, match=r"--weights is .*; it must be left out with --pretrained"):
        TrainConfig(weights=str(converted), pretrained=True)
