"""The interface of a task; each task is one object in the register."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from xvolution.training.config import RunConfig
from xvolution.training.errors import InputError

if TYPE_CHECKING:
    import torch
    from torch import nn

    from xvolution.deploy.runtimes import LoadedFile, Runtime
    from xvolution.training.deployment import DeployResult, DeploySettings
    from xvolution.training.evaluation import Evaluation, EvaluationSettings
    from xvolution.training.exported_file import ExportedNetwork
    from xvolution.training.fit import TrainResult
    from xvolution.training.metadata import Metadata
    from xvolution.training.predictor import Predictions, Predictor, PredictSettings

Config = TypeVar("Config", bound=RunConfig)
Meta = TypeVar("Meta", bound="Metadata")


@dataclass(frozen=True)
class Option:
    """An option of `evaluate`, `deploy` or `predict` that not every task has.

    Attributes:
        name: the keyword.
        type: type of its values.
        help: its text on the command line.
    """

    name: str
    type: type
    help: str

    @property
    def flag(self) -> str:
        """The flag on the command line."""
        return f"--{self.name.replace('_', '-')}"


class Task(ABC, Generic[Config, Meta]):
    """Configures, trains, stores, evaluates and deploys networks of one kind.

    The register is loaded before any training library. A method imports the libraries that it needs in its first lines, so
    that `--help` is fast, and a task with missing libraries does not affect the others.

    Attributes:
        name: its name for `--task`.
        options: options of this task for each command (`evaluate`, `deploy`, `predict`), besides those of every task.
        endings: endings of the files to which its networks are deployed.
        evaluation_batch: default number of images in a batch of an evaluation.
    """

    name: str
    options: ClassVar[Mapping[str, tuple[Option, ...]]]
    endings: ClassVar[tuple[str, ...]]
    evaluation_batch: ClassVar[int]

    @abstractmethod
    def defaults(self) -> Config:
        """The configuration of a training with all defaults."""

    def config(self, values: dict[str, Any]) -> Config:
        """The configuration from the values of its ``to_dict``."""
        return type(self.defaults()).from_dict(values)

    @property
    @abstractmethod
    def metadata(self) -> type[Meta]:
        """The metadata of its files."""

    def recognizes(self, header: Mapping[str, Any]) -> bool:
        """Whether these are the values of ``to_dict`` of this task's metadata."""
        from xvolution.training.metadata import type_of

        return type_of(header) == self.metadata.type

    @abstractmethod
    def build(self, metadata: Meta) -> nn.Module:
        """The network in the form that the metadata describe, in eval mode, with random weights, on the CPU.

        Raises:
            ModelError: it cannot be built.
        """

    @abstractmethod
    def exported_network(
        self, path: str | os.PathLike[str], runtime: Runtime[LoadedFile], checksum: bool = True
    ) -> ExportedNetwork:
        """The network in an exported file, with the same outputs as the network; the file is checked against its checksum.

        Raises:
            InputError: there is no such file.
        """

    def load(
        self, path: str | os.PathLike[str], device: str | torch.device = "cpu", checksum: bool = True
    ) -> tuple[nn.Module, Meta]:
        """See `xvolution.training.load_model`.

        Raises:
            InputError: as there, or the file holds a network of another type.
        """
        from xvolution.training.building import build_for
        from xvolution.training.checkpoint import load_weights, read_weights
        from xvolution.training.exported_file import read_exported_header, runtime_that_runs

        runtime = runtime_that_runs(path)
        if runtime is not None:
            described = self.metadata.from_dict(read_exported_header(path, runtime))
            return self.exported_network(path, runtime, checksum).eval(), described
        weights, header = read_weights(path, checksum)
        metadata = self.metadata.from_dict(header)
        name, deployed = f"{path} ({metadata.model.name})", metadata.form == "deployed"
        training = replace(metadata, form="training")
        model = build_for(
            weights, name, lambda: self.build(training), (lambda: self.build(metadata)) if deployed else None
        )
        load_weights(model, weights, name)
        return model.to(device).eval(), metadata

    @abstractmethod
    def train(self, config: Config) -> TrainResult:
        """See `xvolution.training.train`."""

    @abstractmethod
    def figures(self, metrics: Mapping[str, float]) -> str:
        """The metrics in one row of a training's history, for the last line of `xvolution train`."""

    @abstractmethod
    def evaluate(self, model: nn.Module, metadata: Meta, settings: EvaluationSettings, **options: Any) -> Evaluation:
        """See `xvolution.training.evaluate`; ``options`` are the task's own."""

    @abstractmethod
    def deploy(self, model: nn.Module, metadata: Meta, settings: DeploySettings, **options: Any) -> DeployResult[Any]:
        """See `xvolution.training.deploy`; ``options`` are the task's own, and nothing is written yet."""

    def predictor(self, model: nn.Module, metadata: Meta, max_pixels: int | None = None) -> Predictor[Any]:
        """See `xvolution.load`.

        Raises:
            InputError: networks of this task cannot predict pictures.
        """
        raise InputError(f"{metadata.noun} cannot predict single pictures; give a classifier or a detector.")

    def predict(
        self, predictor: Predictor[Any], pictures: Sequence[Path], settings: PredictSettings, **options: Any
    ) -> Predictions:
        """See `xvolution.training.predict`; ``options`` are the task's own, and ``predictor`` is the result of `predictor`."""
        raise NotImplementedError
