"""The settings and results of every deployment, and writing them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

from torch import Tensor, nn

from xvolution.deploy.export import ExportError
from xvolution.deploy.measure import AUTO, TORCH, LayoutChoice, Progress
from xvolution.deploy.runtimes import runtime_for
from xvolution.operator import ReparameterizationError
from xvolution.training.checkpoint import save_weights
from xvolution.training.errors import InputError, RunError
from xvolution.training.files import atomic_path
from xvolution.training.metadata import Metadata

#: Ending of the files that hold a form's weights.
WEIGHTS = ".safetensors"


@dataclass(frozen=True)
class DeploySettings:
    """The settings of every deployment.

    Attributes:
        layout: layout of every operator, or of each by name, or auto for the fastest one in each runtime.
        fold_norms: also fold the other norms into their convolutions.
        runtimes: names of the runtimes for which layouts are chosen, each once.
        threads: number of CPU threads while layouts are timed; as many as torch uses if None.
        progress: called with a line for each timed operator.
    """

    layout: str | Mapping[str, str] = AUTO
    fold_norms: bool = False
    runtimes: tuple[str, ...] = (TORCH,)
    threads: int | None = None
    progress: Progress | None = None


Compared = TypeVar("Compared")


@dataclass(frozen=True)
class DeployedForm(Generic[Compared]):
    """One deployed form of a network.

    Attributes:
        model: the deployed network, in eval mode.
        metadata: of this form.
        compared: its difference from the training form on the example.
        choice: how its layouts were chosen; None if they were given.
    """

    model: nn.Module
    metadata: Metadata
    compared: Compared
    choice: LayoutChoice | None = None


def deployed_forms(
    settings: DeploySettings,
    choose: Callable[[str], LayoutChoice],
    build: Callable[[str | Mapping[str, str]], DeployedForm[Compared]],
) -> dict[str, DeployedForm[Compared]]:
    """The form for each runtime; runtimes that run the same layouts fastest share one.

    Args:
        settings: the settings, with the runtimes.
        choose: returns the fastest layouts in a runtime.
        build: builds the form in given layouts.

    Raises:
        InputError: an option has no such value.
        RunError: the deployed form differs from the training form.
    """
    forms: dict[str, DeployedForm[Compared]] = {}
    with _reparameterizing():
        for runtime in settings.runtimes:
            if settings.layout == AUTO:
                choice = choose(runtime)
                alike = [form for form in forms.values() if form.metadata.layouts == choice.layouts]
                forms[runtime] = replace(alike[0] if alike else build(choice.layouts), choice=choice)
            else:
                built = list(forms.values())
                forms[runtime] = built[0] if built else build(settings.layout)
    return forms


@dataclass
class DeployResult(ABC, Generic[Compared]):
    """The results of a deployment; each type of network has a subclass.

    Attributes:
        forms: the deployed form for each runtime, by name.
        example: the input on which training form and deployed forms were compared.
        files: the written files.
        reports: the report of each exported file.
        asleep: a sentence if attention hardly contributes yet, so that the comparison hardly tests it.
    """

    forms: Mapping[str, DeployedForm[Compared]]
    example: Tensor
    files: list[Path] = field(default_factory=list, kw_only=True)
    reports: list[Any] = field(default_factory=list, kw_only=True)
    asleep: str | None = field(default=None, kw_only=True)

    @property
    def model(self) -> nn.Module:
        """The deployed network for the first output's runtime, in eval mode."""
        return next(iter(self.forms.values())).model

    @property
    def metadata(self) -> Metadata:
        """Of the deployed form for the first output's runtime."""
        return next(iter(self.forms.values())).metadata

    @property
    @abstractmethod
    def compared(self) -> str:
        """The difference between training form and deployed forms, in words."""

    @abstractmethod
    def export(self, form: DeployedForm[Compared], path: Path) -> Any:
        """Write a file with the metadata in the format of its ending, run it, compare the outputs, and return the report."""

    def notes(self) -> list[str]:
        """Further notes about the files, in lines."""
        return []

    def __str__(self) -> str:
        wrote = [f"wrote {path}{self._layouts_in(path)}" for path in self.files]
        asleep = [] if self.asleep is None else [self.asleep]
        return "\n".join([f"deployed; {self.compared}", *wrote, *self.notes(), *asleep])

    def _layouts_in(self, path: Path) -> str:
        form = self.forms[runtime_of(path)]
        if not form.metadata.layouts:
            return ", without X-volution"
        return f", {form.choice or LayoutChoice(form.metadata.layouts)}"

    def write(self, path: Path) -> None:
        """Write weights (.safetensors) or an export, with the metadata in the file.

        Raises:
            RunError: the file cannot be written, or its outputs differ.
        """
        form = self.forms[runtime_of(path)]
        if path.suffix == WEIGHTS:
            save_weights(path, form.model, form.metadata)
        else:
            self.reports.append(replace(self._exported(form, path), path=path))
        self.files.append(path)

    def _exported(self, form: DeployedForm[Compared], path: Path) -> Any:
        """Write an export, with its metadata in it, whole or not at all."""
        with atomic_path(path) as temporary:
            try:
                return self.export(form, temporary)
            except ExportError as error:
                raise RunError(f"{path} was not written: {error}") from error


def runtime_of(path: Path) -> str:
    """Name of the runtime for a file; weights are run by torch.

    Raises:
        ValueError: no runtime has such an ending.
    """
    return TORCH if path.suffix == WEIGHTS else runtime_for(path).name


@contextmanager
def _reparameterizing() -> Iterator[None]:
    """Turn errors of re-parameterization into an InputError or a RunError."""
    try:
        yield
    except ReparameterizationError as error:
        raise RunError(str(error)) from error
    except ValueError as error:
        raise InputError(str(error)) from error
