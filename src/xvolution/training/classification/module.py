"""The Lightning module of image classification."""

from __future__ import annotations

from typing import Any

import torch
from timm.data import Mixup
from timm.loss import SoftTargetCrossEntropy
from torch import nn
from torch.optim.swa_utils import update_bn
from torch.utils.data import DataLoader

from xvolution.training.classification.annealing import Annealing
from xvolution.training.classification.distillation import Teacher, distilled
from xvolution.training.classification.metrics import ClassificationMetrics
from xvolution.training.config import TrainConfig
from xvolution.training.data.dataset import BAD, Batch
from xvolution.training.errors import InputError
from xvolution.training.module import TrainingModule, norms_of_one_value


class Classification(TrainingModule):
    """Trains a classifier.

    Args:
        model: (N, in_chans, H, W) images to (N, num_classes) logits.
        num_classes: number of classes.
        config: the run.
        metadata: description of the network for checkpoints, as plain JSON values.
        teacher: network from whose logits it also learns.
    """

    judged_by = "val_top1"
    config: TrainConfig

    def __init__(
        self,
        model: nn.Module,
        num_classes: int,
        config: TrainConfig,
        metadata: dict[str, Any],
        teacher: Teacher | None = None,
    ) -> None:
        memory_format = torch.channels_last if config.channels_last else torch.contiguous_format
        super().__init__(model.to(memory_format=memory_format), config, metadata)
        self._memory_format = memory_format
        self.metrics = ClassificationMetrics(num_classes)
        self.mixup = self._create_mixup(num_classes)
        self.loss = (
            SoftTargetCrossEntropy() if self.mixup else nn.CrossEntropyLoss(label_smoothing=config.label_smoothing)
        )
        self._teacher = () if teacher is None else (teacher,)  # no part of what checkpoints hold
        self.annealing = Annealing(self.model) if config.anneal_to_conv else None
        self._skipped = 0
        self._statistics_batches: DataLoader[Batch] | None = None
        if config.compile:
            self.model.compile()

    def _create_mixup(self, num_classes: int) -> Mixup | None:
        config = self.config
        if config.mixup == 0 and config.cutmix == 0:
            return None
        return Mixup(config.mixup, config.cutmix, label_smoothing=config.label_smoothing, num_classes=num_classes)

    def on_fit_start(self) -> None:
        for teacher in self._teacher:
            teacher.to(self.device).to(memory_format=self._memory_format)
        if self.annealing is not None and self.trainer.world_size > 1:
            raise InputError(
                "--anneal-to-conv trains on one device; leave it out, or give --devices 1 and --num-nodes 1."
            )

    def on_train_epoch_start(self) -> None:
        super().on_train_epoch_start()
        self._skipped = 0

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        super().on_train_batch_start(batch, batch_idx)
        if self.annealing is not None and self._is_annealed:
            self.annealing.begin(self.model)  # a resumed run may be in the middle of an epoch
            epochs, batches = self.config.anneal_to_conv, int(self.trainer.num_training_batches)
            done = self.current_epoch + (batch_idx + 1) / batches - (self.config.epochs - epochs)
            self.annealing.move_to(done / epochs)

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        images, target = batch["image"].contiguous(memory_format=self._memory_format), batch["target"]
        if self.mixup is not None:
            images, target = self.mixup(images, target)
        with norms_of_one_value():
            logits = self.model(images)
        loss = self.loss(logits, target)
        taught = self._taught(images)
        if taught is not None:
            loss = distilled(loss, logits, taught, self.config.teacher_weight, self.config.teacher_temperature)
        self.checked(loss, batch_idx)
        self._skipped += int((batch["status"] == BAD).sum())
        return loss

    @property
    def _is_annealed(self) -> bool:
        """Whether the annealing has begun in this epoch."""
        return self.current_epoch >= self.config.epochs - self.config.anneal_to_conv

    def _taught(self, images: torch.Tensor) -> torch.Tensor | None:
        """The logits to learn from: those of the network before its annealing if that has begun, else those of the teacher."""
        if self.annealing is not None and self._is_annealed:
            return self.annealing.taught(images)
        for teacher in self._teacher:
            return teacher(images)
        return None

    @property
    def eligible(self) -> list[dict[str, float]]:
        rows = [row for row in self.history if row.get("gates_annealed") == 1]
        return rows or self.history

    def on_validation_epoch_start(self) -> None:
        self.metrics.reset()
        if self.config.recalibrate_norms:
            self._recalibrate_norms()

    def _recalibrate_norms(self) -> None:
        trainer: Any = self.trainer  # Lightning's class does not declare its data module
        if self._statistics_batches is None:
            self._statistics_batches = trainer.datamodule.statistics_batches(self.config.recalibrate_norms)
        images = (
            batch["image"].to(self.device).contiguous(memory_format=self._memory_format)
            for batch in self._statistics_batches
        )
        with trainer.precision_plugin.val_step_context(), norms_of_one_value():
            update_bn(images, self.judged)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self.metrics.update(self.judged(batch["image"].contiguous(memory_format=self._memory_format)), batch)

    def on_validation_epoch_end(self) -> None:
        if self.trainer.sanity_checking:
            return
        values = {f"val_{name}": value for name, value in self.metrics.compute().items()}
        self.log_dict(values, prog_bar=True, sync_dist=False)
        annealed = {} if self.annealing is None else {"gates_annealed": self.annealing.share}
        self.record(values, {"skipped_images": self._skipped + self.metrics.skipped, **annealed})

    def line(self, row: dict[str, float]) -> str:
        figures = f"val loss {row['val_loss']:.4f}  top-1 {row['val_top1']:.2%}  top-5 {row['val_top5']:.2%}"
        skipped = int(row["skipped_images"])
        return figures + (f"  {skipped} unreadable images skipped" if skipped else "")
