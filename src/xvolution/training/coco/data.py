"""The data module of detection: batches of images of similar shape for training, every image once for evaluation."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch.utils.data import DataLoader

from xvolution.signals import end_with_parent
from xvolution.training.coco.dataset import Batch, DetectionDataset, collate, training_transform
from xvolution.training.coco.source import DetectionSource, DetectionSplits
from xvolution.training.data.module import ResumableData
from xvolution.training.data.sampler import Draw, EpochBatches, EvaluationBatches
from xvolution.training.errors import InputError


class AspectBatches(EpochBatches):
    """Shuffled training batches of one process, each of images that are wide or of images that are high.

    A detector pads the images of a batch to one size; images of similar shape need less padding. All processes use batches of
    the same kind at the same time. The incomplete last batch of each kind is dropped.

    Args:
        aspect_ratios: (n,) width over height of every image.
        batch_size: batch size of one process.
        seed: seed of the order, together with the epoch.
        rank, world_size: index and number of processes.
    """

    def __init__(
        self, aspect_ratios: np.ndarray, batch_size: int, seed: int, rank: int = 0, world_size: int = 1
    ) -> None:
        super().__init__(len(aspect_ratios), batch_size, seed, rank, world_size)
        self.groups = [np.flatnonzero(aspect_ratios >= 1), np.flatnonzero(aspect_ratios < 1)]

    def __len__(self) -> int:
        return sum(len(group) // (self.batch_size * self.world_size) for group in self.groups)

    def __iter__(self) -> Iterator[list[Draw]]:
        generator = np.random.default_rng((self.seed, self.epoch))
        together = self.batch_size * self.world_size
        batches = []
        for group in self.groups:
            order = generator.permutation(group)[: len(group) // together * together]
            batches += list(order.reshape(-1, together))
        order = generator.permutation(len(batches))[self.first_batch :]
        mine = (batches[position][self.rank :: self.world_size] for position in order)
        return iter([[Draw(int(index), self.epoch) for index in batch] for batch in mine])


class DetectionData(ResumableData):
    """Batches are those of ``DetectionDataset``.

    Args:
        splits: the images.
        batch_size: of one process.
        hflip: probability of mirroring a training image.
        large_scale_jitter: side in pixels of the squares of large-scale jitter; None leaves it out.
        aspect_groups: batches of images of like shape.
        seed: of order and augmentation.
        workers: processes that decode; 0 decodes in the training process.
        on_bad_image: "error" or "skip".
    """

    def __init__(
        self,
        splits: DetectionSplits,
        batch_size: int,
        hflip: float = 0.5,
        large_scale_jitter: int | None = None,
        aspect_groups: bool = True,
        seed: int = 0,
        workers: int = 0,
        on_bad_image: str = "error",
    ) -> None:
        super().__init__()
        self.splits, self.batch_size, self.seed = splits, batch_size, seed
        self.transform = training_transform(hflip, large_scale_jitter)
        self.aspect_groups, self.workers, self.on_bad_image = aspect_groups, workers, on_bad_image

    def train_dataloader(self) -> DataLoader[Batch]:
        rank, world_size = self.process()
        source = self.splits.train
        ratios = source.aspect_ratios if self.aspect_groups else np.ones(len(source))
        batches = AspectBatches(ratios, self.batch_size, self.seed, rank, world_size)
        if len(batches) == 0:
            raise InputError(
                f"{len(source)} training images are too few for one batch of {self.batch_size} in each of "
                f"{world_size} processes; use a smaller batch size, or --no-aspect-groups."
            )
        batches.start(*self.resume_at)
        return DataLoader(
            DetectionDataset(source, self.transform, self.seed, self.on_bad_image),
            batch_sampler=batches,
            num_workers=self.workers,
            collate_fn=collate,
            pin_memory=torch.cuda.is_available(),
            persistent_workers=self.workers > 0,
            worker_init_fn=end_with_parent,
        )

    def val_dataloader(self) -> DataLoader[Batch]:
        rank, world_size = self.process()
        return detection_loader(
            self.splits.val, self.batch_size, self.workers, self.on_bad_image, rank=rank, world_size=world_size
        )


def detection_loader(
    source: DetectionSource,
    batch_size: int = 1,
    workers: int = 0,
    on_bad_image: str = "error",
    *,
    rank: int = 0,
    world_size: int = 1,
) -> DataLoader[Batch]:
    """Every image of a source once, in order."""
    return DataLoader(
        DetectionDataset(source, on_bad_image=on_bad_image),
        batch_sampler=EvaluationBatches(len(source), batch_size, rank, world_size),
        num_workers=workers,
        collate_fn=collate,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=end_with_parent,
    )
