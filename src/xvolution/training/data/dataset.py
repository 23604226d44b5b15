"""A source of images as tensors, with augmentation seeded for every image and handling of bad images."""

from __future__ import annotations

import random
import warnings
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from xvolution.signals import end_with_parent
from xvolution.training.data.reading import BadImage
from xvolution.training.data.sampler import Draw, EvaluationBatches
from xvolution.training.data.sources import ImageSource
from xvolution.training.data.transforms import Preprocessing, Transform, evaluation_transform

GOOD, PADDING, BAD = 0, 1, 2
Batch = dict[str, torch.Tensor]


class ClassificationDataset(Dataset[Batch]):
    """Returns, for a `Draw`, {"image": (C, H, W) float32, "target": int64, "index": int64, "status": GOOD | PADDING | BAD}.

    Args:
        source: the images.
        transform: PIL image to tensor.
        seed: of the augmentation; each image's is seeded by (seed, epoch, index). None where the transform draws nothing.
        on_bad_image: "error" raises `BadImage`. "skip" uses the next readable image instead in training, and
            leaves it out of the metrics in evaluation; the status is BAD in both cases.
        channels: C, 3 for colour or 1 for grey.
    """

    def __init__(
        self,
        source: ImageSource,
        transform: Transform,
        seed: int | None = None,
        on_bad_image: str = "error",
        channels: int = 3,
    ) -> None:
        self.source, self.transform, self.seed, self.on_bad_image = source, transform, seed, on_bad_image
        self.channels = channels

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, draw: Draw) -> Batch:
        index, status = draw.index, PADDING if draw.padding else GOOD
        try:
            image = self.source.image(index, self.channels)
        except BadImage as error:
            if self.on_bad_image != "skip":
                raise
            warnings.warn(f"skipped: {error}", stacklevel=2)
            status = max(status, BAD) if not draw.padding else PADDING
            index, image = self._next_readable(index)
        if self.seed is not None:
            seed_generators((self.seed, draw.epoch, draw.index))
        return {
            "image": self.transform(image),
            "target": torch.tensor(int(self.source.labels[index])),
            "index": torch.tensor(draw.index),
            "status": torch.tensor(status),
        }

    def _next_readable(self, index: int) -> tuple[int, Any]:
        for step in range(1, len(self.source)):
            candidate = (index + step) % len(self.source)
            try:
                return candidate, self.source.image(candidate, self.channels)
            except BadImage:
                continue
        raise BadImage(f"no image is readable; the last one tried was {self.source.describe(index)}.")


def seed_generators(key: tuple[int, ...]) -> int:
    """Seed Python's, NumPy's and torch's CPU generators from a tuple of counters; returns torch's seed."""
    state = np.random.SeedSequence(key).generate_state(2, np.uint32)
    random.seed(int(state[0]))
    np.random.seed(int(state[0]))  # noqa: NPY002 - timm's transforms draw from this one
    torch.default_generator.manual_seed(int(state[1]))
    return int(state[1])


def evaluation_loader(
    source: ImageSource,
    preprocessing: Preprocessing,
    batch_size: int,
    *,
    workers: int = 0,
    on_bad_image: str = "error",
    rank: int = 0,
    world_size: int = 1,
    pin_memory: bool = False,
) -> DataLoader[Batch]:
    """Batches of every image once, in order; see `EvaluationBatches` for more than one process."""
    return DataLoader(
        ClassificationDataset(
            source, evaluation_transform(preprocessing), on_bad_image=on_bad_image, channels=preprocessing.channels
        ),
        batch_sampler=EvaluationBatches(len(source), batch_size, rank, world_size),
        num_workers=workers,
        pin_memory=pin_memory,
        persistent_workers=workers > 0,
        worker_init_fn=end_with_parent,
    )
