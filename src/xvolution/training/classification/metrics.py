"""The metrics every evaluation reports: loss, top-1 and top-5 accuracy."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F
from torchmetrics import MeanMetric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from xvolution.training.data.dataset import BAD, GOOD, Batch


class ClassificationMetrics(nn.Module):
    """Sums over images and, by torchmetrics, over processes. Padding and unreadable images do not count.

    Args:
        num_classes: number of classes; with n < 5 classes, top-5 is top-n.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.accuracy = MetricCollection(
            {
                "top1": MulticlassAccuracy(num_classes, top_k=1, average="micro"),
                "top5": MulticlassAccuracy(num_classes, top_k=min(5, num_classes), average="micro"),
            },
            compute_groups=False,
        )
        self.loss = MeanMetric()
        self.images = 0
        self.skipped = 0

    def update(self, logits: torch.Tensor, batch: Batch) -> None:
        """Add the logits (N, num_classes) of a batch of N images."""
        counted = batch["status"] == GOOD
        self.images += int(counted.sum())
        self.skipped += int((batch["status"] == BAD).sum())
        logits, target = logits[counted].float(), batch["target"][counted]
        if len(target) == 0:
            return
        self.accuracy.update(logits, target)
        losses = F.cross_entropy(logits, target, reduction="none")
        self.loss.update(losses.double())

    def compute(self) -> dict[str, float]:
        """Return {"loss", "top1", "top5"} over all processes; accuracies are fractions."""
        accuracy = self.accuracy.compute()
        return {"loss": float(self.loss.compute()), **{name: float(value) for name, value in accuracy.items()}}

    def reset(self) -> None:
        self.accuracy.reset()
        self.loss.reset()
        self.images = self.skipped = 0
