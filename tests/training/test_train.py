"""Training leaves what it promises."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch.optim.swa_utils import update_bn

from xvolution.training import InputError, TrainConfig, evaluate, load_model, open_data, train
from xvolution.training.classification.distillation import distilled, teacher_of
from xvolution.training.data import ClassificationData
from xvolution.training.data.transforms import Augmentation
from xvolution.training.fit import TrainResult


def test_a_run_leaves_weights_checkpoint_history_and_logs(trained: TrainResult) -> None:
    folder = trained.run_dir
    assert trained.checkpoint == folder / "last.ckpt"
    assert [row["epoch"] for row in trained.history] == [1, 2]
    assert trained.metrics in trained.history
    rows = list(csv.DictReader((folder / "history.csv").open()))
    assert [float(row["val_top1"]) for row in rows] == [row["val_top1"] for row in trained.history]
    assert list((folder / "tensorboard").glob("events*"))
    assert list((folder / "csv").rglob("metrics.csv"))
    assert json.loads((folder / "config.json").read_text())["model"] == "resnet18"
    assert [path.name for path in folder.glob(".*")] == [".lock"]


def test_checkpoints_hold_plain_values_only(trained: TrainResult) -> None:
    checkpoint = torch.load(trained.checkpoint, weights_only=True)
    assert checkpoint["xvolution"]["model"]["conversion"]["where"]["stages"] == [2, 3]


def test_the_weights_say_what_they_are(trained: TrainResult) -> None:
    with safe_open(trained.weights, framework="pt") as file:
        header = json.loads(file.metadata()["xvolution"])
    assert header["form"] == "training"
    assert header["model"]["num_classes"] == len(header["class_names"]) == 10
    assert header["preprocessing"]["image_size"] == 16
    assert header["provenance"]["seed"] == 0
    assert {"torch", "timm", "lightning", "xvolution"} <= header["provenance"]["versions"].keys()


def test_evaluation_repeats_the_history(trained: TrainResult) -> None:
    found = evaluate(trained.weights)
    assert found.top1 == pytest.approx(trained.metrics["val_top1"], abs=1e-9)
    assert found.top5 == pytest.approx(trained.metrics["val_top5"], abs=1e-9)
    assert found.loss == pytest.approx(trained.metrics["val_loss"], rel=1e-6)
    assert found.images == len(found.predictions) == 359


def test_the_moving_average_is_what_is_exported(tiny: Callable[..., TrainConfig]) -> None:
    result = train(tiny(ema_decay=0.5, epochs=1, operator="conv"))
    model, _ = load_model(result.weights)
    state = torch.load(result.checkpoint, weights_only=True)["state_dict"]
    assert torch.equal(model.fc.weight, state["ema.module.fc.weight"])
    assert not torch.equal(model.fc.weight, state["model.fc.weight"])
    from_checkpoint, _ = load_model(result.checkpoint)
    assert torch.equal(model.fc.weight, from_checkpoint.fc.weight)


def test_learning(tiny: Callable[..., TrainConfig]) -> None:
    config = tiny(
        model_kwargs={"layers": [1, 1, 1, 1], "channels": [16, 16, 32, 32]}, epochs=3, limit_train_batches=None, lr=0.1
    )
    assert train(config).metrics["val_top1"] > 0.7


@pytest.mark.parametrize(
    "changes",
    [
        {"precision": "bf16"},
        {"channels_last": True},
        {"accumulate": 2, "clip_grad": 1.0, "label_smoothing": 0.1, "optimizer": "adamw", "lr": 1e-3},
        {"mixup": 0.2, "cutmix": 1.0, "crop": "rrc", "color_jitter": 0.3, "holdout": 0.3},
        {"model": "xvolution_resnet18"},
        {"schedule": "step", "decay_epochs": 1.0, "deterministic": True},
    ],
    ids=str,
)
def test_settings(tiny: Callable[..., TrainConfig], changes: dict[str, object]) -> None:
    result = train(tiny(epochs=1, limit_train_batches=2, limit_val_batches=2, **changes))
    assert result.history[0]["train_loss"] > 0
    load_model(result.weights)


def test_the_same_seed_gives_the_same_weights(tiny: Callable[..., TrainConfig]) -> None:
    def weights(seed: int, name: str) -> torch.Tensor:
        config = tiny(seed=seed, epochs=1, limit_train_batches=2, limit_val_batches=1)
        config.output = f"{config.output}-{name}"
        return load_model(train(config).checkpoint)[0].fc.weight

    assert torch.equal(weights(1, "a"), weights(1, "b"))
    assert not torch.equal(weights(1, "c"), weights(2, "d"))


@pytest.mark.slow
def test_compiled(tiny: Callable[..., TrainConfig]) -> None:
    result = train(tiny(epochs=1, limit_train_batches=1, limit_val_batches=1, compile=True))
    load_model(result.weights)


@pytest.mark.parametrize("changes", [{}, {"ema_decay": 0.5}, {"in_memory": True, "crop": "rrc"}], ids=str)
def test_norms_are_judged_by_statistics_of_images_as_they_are_judged(
    tiny: Callable[..., TrainConfig], tmp_path: Path, changes: dict[str, Any]
) -> None:
    config = tiny(recalibrate_norms=100, **changes)
    result = train(config)
    model, metadata = load_model(result.checkpoint)
    splits = open_data(config.data)
    data = ClassificationData(splits, metadata.preprocessing, Augmentation(), config.batch_size, config.seed)
    expected = deepcopy(model)
    update_bn((batch["image"] for batch in data.statistics_batches(100)), expected)
    assert not model.training
    for (name, found), other in zip(model.named_buffers(), expected.buffers(), strict=True):
        torch.testing.assert_close(found, other, rtol=1e-4, atol=1e-5, msg=name)
    assert evaluate(result.checkpoint).loss == pytest.approx(result.history[-1]["val_loss"], rel=1e-5)
    usual = train(replace(config, recalibrate_norms=0, output=str(tmp_path / "usual")))
    assert [row["train_loss"] for row in usual.history] == [row["train_loss"] for row in result.history]
    trained_as_usual, _ = load_model(usual.checkpoint)
    assert all(map(torch.equal, trained_as_usual.parameters(), model.parameters()))
    assert usual.history[-1]["val_loss"] != result.history[-1]["val_loss"]


def test_no_more_images_are_measured_than_there_are(tiny: Callable[..., TrainConfig]) -> None:
    with pytest.raises(InputError, match="--recalibrate-norms is 5000, but there are only 1438 training images"):
        train(tiny(recalibrate_norms=5000))


def test_new_parameters_have_a_rate_of_their_own(
    tiny: Callable[..., TrainConfig], capsys: pytest.CaptureFixture[str]
) -> None:
    result = train(tiny(new_lr_factor=4.0, epochs=1, schedule="step", weight_decay=0.1, progress="lines"))
    groups = torch.load(result.checkpoint, weights_only=True)["optimizer_states"][0]["param_groups"]
    rates = [(group["lr"], group["weight_decay"]) for group in groups]
    assert rates == [(0.05, 0.0), (0.05, 0.1), (0.2, 0.0), (0.2, 0.1)]
    assert "new parameters train with 4.0 times the learning rate of the others" in capsys.readouterr().out


def test_the_loss_of_a_teacher_is_its_formula() -> None:
    torch.manual_seed(0)
    logits, taught = torch.randn(5, 4, dtype=torch.float64), torch.randn(5, 4, dtype=torch.float64)
    p, q = (each.double().div(3.0).exp() for each in (taught, logits))
    p, q = p / p.sum(1, keepdim=True), q / q.sum(1, keepdim=True)
    expected = 0.75 * 2.0 + 0.25 * 9 * (p * (p / q).log()).sum(1).mean()
    torch.testing.assert_close(
        distilled(torch.tensor(2.0), logits, taught, 0.25, 3.0).double(), expected, rtol=1e-5, atol=1e-6
    )
    assert float(distilled(torch.tensor(2.0), taught, taught, 1.0, 3.0)) == pytest.approx(0, abs=1e-6)


def test_a_network_learns_from_a_teacher_in_its_normalization(
    tiny: Callable[..., TrainConfig], trained: TrainResult, tmp_path: Path
) -> None:
    plain = train(tiny(epochs=1, output=str(tmp_path / "plain")))
    taught = train(tiny(epochs=1, teacher=str(trained.weights), teacher_weight=1.0, output=str(tmp_path / "taught")))
    assert taught.history[0]["train_loss"] != plain.history[0]["train_loss"]
    state = torch.load(taught.checkpoint, weights_only=True)["state_dict"]
    assert not [name for name in state if not name.startswith("model.")]
    network, metadata = load_model(trained.weights)
    other = replace(metadata, preprocessing=replace(metadata.preprocessing, mean=(0.1, 0.2, 0.3), std=(0.5, 1.0, 2.0)))
    pixels = torch.rand(2, 3, 16, 16)

    def normalized(each: Any) -> torch.Tensor:
        mean, std = (
            torch.tensor(values)[:, None, None] for values in (each.preprocessing.mean, each.preprocessing.std)
        )
        return (pixels - mean) / std

    logits = teacher_of("", network, metadata, other).train()(normalized(other))
    torch.testing.assert_close(logits, network.eval()(normalized(metadata)), rtol=1e-4, atol=1e-4)


def test_a_teacher_that_does_not_fit_is_a_sentence(
    tiny: Callable[..., TrainConfig], trained: TrainResult, image_folder: Path
) -> None:
    with pytest.raises(InputError, match=r"has 10 classes that differ from the 2 classes of the data"):
        train(tiny(teacher=str(trained.weights), data=str(image_folder)))
    with pytest.raises(InputError, match=r"--teacher is model.onnx; give a .ckpt or a .safetensors"):
        train(tiny(teacher="model.onnx"))
    with pytest.raises(InputError, match="--teacher-temperature is 0; it must be more than 0"):
        tiny(teacher_temperature=0)
