"""The summary that a training prints at its start, and the expected time after its first steps."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import lightning as L
from lightning.pytorch.utilities import rank_zero_only
from torch import nn

from xvolution.conversion.summary import conversion_summary, count_parameters, is_converted
from xvolution.training.config import RunConfig

#: Number of timed steps, and of warm-up steps before them, in which memory is reserved and kernels are chosen.
_TIMED, _WARM = 5, 2
#: Width of the first column, in characters.
_WIDTH = 11


class Announcement(L.Callback):
    """Prints a summary at the start of the run, and the expected time after a few steps.

    Args:
        config: the run.
        data: facts about the data, by their name in the first column.
    """

    def __init__(self, config: RunConfig, data: Mapping[str, str]) -> None:
        self.config, self.data = config, data
        self._began: float | None = None
        self._first = 0

    @rank_zero_only
    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._first = trainer.global_step
        rows = {**self.data, **_of_network(self.config, pl_module.model), **_of_steps(self.config, trainer)}  # type: ignore[arg-type]
        print("\n".join(f"{name:<{_WIDTH}}{text}" for name, text in rows.items()), flush=True)

    @rank_zero_only
    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        done = trainer.global_step - self._first
        if done == _WARM and self._began is None:
            self._began = time.perf_counter()
        elif done == _WARM + _TIMED and self._began is not None:
            step = (time.perf_counter() - self._began) / _TIMED
            left = int(trainer.estimated_stepping_batches) - trainer.global_step
            print(
                f"{'time':<{_WIDTH}}{duration(step * left)} for {left} steps of {step:.2g} s, plus evaluation",
                flush=True,
            )
            self._first = -1  # once is enough


def duration(seconds: float) -> str:
    """An approximate time in words: "about 3 min"."""
    if seconds < 10:
        return "a few seconds"
    if seconds < 100:
        return f"about {round(seconds, -1):.0f} s"
    return f"about {seconds / 60:.0f} min" if seconds < 5400 else f"about {seconds / 3600:.1f} h"


def _of_network(config: RunConfig, model: nn.Module) -> dict[str, str]:
    operator = "none, the plain network"
    if is_converted(model):
        replaced = len(conversion_summary(model).replaced)
        operator = f"{config.operator} in the place of {replaced} convolutions"
    return {
        "network": f"{config.network}, {count_parameters(model):,} parameters, {config.begins_with or 'new weights'}",
        "operator": operator,
    }


def _of_steps(config: RunConfig, trainer: L.Trainer) -> dict[str, str]:
    steps = int(trainer.estimated_stepping_batches)
    images = config.batch_size * config.accumulate * trainer.world_size
    done = f"{trainer.current_epoch} of them finished; " if trainer.current_epoch else ""
    average = f", moving average {config.ema_decay}" if config.ema_decay else ""
    processes = f"{trainer.world_size} x " if trainer.world_size > 1 else ""
    return {
        "recipe": f"{config.epochs} epochs, {done}{steps} steps of {images} images; {config.optimizer}, learning rate "
        f"{config.lr:g}, {config.schedule}{average}",
        "machine": f"{processes}{trainer.strategy.root_device}, precision {config.precision}",
        "output": str(config.run_dir),
    }
