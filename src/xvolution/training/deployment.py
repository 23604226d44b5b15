"""What every deployment leaves, and how it is written."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from xvolution.deploy.export import ExportError
from xvolution.operator import ReparameterizationError
from xvolution.training.checkpoint import save_weights
from xvolution.training.errors import InputError, RunError
from xvolution.training.files import write_text
from xvolution.training.metadata import Metadata


@dataclass
class DeployResult(ABC):
    """What a deployment made and wrote; each type of network has a subclass.

    Attributes:
        model: the deployed network, in eval mode.
        metadata: of the deployed form.
        example: the input that the two forms were compared on.
        files: what was written.
        reports: the report of each exported file.
    """

    model: nn.Module
    metadata: Metadata
    example: Tensor
    files: list[Path] = field(default_factory=list, kw_only=True)
    reports: list[Any] = field(default_factory=list, kw_only=True)

    @property
    @abstractmethod
    def compared(self) -> str:
        """How far the two forms are from each other, in words."""

    @abstractmethod
    def export(self, path: Path) -> Any:
        """Write a file by its ending, run it, compare it, and answer the report of that."""

    def notes(self) -> list[str]:
        """What else there is to say about the files, in lines."""
        return []

    def __str__(self) -> str:
        layouts = ", ".join(sorted(set(self.metadata.layouts.values()))) or "no X-volution in it"
        wrote = [f"wrote {path}" for path in self.files]
        return "\n".join([f"deployed ({layouts}); {self.compared}", *wrote, *self.notes()])

    def write(self, path: Path) -> None:
        """Write weights (.safetensors) or an export, with the metadata in the file or beside it.

        Raises:
            RunError: the file cannot be written, or what it computes differs.
        """
        if path.suffix == ".safetensors":
            save_weights(path, self.model, self.metadata)
        else:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                self.reports.append(self.export(path))
            except (ExportError, OSError) as error:
                raise RunError(f"{path} was not written: {error}") from error
            if path.suffix != ".onnx":
                write_text(path.with_suffix(path.suffix + ".json"), self.metadata.to_json() + "\n")
        self.files.append(path)


@contextmanager
def reparameterizing() -> Iterator[None]:
    """Turn what re-parameterization raises into a sentence.

    Raises:
        InputError: an option has no such value.
        RunError: the deployed form differs from the training form.
    """
    try:
        yield
    except ReparameterizationError as error:
        raise RunError(str(error)) from error
    except ValueError as error:
        raise InputError(str(error)) from error
