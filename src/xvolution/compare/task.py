"""The interface for the parts of a comparison that depend on the task. Grid, statistics, page and launcher use `ComparedTask`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import nn

from xvolution.compare.statistics import Interval
from xvolution.deploy.measure import TORCH
from xvolution.training.config import RunConfig
from xvolution.training.evaluation import Evaluation

Config = TypeVar("Config", bound=RunConfig)
Judged = TypeVar("Judged", bound=Evaluation)


@dataclass(frozen=True)
class Metric:
    """A figure of a network's evaluation.

    Attributes:
        key: its name in `result.json` and, behind ``val_``, in the history of a training.
        name: its name in tables and sentences.
        fraction: whether it is one of 1, shown in percent.
    """

    key: str
    name: str
    fraction: bool = True


@dataclass(frozen=True)
class Timing:
    """Where the deployed networks are timed.

    Attributes:
        batch_size: images in the batch.
        device: device of torch.
        runtime: torch, or the name of a runtime for exported networks, which runs on the CPU.
    """

    batch_size: int
    device: torch.device
    runtime: str = TORCH


@dataclass(frozen=True)
class Form:
    """A deployed network, ready to be timed.

    Attributes:
        call: runs it once.
        facts: further facts about it, as JSON values.
    """

    call: Callable[[], object]
    facts: dict[str, Any]


class ComparedTask(ABC, Generic[Config, Judged]):
    """Checks, evaluates, counts and times the cells of a task.

    Attributes:
        metrics: the metrics of the evaluation; variants are ranked by the first.
        timed_on: text after "at batch 1" that describes the timed input.
        judged_anew: text after "other images of the same kind" that describes the first metric on resampled images.
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
        """Open the data of a recipe and return a function that builds a variant's network, without pretrained weights.

        Raises:
            InputError: the data cannot be used.
        """

    @abstractmethod
    def judge(self, trainings: Sequence[Config], judged: Sequence[Judged], folder: Path) -> dict[str, Any]:
        """The metrics of a cell's networks, from their evaluations.

        Args:
            trainings: configurations of the cell: one, or one for each fold.
            judged: the evaluation of each network.
            folder: folder for the file that `bootstrap` reads.

        Returns:
            The metrics by their keys.
        """

    @abstractmethod
    def costs(self, checkpoint: Path) -> dict[str, Any]:
        """``parameters`` and ``flops`` in the training form and, with ``deployed_``, deployed with the least arithmetic."""

    @abstractmethod
    def counted(self, result: Mapping[str, Any]) -> str:
        """The input for which a cell's FLOPs are counted, such as "one image"."""

    @abstractmethod
    def forms(self, recipe: Config, checkpoints: Mapping[str, Path], timing: Timing) -> dict[str, Form]:
        """The deployed form of each checkpoint, in the layout that is fastest there, on one batch for all of them.

        Raises:
            ExportError: a form cannot be written or run in the runtime.
        """

    @abstractmethod
    def bootstrap(self, own: Sequence[Path], base: Sequence[Path]) -> Interval | None:
        """The difference in the first metric over other seeds and other images.

        Args:
            own, base: the folders of a variant's and of the baseline's cells, in the order of their seeds.

        Returns:
            None if the cells were evaluated on different images, or there are too few.
        """
