"""The Lightning module of image classification."""

from __future__ import annotations

import time
from typing import Any

import lightning as L
import torch
from timm.data import Mixup
from timm.loss import SoftTargetCrossEntropy
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.scheduler.scheduler import Scheduler
from timm.utils import ModelEmaV3
from torch import nn

from xvolution.training.config import TrainConfig
from xvolution.training.data.dataset import BAD, Batch, seed_generators
from xvolution.training.errors import InputError, RunError
from xvolution.training.metrics import ClassificationMetrics


class Classification(L.LightningModule):
    """Trains `model` and keeps its moving average, if any, and the history of the run.

    Args:
        model: (N, 3, H, W) images to (N, num_classes) logits.
        num_classes: of the model.
        config: the run.
        metadata: what a checkpoint says about its network; plain JSON values.
    """

    def __init__(self, model: nn.Module, num_classes: int, config: TrainConfig, metadata: dict[str, Any]) -> None:
        super().__init__()
        self.config, self.metadata = config, metadata
        self.model = model.to(memory_format=self._memory_format)
        self.ema = ModelEmaV3(model, decay=config.ema_decay, use_warmup=True) if config.ema_decay else None
        if self.ema is not None:
            self.ema.requires_grad_(False)  # it gets no gradients, which distributed training would wait for
        self.metrics = ClassificationMetrics(num_classes)
        self.history: list[dict[str, float]] = []
        self.mixup = self._create_mixup(num_classes)
        self.loss = (
            SoftTargetCrossEntropy() if self.mixup else nn.CrossEntropyLoss(label_smoothing=config.label_smoothing)
        )
        self._losses: list[torch.Tensor] = []
        self._skipped = 0
        self._epoch_began = 0.0
        if config.compile:
            self.model.compile()

    @property
    def judged(self) -> nn.Module:
        """The network that is evaluated and exported: the moving average where there is one."""
        return self.model if self.ema is None else self.ema.module

    @property
    def _memory_format(self) -> torch.memory_format:
        return torch.channels_last if self.config.channels_last else torch.contiguous_format

    def _create_mixup(self, num_classes: int) -> Mixup | None:
        config = self.config
        if config.mixup == 0 and config.cutmix == 0:
            return None
        return Mixup(config.mixup, config.cutmix, label_smoothing=config.label_smoothing, num_classes=num_classes)

    def on_train_start(self) -> None:
        self._epoch_began = time.perf_counter()

    def on_train_epoch_start(self) -> None:
        self._epoch_began = time.perf_counter()
        self._losses, self._skipped = [], 0

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        # Mixup, dropout and drop-path then depend on the position in the run alone, whatever was resumed before.
        key = (self.config.seed, self.current_epoch, batch_idx, self.global_rank)
        torch.manual_seed(seed_generators(key))

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        images, target = batch["image"].contiguous(memory_format=self._memory_format), batch["target"]
        if self.mixup is not None:
            images, target = self.mixup(images, target)
        loss = self.loss(self.model(images), target)
        if not torch.isfinite(loss):
            raise RunError(
                f"the loss became {float(loss.detach())} in epoch {self.current_epoch + 1}, batch {batch_idx + 1} (step "
                f"{self.global_step}); the last checkpoint is from before that. Lower --lr, add --warmup-epochs or --clip-grad."
            )
        self._losses.append(loss.detach())
        self._skipped += int((batch["status"] == BAD).sum())
        self.log("loss", loss.detach(), prog_bar=True, logger=True)
        return loss

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        if self.ema is not None:
            self.ema.update(self.model, step=self.global_step)

    def on_validation_epoch_start(self) -> None:
        self.metrics.reset()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self.metrics.update(self.judged(batch["image"].contiguous(memory_format=self._memory_format)), batch)

    def on_validation_epoch_end(self) -> None:
        if self.trainer.sanity_checking:
            return
        values = {f"val_{name}": value for name, value in self.metrics.compute().items()}
        self.log_dict(values, prog_bar=True, sync_dist=False)
        losses = torch.stack(self._losses) if self._losses else torch.full((1,), float("nan"))
        rate = self.trainer.optimizers[0].param_groups[0]["lr"]
        self.log("lr", rate)
        self.history.append(
            {
                "epoch": self.current_epoch + 1,
                "train_loss": float(losses.mean()),
                **values,
                "lr": float(rate),
                "seconds": time.perf_counter() - self._epoch_began,
                "skipped_images": self._skipped + self.metrics.skipped,
            }
        )

    def configure_optimizers(self) -> Any:
        config = self.config
        try:
            optimizer = create_optimizer_v2(
                self.model, config.optimizer, lr=config.lr, weight_decay=config.weight_decay, momentum=config.momentum
            )
        except (ValueError, AssertionError, ModuleNotFoundError) as error:
            raise InputError(
                f"timm has no optimizer {config.optimizer!r} here ({error}); sgd and adamw are two."
            ) from error
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": self._schedule(optimizer), "interval": "step"}}

    def _schedule(self, optimizer: torch.optim.Optimizer) -> Scheduler:
        config = self.config
        try:
            scheduler, _ = create_scheduler_v2(
                optimizer,
                config.schedule,
                num_epochs=config.epochs,
                decay_epochs=config.decay_epochs,
                decay_rate=config.decay_rate,
                warmup_epochs=config.warmup_epochs,
                warmup_lr=config.lr / 100,
                min_lr=config.min_lr,
                step_on_epochs=False,
                updates_per_epoch=max(1, int(self.trainer.estimated_stepping_batches) // config.epochs),
            )
        except ValueError as error:
            raise InputError(f"timm has no schedule {config.schedule!r}; cosine, step and linear are three.") from error
        return scheduler

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        scheduler.step_update(num_updates=self.global_step)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["xvolution"] = self.metadata
        checkpoint["history"] = self.history
        checkpoint["epoch_losses"] = [float(loss) for loss in self._losses]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.history = list(checkpoint["history"])
        self._losses = [torch.tensor(loss, device=self.device) for loss in checkpoint["epoch_losses"]]
