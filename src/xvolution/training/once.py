"""`train_once` reuses a finished training, or continues an interrupted one."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from xvolution.training.api import train
from xvolution.training.config import RunConfig
from xvolution.training.files import write_text


@dataclass(frozen=True)
class Trained:
    """A finished training.

    Attributes:
        checkpoint: checkpoint of the last epoch. The best epoch would be selected on the evaluation images.
        history: one row for each epoch.
        reused: whether an earlier call trained it.
    """

    checkpoint: Path
    history: list[dict[str, Any]]
    reused: bool


def train_once(config: RunConfig) -> Trained:
    """Train, continue an interrupted training, or return a finished one."""
    checkpoint, finished = config.run_dir / "last.ckpt", config.run_dir / "finished.json"
    if finished.is_file() and checkpoint.is_file():
        return Trained(checkpoint, json.loads(finished.read_text(encoding="utf-8")), reused=True)
    result = train(replace(config, resume="last") if checkpoint.is_file() else config)
    write_text(finished, json.dumps(result.history, indent=2) + "\n")
    return Trained(result.checkpoint, result.history, reused=False)
