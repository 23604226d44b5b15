"""The Lightning module of image classification."""

from __future__ import annotations

from typing import Any

import torch
from timm.data import Mixup
from timm.loss import SoftTargetCrossEntropy
from torch import nn
from torch.optim.swa_utils import update_bn
from torch.utils.data import DataLoader

from xvolution.training.classification.distillation import Teacher, distilled
from xvolution.training.classification.metrics import ClassificationMetrics
from xvolution.training.config import TrainConfig
from xvolution.training.data.dataset import BAD, Batch
from xvolution.training.module import TrainingModule, norms_of_one_value


class Classification(TrainingModule):
    """Trains a classifier.

    Args:
        model: (N, in_chans, H, W) images to (N, num_classes) logits.
        num_classes: of the model.
        config: the run.
        metadata: what a checkpoint says about its network; plain JSON values.
        teacher: whose logits it learns from too.
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
            teacher.to(self.device, memory_format=self._memory_format)

    def on_train_epoch_start(self) -> None:
        super().on_train_epoch_start()
        self._skipped = 0

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        images, target = batch["image"].contiguous(memory_format=self._memory_format), batch["target"]
        if self.mixup is not None:
            images, target = self.mixup(images, target)
        with norms_of_one_value():
            logits = self.model(images)
        loss = self.loss(logits, target)
        for teacher in self._teacher:
            weight, temperature = self.config.teacher_weight, self.config.teacher_temperature
            loss = distilled(loss, logits, teacher(images), weight, temperature)
        self.checked(loss, batch_idx)
        self._skipped += int((batch["status"] == BAD).sum())
        return loss

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
        self.record(values, {"skipped_images": self._skipped + self.metrics.skipped})

    def line(self, row: dict[str, float]) -> str:
        figures = f"val loss {row['val_loss']:.4f}  top-1 {row['val_top1']:.2%}  top-5 {row['val_top5']:.2%}"
        skipped = int(row["skipped_images"])
        return figures + (f"  {skipped} unreadable images skipped" if skipped else "")
