"""The images of each batch, as pure functions of seed and epoch, so that a resumed run sees the same batches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from torch.utils.data import Sampler


@dataclass(frozen=True)
class Draw:
    """One image to load. `padding` fills up the last batch of a process and is not counted."""

    index: int
    epoch: int = 0
    padding: bool = False


class EpochBatches(Sampler[list[Draw]]):
    """Shuffled training batches of one process; the incomplete last batch is dropped.

    The order depends on (seed, epoch) alone. `start` makes the next pass begin with a later batch of its epoch.
    """

    def __init__(self, length: int, batch_size: int, seed: int, rank: int = 0, world_size: int = 1) -> None:
        self.length, self.batch_size, self.seed = length, batch_size, seed
        self.rank, self.world_size = rank, world_size
        self.epoch, self.first_batch = 0, 0

    @property
    def sampler(self) -> EpochBatches:
        """Itself: Lightning calls `batch_sampler.sampler.set_epoch` before each epoch."""
        return self

    def set_epoch(self, epoch: int) -> None:
        if epoch != self.epoch:
            self.epoch, self.first_batch = epoch, 0

    def start(self, epoch: int, batch: int) -> None:
        self.epoch, self.first_batch = epoch, batch

    def __len__(self) -> int:
        return self.length // (self.batch_size * self.world_size)

    def __iter__(self) -> Iterator[list[Draw]]:
        order = np.random.default_rng((self.seed, self.epoch)).permutation(self.length)
        mine = order[self.rank :: self.world_size]
        batches = mine[: len(self) * self.batch_size].reshape(len(self), self.batch_size)[self.first_batch :]
        return iter([[Draw(int(index), self.epoch) for index in batch] for batch in batches])


class EvaluationBatches(Sampler[list[Draw]]):
    """Every image once, in order, distributed over the processes; all processes get equally many batches of equal length.

    Processes synchronize after each batch, so shorter batches are padded; metrics ignore the padding.
    """

    def __init__(self, length: int, batch_size: int, rank: int = 0, world_size: int = 1) -> None:
        self.length, self.batch_size, self.rank, self.world_size = length, batch_size, rank, world_size

    def __len__(self) -> int:
        return -(-self._share // self.batch_size)

    @property
    def _share(self) -> int:
        return -(-self.length // self.world_size)

    def __iter__(self) -> Iterator[list[Draw]]:
        draws = [Draw(index) for index in range(self.rank, self.length, self.world_size)]
        draws += [Draw(0, padding=True)] * (self._share - len(draws))
        return iter([draws[start : start + self.batch_size] for start in range(0, len(draws), self.batch_size)])
