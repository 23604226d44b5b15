"""`train_once` finds a finished training again, or goes on with it."""

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
        checkpoint: of the last epoch. The best epoch would be chosen on the images that judge it.
        history: one row for each epoch.
        reused: whether an earlier call trained it.
    """

    checkpoint: Path
    history: list[dict[str, Any]]
    reused: bool


def train_once(config: RunConfig) -> Trained:
    """Train, go on with a training that was interrupted, or answer the one that is finished."""
    checkpoint, finished = config.run_dir / "last.ckpt", config.run_dir / "finished.json"
    if finished.is_file() and checkpoint.is_file():
        return Trained(checkpoint, json.loads(finished.read_text(encoding="utf-8")), reused=True)
    result = train(replace(config, resume="last") if checkpoint.is_file() else config)
    write_text(finished, json.dumps(result.history, indent=2) + "\n")
    return Trained(result.checkpoint, result.history, reused=False)
