"""A run says what it is about to do, and its logs hold its loss and its configuration, however short it is."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("lightning")

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from xvolution.training import DetectionConfig, TrainConfig, open_data, train
from xvolution.training.announcement import duration
from xvolution.training.progress import counting, followed


@pytest.mark.slow
def test_a_run_says_what_it_is_about_to_do(
    tiny: Callable[..., TrainConfig], capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny(progress="lines", epochs=2, limit_train_batches=5)
    train(config)
    rows = dict(line.split(None, 1) for line in capsys.readouterr().out.splitlines() if line[:1].islower())
    assert rows["data"] == "digits: 1438 images of 10 classes for training"
    assert rows["evaluation"] == "359 images: a fixed fifth of every class"
    assert rows["size"] == f"{config.image_size} x {config.image_size} pixels"
    assert rows["network"].startswith("resnet18, ")
    assert rows["network"].endswith(" parameters, new weights")
    assert rows["operator"] == "xvolution in the place of 2 convolutions"
    assert rows["recipe"].startswith(
        f"2 epochs, 10 steps of {config.batch_size} images; {config.optimizer}, learning rate "
    )
    assert rows["machine"] == "cpu, precision 32"
    assert rows["output"] == str(config.run_dir)
    assert "for 3 steps of" in rows["time"]
    train(replace(config, output=f"{config.output}-quiet", progress="off", operator="conv"))
    assert "network" not in capsys.readouterr().out


@pytest.mark.slow
def test_tensorboard_has_the_loss_of_a_short_run_and_its_configuration(tiny: Callable[..., TrainConfig]) -> None:
    config = tiny(epochs=2, limit_train_batches=3)
    train(config)
    events = EventAccumulator(str(config.run_dir / "tensorboard"))
    events.Reload()
    assert len(events.Scalars("loss")) == 2
    content = events.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    found = HParamsPluginData.FromString(content).session_start_info.hparams
    assert found["epochs"].number_value == 2
    assert found["model"].string_value == "resnet18"
    assert found["stages"].string_value == str(config.stages)
    assert found["small_images"].string_value == "true"


def test_where_the_images_that_judge_come_from(tmp_path: Path) -> None:
    from PIL import Image

    for part in ("train", "test"):
        for name in ("cat", "dog"):
            (tmp_path / part / name).mkdir(parents=True)
            for index in range(5):
                Image.new("RGB", (16, 16)).save(tmp_path / part / name / f"{index}.png")
    assert open_data(tmp_path).judged_by == "its test part, because there is no validation part"
    assert open_data(tmp_path, 0.4).judged_by == "40% of the training part, because of --holdout"
    one = open_data(tmp_path / "train", seed=3)
    assert one.judged_by == "20% of every class, held out with --split-seed 3, because there is only one part"
    (tmp_path / "test").rename(tmp_path / "val")
    assert open_data(tmp_path).judged_by == "its validation part"


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(3, "a few seconds"), (42, "about 40 s"), (170, "about 3 min"), (9000, "about 2.5 h")],
)
def test_a_duration_is_as_exact_as_an_estimate(seconds: float, said: str) -> None:
    assert duration(seconds) == said


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_is_shown_on_a_terminal_alone(
    terminal: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal, raising=False)
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert list(followed(range(5), 5, "judging")) == [0, 1, 2, 3, 4]
    with counting(2, "timing") as advance:
        advance()
        advance()
    said = capsys.readouterr().err
    assert ("judging" in said) == terminal
    assert ("timing" in said) == terminal


def test_the_weights_that_a_network_begins_with_are_said() -> None:
    assert TrainConfig().begins_with is None
    assert TrainConfig(pretrained=True).begins_with == "pretrained weights"
    assert TrainConfig(weights="mine.safetensors").begins_with == "weights of mine.safetensors"
    assert DetectionConfig().begins_with is None
    assert DetectionConfig(backbone_weights="mine.ckpt").begins_with == "weights of mine.ckpt in the backbone"
    assert (TrainConfig().network, DetectionConfig(architecture="fcos").network) == ("resnet18", "fcos over resnet50")
