"""The parts of training that all tasks share: optimizer, schedule, moving average, and the history of the run."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import lightning as L
import torch
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.scheduler.scheduler import Scheduler
from timm.utils import ModelEmaV3
from torch import nn

from xvolution.conversion.parameters import parameter_groups
from xvolution.training.config import RunConfig
from xvolution.training.data.dataset import seed_generators
from xvolution.training.errors import InputError, RunError
from xvolution.training.metadata import HEADER


@contextmanager
def norms_of_one_value() -> Iterator[None]:
    """Turn a batch norm's error for a single value of a channel into an InputError.

    Raises:
        InputError: the error occurred.
    """
    try:
        yield
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise InputError(
            f"a batch norm got only one value for a channel and cannot compute a variance ({error}); give "
            "--batch-size 2 or more, or a larger --image-size."
        ) from error


class TrainingModule(L.LightningModule, ABC):
    """Trains `model` and keeps its moving average, if any, and the history of the run; each task has a subclass.

    Args:
        model: the network to train.
        config: the run.
        metadata: description of the network for checkpoints, as plain JSON values.
    """

    #: Column of the history by which the best epoch is chosen.
    judged_by: str

    def __init__(self, model: nn.Module, config: RunConfig, metadata: dict[str, Any]) -> None:
        super().__init__()
        self.config, self.metadata = config, metadata
        self.model = model
        self.ema = ModelEmaV3(model, decay=config.ema_decay, use_warmup=True) if config.ema_decay else None
        if self.ema is not None:
            self.ema.requires_grad_(False)  # it gets no gradients, which distributed training would wait for
        self.history: list[dict[str, float]] = []
        self._losses: list[torch.Tensor] = []
        self._epoch_began = 0.0
        self._groups: list[dict[str, Any]] = []
        self._is_resumed = False

    @property
    def judged(self) -> nn.Module:
        """The network that is evaluated and exported: the moving average if there is one."""
        return self.model if self.ema is None else self.ema.module

    @property
    def eligible(self) -> list[dict[str, float]]:
        """The rows of the history among which the best epoch is chosen."""
        return self.history

    @abstractmethod
    def line(self, row: dict[str, float]) -> str:
        """One epoch of the history, as a line of text."""

    def on_train_start(self) -> None:
        self._epoch_began = time.perf_counter()
        if self._is_resumed:
            self._follow_config()

    def _follow_config(self) -> None:
        """Use the learning rates of this configuration instead of those in the checkpoint's optimizer."""
        for group, configured in zip(self.trainer.optimizers[0].param_groups, self._groups, strict=True):
            group.update(configured)
        # The schedules are functions of the step.
        self.lr_scheduler_step(self.trainer.lr_scheduler_configs[0].scheduler, None)

    def on_train_epoch_start(self) -> None:
        self._epoch_began = time.perf_counter()
        self._losses = []

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        # What is drawn at random then depends on the position in the run alone, whatever was resumed before.
        key = (self.config.seed, self.current_epoch, batch_idx, self.global_rank)
        torch.manual_seed(seed_generators(key))

    def checked(self, loss: torch.Tensor, batch_idx: int) -> torch.Tensor:
        """The loss, kept for the history.

        Raises:
            RunError: the loss is NaN or infinite.
        """
        if not torch.isfinite(loss):
            raise RunError(
                f"the loss became {float(loss.detach())} in epoch {self.current_epoch + 1}, batch "
                f"{batch_idx + 1} (step {self.global_step}); the last checkpoint was written before that. "
                "Use a lower --lr, or add --warmup-epochs or --clip-grad."
            )
        self._losses.append(loss.detach())
        self.log("loss", loss.detach(), prog_bar=True, logger=True, batch_size=self.config.batch_size)
        return loss

    def record(self, values: dict[str, float], last: dict[str, float]) -> None:
        """Add a row to the history: epoch, train_loss, ``values``, lr, seconds, and ``last``."""
        losses = torch.stack(self._losses) if self._losses else torch.full((1,), float("nan"))
        rate = self.trainer.optimizers[0].param_groups[0]["lr"]
        self.log("lr", rate)
        row = {"epoch": self.current_epoch + 1, "train_loss": float(losses.mean()), **values, "lr": float(rate)}
        self.history.append({**row, "seconds": time.perf_counter() - self._epoch_began, **last})

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        if self.ema is not None:
            self.ema.update(self.model, step=self.global_step)

    def configure_optimizers(self) -> Any:
        config = self.config
        try:
            groups = parameter_groups(self.model, config.lr, config.new_lr_factor, config.weight_decay)
            optimizer = create_optimizer_v2(groups, config.optimizer, lr=config.lr, momentum=config.momentum)
        except (ValueError, AssertionError, ModuleNotFoundError) as error:
            raise InputError(
                f"timm has no optimizer {config.optimizer!r} here ({error}); give another one, such as sgd or adamw."
            ) from error
        schedule = self._schedule(optimizer)
        self._groups = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _schedule(self, optimizer: torch.optim.Optimizer) -> Scheduler:
        config = self.config
        # timm takes fractions of an epoch, and says that it takes whole ones.
        warmup: Any = config.warmup_epochs
        updates = max(1, int(self.trainer.estimated_stepping_batches) // config.epochs)
        try:
            scheduler, _ = create_scheduler_v2(
                optimizer,
                config.schedule,
                num_epochs=config.epochs,
                decay_epochs=config.decay_epochs,
                decay_rate=config.decay_rate,
                decay_milestones=config.decay_milestones,
                warmup_epochs=warmup,
                warmup_lr=config.lr / 100,
                min_lr=config.min_lr,
                step_on_epochs=False,
                updates_per_epoch=updates,
            )
        except ValueError as error:
            raise InputError(
                f"timm has no schedule {config.schedule!r}; give another one, such as cosine, step or linear."
            ) from error
        return scheduler

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        scheduler.step_update(num_updates=self.global_step)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint[HEADER] = self.metadata
        checkpoint["config"] = self.config.to_dict()
        checkpoint["history"] = self.history
        checkpoint["epoch_losses"] = [float(loss) for loss in self._losses]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["lr_schedulers"] = []  # the schedule is this configuration's
        self._is_resumed = True
        self.history = list(checkpoint["history"])
        self._losses = [torch.tensor(loss, device=self.device) for loss in checkpoint["epoch_losses"]]
