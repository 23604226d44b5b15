"""Numbers that cannot be are answered with what was given and what is allowed, before anything is opened or built."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training.conftest import write_folder
from xvolution.cli import main
from xvolution.training import DetectionConfig, InputError, TrainConfig, deploy, evaluate, open_data, train
from xvolution.training.fit import TrainResult

NAN, INFINITE = float("nan"), float("inf")
NUMBERS: list[tuple[str, list[Any]]] = [
    ("seed", [-1, 2**70]),
    ("split_seed", [-1, 2**70]),
    ("image_size", [0, 7, 10**5]),
    ("limit_train_batches", [0, -3]),
    ("limit_val_batches", [0, -3]),
    ("workers", [-1, 500]),
    ("mixup", [-1.0, NAN, INFINITE]),
    ("cutmix", [-1.0, NAN]),
    ("color_jitter", [-0.1]),
    ("random_erase", [-0.1, 1.1]),
    ("crop_scale", [0.0, 1.5, NAN]),
    ("hflip", [-0.1, 1.1, NAN]),
    ("holdout", [0.0, 1.0, NAN]),
    ("holdout", ["half", "1/2/3"]),
    ("epochs", [0, -1]),
    ("batch_size", [0, -1]),
    ("accumulate", [0]),
    ("num_nodes", [0]),
    ("lr", [0.0, -0.1, NAN, INFINITE]),
    ("min_lr", [-0.1, NAN]),
    ("momentum", [-0.1, 1.5]),
    ("weight_decay", [-1.0, NAN]),
    ("decay_rate", [0.0]),
    ("decay_epochs", [0.0]),
    ("warmup_epochs", [-1.0, 10.0]),
    ("clip_grad", [0.0, -1.0, NAN]),
    ("ema_decay", [0.0, 1.0]),
    ("checkpoint_every", [0]),
    ("max_pixels", [0]),
    ("label_smoothing", [-0.1, 1.0]),
    ("recalibrate_norms", [-1]),
]


@pytest.mark.parametrize("fold", ["0/5", "6/5", "1/1", "1/1001"])
def test_a_fold_that_cannot_be(fold: str) -> None:
    with pytest.raises(InputError, match=rf"the fold {fold} cannot be; give one such as 2/5, .* with 2 to 1000 parts"):
        TrainConfig(holdout=fold)


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in NUMBERS for value in values])
def test_a_number_of_a_training_that_cannot_be(name: str, value: Any) -> None:
    with pytest.raises(InputError, match=rf"--{name.replace('_', '-')} is .*; (it must be|give) .*\.$"):
        TrainConfig(**{name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [("min_size", 10**5), ("min_size", 1), ("max_size", 10**5), ("max_size", 20), ("trainable_layers", 6)],
)
def test_a_number_of_a_detector_that_cannot_be(name: str, value: int) -> None:
    with pytest.raises(InputError, match=rf"--{name.replace('_', '-')} is {value}; it must be "):
        DetectionConfig(**{name: value})


@pytest.mark.parametrize(
    "flags",
    [
        ["--seed", "-1"],
        ["--seed", str(2**70)],
        ["--image-size", "100000"],
        ["--limit-train-batches", "0"],
        ["--limit-val-batches", "0"],
        ["--workers", "500"],
        ["--mixup", "-1"],
    ],
    ids=" ".join,
)
def test_the_command_ends_with_a_sentence(flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--output", str(tmp_path / "run"), *flags]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"xvolution: {flags[0]} is {flags[1].removesuffix('.0')}")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"batch_size": 0}, "--batch-size is 0; it must be at least 1"),
        ({"limit_batches": 0}, "--limit-batches is 0; it must be at least 1"),
        ({"workers": 500}, "--workers is 500; it must be from 0 to 128"),
        ({"seed": -1}, "--seed is -1"),
        ({"seed": 2**70}, f"--seed is {2**70}"),
        ({"image_size": 10**5}, "--image-size is 100000; it must be 8 to 10000 pixels"),
        ({"max_pixels": 0}, "--max-pixels is 0"),
    ],
)
def test_a_number_of_an_evaluation_that_cannot_be(trained: TrainResult, options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        evaluate(trained.weights, "digits", **options)


@pytest.mark.parametrize("options", [{"image_size": 10**5}, {"batch_size": 0}])
def test_a_number_of_a_deployment_that_cannot_be(trained: TrainResult, options: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="it must be"):
        deploy(trained.weights, [tmp_path / "x.onnx"], **options)


def test_seeds_of_a_split() -> None:
    for seed in (-1, 2**70):
        with pytest.raises(InputError, match=f"--seed is {seed}"):
            open_data("digits", holdout=0.5, seed=seed)


def test_a_norm_over_one_value_is_told(tiny: Callable[..., TrainConfig]) -> None:
    config = tiny(batch_size=1, small_images=False, image_size=8)
    with pytest.raises(
        InputError, match=r"only one value for a channel.*--batch-size 2 or more, or a larger --image-size"
    ):
        train(config)


def test_one_class_is_told(tmp_path: Path, tiny: Callable[..., TrainConfig]) -> None:
    write_folder(tmp_path / "data" / "train", {"cats": 4})
    with pytest.raises(InputError, match="has only one class, cats"):
        train(tiny(data=str(tmp_path / "data")))


def icons(folder: Path, small: int) -> Path:
    """24 pictures of 320 x 240, and icons of 20 x 20 that sort first."""
    from PIL import Image

    for name in ("cats", "dogs"):
        (folder / name).mkdir(parents=True)
        for number in range(12):
            Image.new("RGB", (320, 240), (10 * number, 0, 0)).save(folder / name / f"b{number:02d}.png")
        for number in range(small):
            Image.new("RGB", (20, 20)).save(folder / name / f"a{number:02d}.png")
    return folder


def test_the_median_image_decides_the_size(
    tiny: Callable[..., TrainConfig], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert open_data(icons(tmp_path / "photos", 1)).image_size == 224
    data = icons(tmp_path / "thumbnails", 20)
    splits = open_data(data)
    assert (splits.image_size, splits.survey.mixed, len(splits.survey.looks)) == (20, True, 64)
    config = tiny(data=str(data), image_size=None, batch_size=8, limit_train_batches=1, epochs=1)
    with pytest.warns(
        UserWarning, match=r"mixed sizes: shorter sides of 20 to 240 pixels .* --image-size changes that"
    ):
        result = train(config)
    assert "image size 20: the median shorter side of 64 images is 20 pixels" in capsys.readouterr().out
    assert json.loads((result.run_dir / "config.json").read_text())["image_size"] is None


def test_a_size_that_was_given_is_not_commented(
    tiny: Callable[..., TrainConfig], image_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(tiny(data=str(image_folder), batch_size=8, limit_train_batches=1, epochs=1))
    assert "image size" not in capsys.readouterr().out
    assert torch.get_num_threads() == 1
