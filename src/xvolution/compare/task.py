"""What comparisons of different tasks do not share. Grid, statistics, page and launcher ask a `ComparedTask`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import nn

from xvolution.compare.statistics import Interval
from xvolution.training.config import RunConfig
from xvolution.training.evaluation import Evaluation

Config = TypeVar("Config", bound=RunConfig)
Judged = TypeVar("Judged", bound=Evaluation)


@dataclass(frozen=True)
class Metric:
    """A figure that a network is judged by.

    Attributes:
        key: its name in `result.json` and, behind ``val_``, in the history of a training.
        name: what tables and sentences call it.
        fraction: whether it is one of 1, shown in percent.
    """

    key: str
    name: str
    fraction: bool = True


@dataclass(frozen=True)
class Form:
    """A deployed network, ready to be timed.

    Attributes:
        call: runs it once.
        facts: what else there is to say about it, as JSON values.
    """

    call: Callable[[], object]
    facts: dict[str, Any]


class ComparedTask(ABC, Generic[Config, Judged]):
    """How cells are checked, judged, counted and timed.

    Attributes:
        metrics: what networks are judged by; variants are ranked by the first.
        timed_on: what a latency is of, behind "at batch 1".
        judged_anew: how the first metric is had on other images, behind "other images of the same kind".
    """

    metrics: tuple[Metric, ...]
    timed_on: str
    judged_anew: str

    @property
    def metric(self) -> Metric:
        """The metric that variants are ranked by."""
        return self.metrics[0]

    @abstractmethod
    def builder(self, recipe: Config) -> Callable[[Config], nn.Module]:
        """Open the data of a recipe and answer what builds a variant's network for them, without pretrained weights.

        Raises:
            InputError: the data cannot be used.
        """

    @abstractmethod
    def judge(self, trainings: Sequence[Config], judged: Sequence[Judged], folder: Path) -> dict[str, Any]:
        """Say what the evaluation of a cell's networks found.

        Args:
            trainings: of the cell: one, or one for each fold.
            judged: each network by its images.
            folder: where what `bootstrap` reads is left.

        Returns:
            The metrics by their keys.
        """

    @abstractmethod
    def costs(self, checkpoint: Path) -> dict[str, Any]:
        """``parameters`` and ``flops`` in the training form and, with ``deployed_``, deployed with the least arithmetic."""

    @abstractmethod
    def counted(self, result: Mapping[str, Any]) -> str:
        """What the FLOPs in a cell's result are of, such as "one image"."""

    @abstractmethod
    def forms(
        self, recipe: Config, checkpoints: Mapping[str, Path], batch_size: int, device: torch.device
    ) -> dict[str, Form]:
        """The deployed form of each checkpoint, in the layout that is fastest on the device, on one batch for all of them."""

    @abstractmethod
    def bootstrap(self, own: Sequence[Path], base: Sequence[Path]) -> Interval | None:
        """The difference in the first metric over other seeds and other images.

        Args:
            own, base: the folders of a variant's and of the baseline's cells, in the order of their seeds.

        Returns:
            None where the cells were not judged by the same images, or there is too little to say.
        """
