"""Files of strangers and damaged files: a sentence before memory is taken, or the same network."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from xvolution.training import InputError, TrainConfig, deploy, evaluate, load_model, train
from xvolution.training.checkpoint import digest_of, read_checkpoint, read_weights
from xvolution.training.fit import TrainResult


def described(path: Path) -> dict[str, Any]:
    with safe_open(path, framework="pt") as file:
        return json.loads(file.metadata()["xvolution"])


def changed(values: dict[str, Any], where: str, value: Any) -> dict[str, Any]:
    """The values with one of them, at a path of keys, in the place of what was there."""
    copy = json.loads(json.dumps(values))
    *path, last = where.split(".")
    inner = copy
    for key in path:
        inner = inner[key]
    inner[last] = value
    return copy


CRAFTED: list[tuple[str, Any, str]] = [
    ("model.num_classes", 10**9, r"Expected `int` <= 10000000 - at `\$.model.num_classes`"),
    ("model.num_classes", "ten", r"Expected `int`, got `str` - at `\$.model.num_classes`"),
    ("model.num_classes", True, r"Expected `int`, got `bool`"),
    ("model.in_chans", 0, r"Expected `int` >= 1"),
    ("model.name", None, r"Expected `str`, got `null`"),
    ("model.name", "resnet18" * 100, "length <= 256"),
    ("model.name", "hf-hub:timm/resnet18", "timm knows no model called"),
    ("model.unknown", 1, r"unknown field `unknown` - at `\$.model`"),
    ("model.kwargs", [1], r"Expected `object`, got `array`"),
    ("model.kwargs.layers", [10**9] * 4, "the largest allowed number"),
    ("model.kwargs.layers", [10**6, 1, 1, 1], "its description does not fit its weights"),
    ("model.kwargs.layers", 3, "cannot be built"),
    ("model.kwargs.channels", [8, 8, 16, 10**6], "its description does not fit its weights|do not fit the network"),
    ("model.kwargs.checkpoint_path", "/etc/passwd", "would read other files"),
    ("model.kwargs.deep", [[[[[[[[[[[1]]]]]]]]]]], "longer or more deeply nested"),
    ("model.conversion.operator.type", "magic", "Invalid value 'magic'"),
    ("model.conversion.operator.num_conv_branches", 10**6, "Expected `int` <= 64"),
    ("model.conversion.operator.norm_layer", "Transformer", "matching regex"),
    ("model.conversion.operator.kernel_size", 10**6, "Expected `int` <= 255"),
    ("model.conversion.operator.attention.type", "magic", "no attention branch 'magic'"),
    ("model.conversion.operator.attention.type", ["magic"], "no attention branch"),
    ("model.conversion.operator.attention.window", 10**9, "the largest allowed number"),
    ("model.conversion.operator.attention.window", {"a": 1}, "the option window of pixel_shift"),
    (
        "model.conversion.operator.attention.attention_ratio",
        1e6,
        "its description does not fit its weights|do not fit the network",
    ),
    ("model.conversion.operator.attention.attention_ratio", "much", r"Expected `float \| null`, got `str`"),
    ("model.conversion.operator.attention.magic", 1, "has no option 'magic'"),
    ("model.conversion.where.stages", [0], "Expected `int` >= 1"),
    ("model.conversion.where.stages", "3", "Expected `array"),
    ("preprocessing.image_size", 10**6, "Expected `int` <= 10000"),
    ("preprocessing.std", [0.0, 1.0, 1.0], "Expected `float` > 0"),
    ("preprocessing.interpolation", "magic", "Invalid enum value 'magic'"),
    ("class_names", "abc", "Expected `array`, got `str`"),
    ("form", "other", "Invalid enum value 'other'"),
    ("layouts", {"layer3": 3}, "Expected `str`, got `int`"),
    ("format", 99, "reads formats up to"),
    ("format", "2", "reads formats up to"),
    ("type", "pose", "of the unknown type"),
    ("type", "detect", "at `|missing required field|unknown field|where a"),
]


@pytest.mark.parametrize(("where", "value", "sentence"), CRAFTED, ids=lambda value: str(value)[:40])
def test_a_crafted_description_is_a_sentence(
    trained: TrainResult, tmp_path: Path, where: str, value: Any, sentence: str
) -> None:
    path = tmp_path / "crafted.safetensors"
    values = changed(described(trained.weights), where, value)
    save_file(load_file(trained.weights), path, metadata={"xvolution": json.dumps(values)})
    began = time.monotonic()
    with pytest.raises(InputError, match=sentence):
        load_model(path)
    assert time.monotonic() - began < 60


@pytest.mark.parametrize("text", ["", "no json", "[1]", "null", "[" * 100_000, '{"model": 1}'], ids=lambda t: t[:10])
def test_a_description_that_is_none(trained: TrainResult, tmp_path: Path, text: str) -> None:
    path = tmp_path / "crafted.safetensors"
    save_file(load_file(trained.weights), path, metadata={"xvolution": text})
    with pytest.raises(InputError, match="cannot be read"):
        load_model(path)


def infinite(tensors: dict[str, torch.Tensor]) -> None:
    tensors["conv1.weight"][0, 0, 0, 0] = float("inf")


def nan(tensors: dict[str, torch.Tensor]) -> None:
    tensors["fc.bias"][0] = float("nan")


def negative_variance(tensors: dict[str, torch.Tensor]) -> None:
    tensors["bn1.running_var"][0] = -1.0


def of_type(dtype: torch.dtype) -> Callable[[dict[str, torch.Tensor]], None]:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors["conv1.weight"] = tensors["conv1.weight"].to(dtype)

    return change


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (infinite, "conv1.weight holds numbers that are NaN or infinite"),
        (nan, "fc.bias holds numbers that are NaN or infinite"),
        (negative_variance, "bn1.running_var holds variances below 0"),
        (of_type(torch.int32), "conv1.weight is of type torch.int32"),
        (of_type(torch.bool), "conv1.weight is of type torch.bool"),
        (of_type(torch.complex64), "conv1.weight is of type torch.complex64"),
    ],
    ids=["infinite", "nan", "negative variance", "int", "bool", "complex"],
)
@pytest.mark.filterwarnings("ignore:Casting complex")
def test_weights_that_no_network_has(
    trained: TrainResult, tmp_path: Path, change: Callable[[dict[str, torch.Tensor]], None], sentence: str
) -> None:
    tensors, path = load_file(trained.weights), tmp_path / "w.safetensors"
    change(tensors)
    save_file(tensors, path, metadata={"xvolution": json.dumps(described(trained.weights))})
    with pytest.raises(InputError, match=sentence):
        evaluate(path, "digits")
    with pytest.raises(InputError, match=sentence):
        deploy(path, [tmp_path / "d.safetensors"])


def flipped(path: Path, position: int, target: Path) -> Path:
    contents = bytearray(path.read_bytes())
    contents[position] ^= 4
    target.write_bytes(contents)
    return target


def inside(path: Path, tensor: torch.Tensor) -> int:
    """Where a tensor's numbers are in a file."""
    position = path.read_bytes().find(tensor.contiguous().view(torch.uint8).numpy().tobytes())
    assert position > 0
    return position + 10


@pytest.mark.parametrize("name", ["model.safetensors", "last.ckpt"])
def test_one_flipped_bit_is_noticed(trained: TrainResult, tmp_path: Path, name: str) -> None:
    path = trained.run_dir / name
    weight = read_weights(path)[0]["conv1.weight"]
    damaged = flipped(path, inside(path, weight), tmp_path / name)
    with pytest.raises(InputError, match=r"is damaged: its checksum does not match its contents.*--no-checksum"):
        load_model(damaged)
    model, _ = load_model(damaged, checksum=False)
    assert not torch.equal(model.state_dict()["conv1.weight"], weight)


def test_one_flipped_bit_of_an_exported_file_is_noticed(trained: TrainResult, tmp_path: Path) -> None:
    path = tmp_path / "d.onnx"
    deploy(trained.weights, [path])
    load_model(path)
    damaged = flipped(path, path.stat().st_size // 2, tmp_path / "damaged.onnx")
    with pytest.raises(InputError, match="is damaged: its checksum does not match its contents"):
        load_model(damaged)


def test_the_checksum_is_of_names_types_shapes_numbers_and_description() -> None:
    tensors = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor(3)}
    digest = digest_of(tensors, "text")
    assert digest == digest_of(dict(reversed(tensors.items())), "text")
    others = [
        digest_of({**tensors, "a": torch.tensor([1.0, 2.5])}, "text"),
        digest_of({**tensors, "a": torch.tensor([[1.0, 2.0]])}, "text"),
        digest_of({"c": tensors["a"], "b": tensors["b"]}, "text"),
        digest_of({**tensors, "a": tensors["a"].view(torch.int32)}, "text"),
        digest_of(tensors, "other"),
    ]
    assert len({digest, *others}) == 6


def test_a_checkpoint_without_weights(tmp_path: Path) -> None:
    for state in (3, {"weight": "text"}):
        torch.save({"xvolution": {"model": {}}, "state_dict": state}, tmp_path / "w.ckpt")
        with pytest.raises(InputError, match="its weights are not tensors"):
            read_checkpoint(tmp_path / "w.ckpt")


def test_weights_that_training_began_with_are_not_read_again(tiny: Callable[..., TrainConfig], tmp_path: Path) -> None:
    """The file has weights of its own: the path of those it began with does not go into it."""
    settings = {"operator": "conv", "epochs": 1, "limit_train_batches": 1, "small_images": False, "image_size": 32}
    first = train(tiny(**settings, output=str(tmp_path / "first")))
    path = tmp_path / "plain.pth"
    torch.save(load_model(first.weights)[0].state_dict(), path)
    kwargs = {**tiny().model_kwargs, "checkpoint_path": str(path)}
    second = train(tiny(**settings, model_kwargs=kwargs))
    path.unlink()
    model, metadata = load_model(second.weights)
    assert "checkpoint_path" not in metadata.to_dict()["model"]["kwargs"]
    assert model.num_classes == 10
