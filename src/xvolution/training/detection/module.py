"""The Lightning module of detection and instance segmentation."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from xvolution.training.coco.dataset import Batch
from xvolution.training.coco.metrics import CocoMetrics, shown
from xvolution.training.coco.source import DetectionSource
from xvolution.training.config import DetectionConfig
from xvolution.training.module import TrainingModule, norms_of_one_value


class Detection(TrainingModule):
    """Trains a detector with torchvision's interface on the sum of its losses.

    Args:
        model: images and targets to a dictionary of losses; in eval mode, images to detections.
        source: the evaluation images.
        config: the run.
        metadata: description of the network for checkpoints, as plain JSON values.
    """

    def __init__(
        self, model: nn.Module, source: DetectionSource, config: DetectionConfig, metadata: dict[str, Any]
    ) -> None:
        super().__init__(model, config, metadata)
        masks = config.task == "segment"
        self.judged_by = "val_mask_ap" if masks else "val_box_ap"
        self.metrics = CocoMetrics(source, masks)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        with norms_of_one_value():
            losses = self.model(batch["image"], batch["target"])
        self.log_dict({name: loss.detach() for name, loss in losses.items()}, batch_size=len(batch["image"]))
        return self.checked(torch.stack(list(losses.values())).sum(), batch_idx)

    def on_validation_epoch_start(self) -> None:
        self.metrics.reset()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        found = self.judged(batch["image"])
        for index, counted, detections in zip(batch["index"], batch["counted"], found, strict=True):
            if counted:
                self.metrics.update(index, detections)

    def on_validation_epoch_end(self) -> None:
        self.metrics.gather()
        values = {f"val_{name}": value for name, value in self.metrics.compute().items()}
        self.log_dict(values, sync_dist=False)
        self.record(values, {})

    def line(self, row: dict[str, float]) -> str:
        figures = f"box AP {shown(row['val_box_ap'])}  AP50 {shown(row['val_box_ap50'])}"
        return figures + (f"  mask AP {shown(row['val_mask_ap'])}" if "val_mask_ap" in row else "")
