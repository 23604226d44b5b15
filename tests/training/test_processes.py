"""Processes that are asked to end, killed or orphaned, and two that want the same folder."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.training.conftest import TINY
from tests.training.test_resume import assert_same_run
from xvolution.cli import main
from xvolution.signals import ending_politely, heeded
from xvolution.training import RunError, TrainConfig, train
from xvolution.training.commands import train_flags
from xvolution.training.lock import locked

COMMAND = [sys.executable, "-c", "import sys; from xvolution.cli import main; sys.exit(main())"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}

ASKED = """
import os, subprocess, sys
import torch
from xvolution import cli
from xvolution.training.classification.module import Classification

torch.set_num_threads(1)
signum, at_step, times = map(int, sys.argv[1:4])
step = Classification.training_step

def asked(self, batch, batch_idx):
    if self.global_step == at_step:
        for _ in range(times):
            if os.getpgrp() == os.getpid():  # from outside: torch's loaders take a signal of their parent as the end
                subprocess.run(["kill", f"-{signum}", "--", f"-{os.getpgrp()}"])
            else:
                os.kill(os.getpid(), signum)
    return step(self, batch, batch_idx)

Classification.training_step = asked
sys.exit(cli.main(sys.argv[4:]))
"""


def asked(
    signum: int, at_step: int, times: int, config: TrainConfig, whole_group: bool = False
) -> subprocess.CompletedProcess[str]:
    """A training that is sent a signal as it begins a step, alone or with the processes that it has started."""
    command = [sys.executable, "-c", ASKED, str(int(signum)), str(at_step), str(times), "train", *train_flags(config)]
    options: Any = {"capture_output": True, "text": True, "timeout": 300, "env": ENVIRONMENT}
    return subprocess.run(command, start_new_session=whole_group, **options)


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGHUP])
def test_a_request_to_all_processes_of_a_run_writes_a_checkpoint(
    tiny: Callable[..., TrainConfig], tmp_path: Path, signum: signal.Signals
) -> None:
    ended = asked(signum, 3, 1, tiny(output=str(tmp_path / "cut"), workers=2), whole_group=True)
    assert ended.returncode == 128 + signum
    assert "with --resume last to continue" in ended.stderr
    train(tiny(output=str(tmp_path / "cut"), workers=0, resume="last"))
    train(tiny(output=str(tmp_path / "whole")))
    assert_same_run(tmp_path / "whole", tmp_path / "cut")


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGHUP])
def test_a_request_to_end_writes_a_checkpoint(
    tiny: Callable[..., TrainConfig], tmp_path: Path, signum: signal.Signals
) -> None:
    train(tiny(output=str(tmp_path / "whole")))
    ended = asked(signum, 3, 1, tiny(output=str(tmp_path / "cut")))
    assert ended.returncode == 128 + signum
    assert f"{signum.name}: writing a checkpoint after this step" in ended.stderr
    assert "with --resume last to continue" in ended.stderr
    assert "Traceback" not in ended.stderr
    train(tiny(output=str(tmp_path / "cut"), resume="last"))
    assert_same_run(tmp_path / "whole", tmp_path / "cut")


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_second_request_leaves_at_once(tiny: Callable[..., TrainConfig], signum: signal.Signals) -> None:
    ended = asked(signum, 3, 2, tiny())
    assert ended.returncode == 128 + signum
    assert "Traceback" not in ended.stderr
    assert not (tiny().run_dir / "last.ckpt").exists()


def test_any_command_ends_with_the_signals_number(monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(
        "xvolution.training.file_commands.evaluate_command", lambda arguments: signal.raise_signal(signal.SIGTERM)
    )
    assert main(["evaluate"]) == 143
    assert signal.getsignal(signal.SIGTERM) is before


def test_what_nohup_ignores_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert signal.SIGHUP not in heeded()
        with ending_politely():
            signal.raise_signal(signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_folder_is_written_by_one_process(tiny: Callable[..., TrainConfig]) -> None:
    config = tiny()
    code = """
import sys, time
from pathlib import Path
from xvolution.training.lock import locked
with locked(Path(sys.argv[1])):
    print("locked", flush=True)
    time.sleep(60)
"""
    command = [sys.executable, "-c", code, str(config.run_dir)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "locked\n"
        with pytest.raises(
            RunError, match=rf"another process is writing to .* \(process {other.pid} on .*\); wait for it"
        ):
            train(config)
        other.kill()
    assert not (config.run_dir / "config.json").exists()
    with locked(config.run_dir):  # the lock ended with the process
        pass


def test_a_run_that_did_not_begin_leaves_no_folder(tiny: Callable[..., TrainConfig]) -> None:
    config = tiny(model="resnet1234")
    with pytest.raises(ValueError, match="timm knows no model"):
        train(config)
    assert not config.run_dir.exists()


def wait_for(holds: Callable[[], bool], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.slow
def test_a_cell_ends_with_its_comparison(tmp_path: Path) -> None:
    flags: dict[str, Any] = {**TINY, "epochs": 500}
    flags.pop("progress")  # the comparison's own
    arguments = ["compare", "--operators", "conv,xvolution", "--seeds", "1", "--jobs", "1", "--latency-rounds", "0"]
    for name, value in flags.items():
        written = value if isinstance(value, str) else json.dumps(value)
        option = f"--{name.replace('_', '-')}"
        arguments += [option] if value is True else [option, written]
    command = [*COMMAND, *arguments, "--threads", "1", "--output", str(tmp_path)]
    log = tmp_path / "cells" / "conv" / "seed0" / "log.txt"
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=ENVIRONMENT) as comparing:
        wait_for((log.parent / "last.ckpt").exists)
        comparing.kill()
    owner = log.parent / ".cell-owner"
    wait_for(lambda: not owner.exists())
    assert "SIGTERM: writing a checkpoint" in log.read_text()
    assert not (log.parent / "error.json").exists()


def run_with(redirection: str, arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = ["sh", "-c", f'"$@" {arguments} {redirection}', "sh", *COMMAND]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=folder, env=ENVIRONMENT)


@pytest.mark.parametrize("arguments", ["--version", "--help"])
def test_a_full_standard_output_is_a_sentence(tmp_path: Path, arguments: str) -> None:
    ended = run_with(">/dev/full", arguments, tmp_path)
    sentence = "xvolution: the standard output could not be written (No space left on device); send it elsewhere.\n"
    assert (ended.returncode, ended.stderr) == (1, sentence)


def test_a_closed_standard_output_is_a_sentence(tmp_path: Path) -> None:
    ended = run_with(">&-", "--version", tmp_path)
    sentence = "xvolution: the standard output is closed; printed text is lost.\n"
    assert (ended.returncode, ended.stderr) == (0, sentence)


def test_a_deleted_working_folder_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "gone").mkdir()
    ended = subprocess.run(
        ["sh", "-c", 'rmdir "$PWD"; "$@" train', "sh", *COMMAND],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=tmp_path / "gone",
        env={**ENVIRONMENT, "PYTHONPATH": os.pathsep.join(filter(None, map(os.path.abspath, sys.path)))},
    )
    sentence = "xvolution: the working folder has been deleted; go to another one.\n"
    assert (ended.returncode, ended.stderr) == (1, sentence)
