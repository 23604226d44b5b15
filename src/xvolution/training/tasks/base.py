"""What differs between tasks, as one interface: each task is one object of the register."""

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
        type: of its values.
        help: what the command line says of it.
    """

    name: str
    type: type
    help: str

    @property
    def flag(self) -> str:
        """On the command line."""
        return f"--{self.name.replace('_', '-')}"


class Task(ABC, Generic[Config, Meta]):
    """How networks of one kind are configured, trained, stored, judged and deployed.

    The register is there before any training library is: what needs one is imported in the first lines of a method, so that
    the command line answers `--help` quickly, and a task whose libraries are missing leaves the others alone.

    Attributes:
        name: what `--task` calls it.
        options: by command, `evaluate`, `deploy` or `predict`, what this task takes beside what every task does.
        endings: of the files that its networks are deployed to.
        evaluation_batch: images in a batch of an evaluation, where nothing is said.
    """

    name: str
    options: ClassVar[Mapping[str, tuple[Option, ...]]]
    endings: ClassVar[tuple[str, ...]]
    evaluation_batch: ClassVar[int]

    @abstractmethod
    def defaults(self) -> Config:
        """The configuration of a training that nothing was said about."""

    def config(self, values: dict[str, Any]) -> Config:
        """The configuration that ``to_dict`` made these values of."""
        return type(self.defaults()).from_dict(values)

    @property
    @abstractmethod
    def metadata(self) -> type[Meta]:
        """What its files say about their networks."""

    def recognizes(self, header: Mapping[str, Any]) -> bool:
        """Whether ``to_dict`` of the metadata of this task's network made these values."""
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
        """The network in an exported file, which answers what the network itself does; the file compared with its checksum.

        Raises:
            InputError: there is none.
        """

    def load(
        self, path: str | os.PathLike[str], device: str | torch.device = "cpu", checksum: bool = True
    ) -> tuple[nn.Module, Meta]:
        """See `xvolution.training.load_model`.

        Raises:
            InputError: as there, and where the file holds a network of another type.
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
        """What one row of a training's history found, as the last line of `xvolution train` says it."""

    @abstractmethod
    def evaluate(self, model: nn.Module, metadata: Meta, settings: EvaluationSettings, **options: Any) -> Evaluation:
        """See `xvolution.training.evaluate`; ``options`` are the task's own."""

    @abstractmethod
    def deploy(self, model: nn.Module, metadata: Meta, settings: DeploySettings, **options: Any) -> DeployResult[Any]:
        """See `xvolution.training.deploy`; ``options`` are the task's own, and nothing is written yet."""

    def predictor(self, model: nn.Module, metadata: Meta, max_pixels: int | None = None) -> Predictor[Any]:
        """See `xvolution.load`.

        Raises:
            InputError: a network of this task takes no pictures.
        """
        raise InputError(f"{metadata.noun} cannot predict single pictures; give a classifier or a detector.")

    def predict(
        self, predictor: Predictor[Any], pictures: Sequence[Path], settings: PredictSettings, **options: Any
    ) -> Predictions:
        """See `xvolution.training.predict`; ``options`` are the task's own, and ``predictor`` is what `predictor` made."""
        raise NotImplementedError
