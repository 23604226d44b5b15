"""A run that is cut short and resumed ends with the bits of one that was not."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from xvolution.training import InputError, Interrupted, TrainConfig, train
from xvolution.training.classification.module import Classification

pytestmark = pytest.mark.slow

# Everything that draws random numbers, and everything that keeps a state of its own.
SETTINGS: dict[str, Any] = {
    "ema_decay": 0.9,
    "mixup": 0.2,
    "cutmix": 0.2,
    "auto_augment": "rand-m5",
    "random_erase": 0.2,
    "warmup_epochs": 1,
    "checkpoint_every": 2,
    "model_kwargs": {"layers": [1, 1, 1, 1], "channels": [8, 8, 16, 32], "drop_rate": 0.1, "drop_path_rate": 0.1},
}

KILLED = """
import json, os, signal, sys
import torch
from xvolution.training import TrainConfig, train
from xvolution.training.classification.module import Classification

torch.set_num_threads(1)
step = Classification.training_step

def killed(self, batch, batch_idx):
    if self.global_step == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
    return step(self, batch, batch_idx)

Classification.training_step = killed
train(TrainConfig(**json.loads(sys.argv[1])))
"""


def outcome(run_dir: Path) -> tuple[dict[str, torch.Tensor], int, list[dict[str, float]]]:
    checkpoint = torch.load(run_dir / "last.ckpt", weights_only=True)
    history = [{key: value for key, value in row.items() if key != "seconds"} for row in checkpoint["history"]]
    return checkpoint["state_dict"], checkpoint["global_step"], history


def assert_same_run(a: Path, b: Path) -> None:
    (weights_a, steps_a, history_a), (weights_b, steps_b, history_b) = outcome(a), outcome(b)
    assert steps_a == steps_b
    assert weights_a.keys() == weights_b.keys()
    assert [name for name in weights_a if not torch.equal(weights_a[name], weights_b[name])] == []
    assert history_a == history_b


def run_killed(config: TrainConfig, at_step: int) -> None:
    values = config.to_dict()
    arguments = [sys.executable, "-c", KILLED, json.dumps(values), str(at_step)]
    finished = subprocess.run(
        arguments, capture_output=True, text=True, timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert finished.returncode == -signal.SIGKILL, finished.stderr


IN_MEMORY: dict[str, Any] = {**SETTINGS, "in_memory": True, "auto_augment": None, "random_erase": 0.0, "hflip": 0.5}


@pytest.mark.parametrize(
    ("settings", "at_step"),
    [(SETTINGS, 5), (SETTINGS, 7), (IN_MEMORY, 5)],
    ids=["in the first epoch", "just after the first epoch", "images in memory"],
)
def test_sigkill_and_resume(
    tiny: Callable[..., TrainConfig], tmp_path: Path, settings: dict[str, Any], at_step: int
) -> None:
    # limit_train_batches is 6: step 5 goes on from step 4 inside the epoch, step 7 from the end of the epoch.
    whole = tiny(**settings, output=str(tmp_path / "whole"))
    train(whole)
    cut = tiny(**settings, output=str(tmp_path / "cut"))
    run_killed(cut, at_step)
    train(tiny(**settings, output=str(tmp_path / "cut"), resume="last"))
    assert_same_run(tmp_path / "whole", tmp_path / "cut")


def test_ctrl_c_writes_a_checkpoint_and_resumes(
    tiny: Callable[..., TrainConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {**SETTINGS, "checkpoint_every": None, "accumulate": 2, "operator": "conv"}
    train(tiny(**settings, output=str(tmp_path / "whole")))
    step = Classification.training_step

    def interrupted(self: Classification, batch: Any, batch_idx: int) -> torch.Tensor:
        if self.current_epoch == 1 and batch_idx == 1:
            os.kill(os.getpid(), signal.SIGINT)
        return step(self, batch, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(Classification, "training_step", interrupted)
        with pytest.raises(Interrupted, match="--resume last"):
            train(tiny(**settings, output=str(tmp_path / "cut")))
    assert outcome(tmp_path / "cut")[1] == 4
    train(tiny(**settings, output=str(tmp_path / "cut"), resume="last"))
    assert_same_run(tmp_path / "whole", tmp_path / "cut")


def test_a_finished_run_is_not_overwritten(tiny: Callable[..., TrainConfig]) -> None:
    result = train(tiny(epochs=1))
    with pytest.raises(ValueError, match="--resume last"):
        train(tiny(epochs=1))
    assert train(tiny(epochs=1, resume="last")).history == result.history


def test_order_depends_on_seed_and_epoch_alone() -> None:
    from xvolution.training.data import EpochBatches

    def order(seed: int, epoch: int, start: int = 0) -> list[int]:
        batches = EpochBatches(50, 8, seed)
        batches.start(epoch, start)
        return [draw.index for batch in batches for draw in batch]

    assert order(0, 3) == order(0, 3)
    assert order(0, 3)[16:] == order(0, 3, start=2)
    assert order(0, 3) != order(0, 4)
    assert order(0, 3) != order(1, 3)
    assert len(set(order(0, 3))) == 48


def rates(run_dir: Path) -> list[float]:
    return [row["lr"] for row in outcome(run_dir)[2]]


def test_more_epochs_and_another_rate_are_applied(
    tiny: Callable[..., TrainConfig], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The schedules are functions of the step: a longer run has the rates that it would have had from the beginning."""
    train(tiny(epochs=4, lr=0.2, weight_decay=0.1, output=str(tmp_path / "long")))
    train(tiny(epochs=2, output=str(tmp_path / "cut")))
    train(tiny(epochs=4, lr=0.2, weight_decay=0.1, output=str(tmp_path / "cut"), resume="last"))
    assert rates(tmp_path / "cut")[2:] == rates(tmp_path / "long")[2:]
    assert rates(tmp_path / "cut")[2] > 0
    optimizer = torch.load(tmp_path / "cut" / "last.ckpt", weights_only=True)["optimizer_states"][0]
    assert {group["weight_decay"] for group in optimizer["param_groups"]} == {0.0, 0.1}
    assert json.loads((tmp_path / "cut" / "config.json").read_text())["lr"] == 0.2
    said = "continuing after epoch 2 with --epochs 4 (was 2), --lr 0.2 (was 0.05), --weight-decay 0.1 (was 0.0005)"
    assert said in capsys.readouterr().out


def test_another_schedule_is_applied(tiny: Callable[..., TrainConfig], tmp_path: Path) -> None:
    settings = {"schedule": "step", "decay_epochs": 1, "decay_rate": 0.5, "epochs": 3}
    train(tiny(**settings, output=str(tmp_path / "step")))
    train(tiny(epochs=1, output=str(tmp_path / "cut")))
    train(tiny(**settings, output=str(tmp_path / "cut"), resume="last"))
    assert rates(tmp_path / "cut")[1:] == rates(tmp_path / "step")[1:]


@pytest.mark.parametrize(
    ("began", "changes", "sentence"),
    [
        ({}, {"optimizer": "adamw"}, "was trained with --optimizer sgd, but now it is adamw"),
        ({}, {"ema_decay": 0.9}, "holds no moving average, but --ema-decay is 0.9"),
        ({"ema_decay": 0.9}, {"ema_decay": None}, "holds a moving average, but --ema-decay is left out"),
        ({}, {"batch_size": 16}, "was trained with --batch-size 32, but now it is 16"),
        ({}, {"accumulate": 2}, "was trained with --accumulate 1"),
        ({}, {"new_lr_factor": 2.0}, "was trained with --new-lr-factor 1.0, but now it is 2.0"),
        ({}, {"seed": 1}, "was trained with --seed 0"),
        ({}, {"holdout": 0.3}, "was trained without --holdout"),
        ({}, {"epochs": 1}, "has already trained 2 epochs, but --epochs is 1"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_what_a_resumed_run_cannot_change_is_named(
    tiny: Callable[..., TrainConfig], began: dict[str, Any], changes: dict[str, Any], sentence: str
) -> None:
    train(tiny(**began, limit_train_batches=2))
    before = (tiny().run_dir / "config.json").read_text()
    with pytest.raises(InputError, match=sentence):
        train(tiny(**{**began, "limit_train_batches": 2, **changes}, resume="last"))
    assert (tiny().run_dir / "config.json").read_text() == before
