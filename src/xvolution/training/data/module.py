"""The data module: training and evaluation batches for this process, and the position in the epoch for resumed runs."""

from __future__ import annotations

import os
from typing import Any

import lightning as L
import numpy as np
import torch
from torch.utils.data import DataLoader

from xvolution.signals import end_with_parent
from xvolution.training.data.catalog import DataSplits
from xvolution.training.data.dataset import Batch, ClassificationDataset, evaluation_loader
from xvolution.training.data.memory import ImagesInMemory
from xvolution.training.data.sampler import EpochBatches, EvaluationBatches
from xvolution.training.data.sources import ImageSource
from xvolution.training.data.transforms import Augmentation, Preprocessing, training_transform
from xvolution.training.errors import InputError


class ResumableData(L.LightningDataModule):
    """Stores the position of training in checkpoints: ``resume_at``, the epoch and its next batch."""

    def __init__(self) -> None:
        super().__init__()
        self.resume_at = (0, 0)

    def state_dict(self) -> dict[str, Any]:
        """The epoch and batch that come next."""
        assert self.trainer is not None
        done = self.trainer.fit_loop.epoch_loop.batch_progress.current.ready
        if done >= self.trainer.num_training_batches:
            return {"epoch": self.trainer.current_epoch + 1, "batch": 0}
        return {"epoch": self.trainer.current_epoch, "batch": done}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.resume_at = (state_dict["epoch"], state_dict["batch"])

    def process(self) -> tuple[int, int]:
        """Rank and number of the processes that share the data."""
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer is not None else (0, 1)


class ClassificationData(ResumableData):
    """Batches are those of `ClassificationDataset`.

    Args:
        splits: the images.
        preprocessing: for both parts.
        augmentation: for the training part.
        batch_size: of one process.
        seed: of order and augmentation.
        workers: processes that decode; 0 decodes in the training process.
        on_bad_image: "error" or "skip".
        in_memory: hold the images on the training device with `ImagesInMemory`; workers then decode no images.
    """

    def __init__(
        self,
        splits: DataSplits,
        preprocessing: Preprocessing,
        augmentation: Augmentation,
        batch_size: int,
        seed: int = 0,
        workers: int = 0,
        on_bad_image: str = "error",
        in_memory: bool = False,
    ) -> None:
        super().__init__()
        self.splits, self.preprocessing, self.augmentation = splits, preprocessing, augmentation
        self.batch_size, self.seed, self.workers, self.on_bad_image = batch_size, seed, workers, on_bad_image
        self.in_memory = in_memory

    def train_dataloader(self) -> DataLoader[Batch]:
        rank, world_size = self.process()
        batches = EpochBatches(len(self.splits.train), self.batch_size, self.seed, rank, world_size)
        if len(batches) == 0:
            raise InputError(
                f"{len(self.splits.train)} training images are fewer than one batch of {self.batch_size} for each of "
                f"{world_size} processes; use a smaller batch size."
            )
        batches.start(*self.resume_at)
        if self.in_memory:
            images = self._images_in_memory(self.splits.train, self.augmentation)
            return DataLoader(images, batch_size=None, sampler=batches)
        transform = training_transform(self.preprocessing, self.augmentation)
        return DataLoader(
            ClassificationDataset(
                self.splits.train, transform, self.seed, self.on_bad_image, self.preprocessing.channels
            ),
            batch_sampler=batches,
            num_workers=self.workers,
            pin_memory=torch.cuda.is_available(),
            persistent_workers=self.workers > 0,
            worker_init_fn=end_with_parent,
        )

    def statistics_batches(self, images: int) -> DataLoader[Batch]:
        """This number of training images with the evaluation's preprocessing, the same at every call."""
        drawn = np.random.default_rng((self.seed, images)).permutation(len(self.splits.train))[:images]
        return self._judging_batches(self.splits.train.subset(drawn))

    def _images_in_memory(self, source: ImageSource, augmentation: Augmentation | None) -> ImagesInMemory:
        device = self.trainer.strategy.root_device if self.trainer is not None else "cpu"
        return ImagesInMemory(source, self.preprocessing, augmentation, self.seed, self.on_bad_image, device)

    def val_dataloader(self) -> DataLoader[Batch]:
        return self._judging_batches(self.splits.val, *self.process())

    def _judging_batches(self, source: ImageSource, rank: int = 0, world_size: int = 1) -> DataLoader[Batch]:
        if self.in_memory:
            images = self._images_in_memory(source, None)
            batches = EvaluationBatches(len(images), self.batch_size, rank, world_size)
            return DataLoader(images, batch_size=None, sampler=batches)
        return evaluation_loader(
            source,
            self.preprocessing,
            self.batch_size,
            workers=self.workers,
            on_bad_image=self.on_bad_image,
            rank=rank,
            world_size=world_size,
            pin_memory=torch.cuda.is_available(),
        )


def default_workers(splits: DataSplits) -> int:
    """0 for digits, whose images are tiny and in memory, else the number of cores minus one, at most 8."""
    return 0 if splits.name == "digits" else max(0, min(8, (os.cpu_count() or 1) - 1))
