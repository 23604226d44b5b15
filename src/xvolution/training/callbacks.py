"""Callbacks of a training: checkpoints, requests to stop, and a line for each epoch."""

from __future__ import annotations

import csv
import io
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.utilities import rank_zero_only

from xvolution.signals import Ended, heeded
from xvolution.training.checkpoint import save_weights
from xvolution.training.errors import Interrupted
from xvolution.training.files import write_text
from xvolution.training.metadata import Metadata
from xvolution.training.module import TrainingModule

#: Steps between two values of the training loss in the logs.
LOG_EVERY = 10


class RunCheckpoints(Checkpoint):
    """Writes `last.ckpt` after each epoch and every so many steps, and `model.safetensors` after the best epoch.

    On Ctrl-C, SIGTERM and SIGHUP it writes a checkpoint and stops.

    Args:
        run_dir: the folder.
        metadata: metadata of the weights.
        every_steps: optimizer steps between checkpoints inside an epoch, or None.

    Raises:
        Interrupted: after such a request, when the checkpoint is written. A second request stops at once.
    """

    def __init__(self, run_dir: Path, metadata: Metadata, every_steps: int | None = None) -> None:
        self.run_dir, self.metadata, self.every_steps = run_dir, metadata, every_steps
        self.last = run_dir / "last.ckpt"
        self.weights = run_dir / "model.safetensors"
        self._process = os.getpid()
        self._signum: int | None = None
        self._saved_at = -1

    @contextmanager
    def heeding_requests(self) -> Iterator[None]:
        """Handle requests to stop while the block runs: record the first one, stop at once at the second.

        Raises:
            Ended: at the second one.
            Interrupted: the request ended the processes that load images as well.
        """
        before = {signum: signal.getsignal(signum) for signum in heeded()}
        self._heed()
        try:
            yield
        except SystemExit as left:
            if self._signum is None:
                raise
            raise Ended(self._signum) from left  # what Lightning makes of a second Ctrl-C
        except RuntimeError as error:
            if self._signum is None or "DataLoader worker" not in str(error):
                raise
            kept = f"the last checkpoint is {self.last}" if self.last.exists() else "there is no checkpoint yet"
            raise Interrupted(
                f"interrupted together with the processes that load images, before a checkpoint could be written; {kept}.",
                self._signum,
            ) from error
        finally:
            for signum, handler in before.items():
                signal.signal(signum, signal.SIG_DFL if handler is None else handler)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._heed()  # Lightning has put a handler of its own in the place of SIGTERM's

    def _heed(self) -> None:
        for signum in heeded():
            signal.signal(signum, self._on_request)

    def _on_request(self, signum: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            return  # a process that loads images: the one that trains ends it
        if self._signum is not None:
            raise Ended(signum)
        self._signum = signum
        name = "Ctrl-C" if signum == signal.SIGINT else signal.Signals(signum).name
        # Not by print: the signal may have come inside of one.
        with suppress(OSError):
            os.write(2, f"\n{name}: writing a checkpoint after this step; press again to stop without one.\n".encode())

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx + 1 >= trainer.num_training_batches:
            return  # the epoch's own checkpoint follows, after its evaluation
        stop = trainer.strategy.reduce_boolean_decision(self._signum is not None, all=False)
        step = trainer.global_step
        due = self.every_steps is not None and step > 0 and step % self.every_steps == 0 and step != self._saved_at
        accumulated = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        if accumulated and (due or stop):
            trainer.save_checkpoint(self.last)
            self._saved_at = step
            if stop:
                self._leave(trainer)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, TrainingModule)
        history = pl_module.history
        if trainer.is_global_zero and history and history[-1] is best_row(pl_module.eligible, pl_module.judged_by):
            save_weights(self.weights, pl_module.judged, self.metadata)
        trainer.save_checkpoint(self.last)
        if trainer.is_global_zero:
            write_text(self.run_dir / "history.csv", _as_csv(history))
        stop = trainer.strategy.reduce_boolean_decision(self._signum is not None, all=False)
        if stop and trainer.current_epoch + 1 < (trainer.max_epochs or 0):
            self._leave(trainer)

    def _leave(self, trainer: L.Trainer) -> None:
        raise Interrupted(
            f"interrupted in epoch {trainer.current_epoch + 1} at step {trainer.global_step}; the checkpoint "
            f"is {self.last}. Run the same command with --resume last to continue.",
            self._signum or signal.SIGINT,  # another process may have been asked
        )


class LogEveryEpoch(L.Callback):
    """Logs the training loss at least once in every epoch."""

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        trainer.log_every_n_steps = max(1, min(LOG_EVERY, int(trainer.num_training_batches)))  # type: ignore[attr-defined]


class EpochLines(L.Callback):
    """Prints one line for each epoch."""

    @rank_zero_only
    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, TrainingModule)
        if not pl_module.history:
            return
        row = pl_module.history[-1]
        epoch = f"epoch {int(row['epoch']):3d}/{trainer.max_epochs}  train loss {row['train_loss']:.4f}"
        print(f"{epoch}  {pl_module.line(row)}  {row['seconds']:.1f} s", flush=True)


def best_row(history: list[dict[str, float]], judged_by: str) -> dict[str, float]:
    """The epoch with the highest value of a column, such as top-1 accuracy; the latest one if several are equal."""
    return max(history, key=lambda row: (row[judged_by], row["epoch"]))


def _as_csv(rows: list[dict[str, float]]) -> str:
    text = io.StringIO()
    if rows:
        writer = csv.DictWriter(text, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return text.getvalue()
