"""Two processes on the CPU judge a network as one process does."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest

from xvolution.training import evaluate, load_model

pytestmark = pytest.mark.slow


def test_two_processes_agree_with_one(tmp_path: Path) -> None:
    # 359 digits over two processes is an odd share: one of them is padded, and the padding must not count.
    command = [
        sys.executable,
        "-m",
        "xvolution.cli",
        "train",
        "--accelerator",
        "cpu",
        "--devices",
        "2",
        "--strategy",
        "ddp",
    ]
    command += ["--model-kwargs", '{"layers": [1, 1, 1, 1], "channels": [8, 8, 16, 32]}', "--small-images"]
    command += ["--image-size", "16", "--batch-size", "32", "--epochs", "2", "--limit-train-batches", "5"]
    command += ["--ema-decay", "0.8", "--output", str(tmp_path / "run")]
    finished = subprocess.run(
        command, capture_output=True, text=True, timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.count("epoch   2/2") == 1
    rows = list(csv.DictReader((tmp_path / "run" / "history.csv").open()))
    found = evaluate(tmp_path / "run" / "last.ckpt")
    assert found.images == 359
    assert found.top1 == pytest.approx(float(rows[-1]["val_top1"]), abs=1e-9)
    assert found.top5 == pytest.approx(float(rows[-1]["val_top5"]), abs=1e-9)
    assert found.loss == pytest.approx(float(rows[-1]["val_loss"]), rel=1e-6)
    load_model(tmp_path / "run" / "model.safetensors")
