"""What a weights file says about itself: enough to build the network again and to prepare its images."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import xvolution
from xvolution.models import ModelSpec
from xvolution.training.data.transforms import Preprocessing
from xvolution.training.errors import InputError


@dataclass
class Metadata:
    """Kept in the header of every weights file and in every checkpoint.

    Attributes:
        model: the network.
        preprocessing: of its images.
        class_names: of its outputs.
        data: what it was trained on.
        form: "training" or "deployed".
        layouts: module name to layout, of the deployed form.
        fold_norms: whether the other convolution and norm pairs are folded too, in the deployed form.
        provenance: versions, seed, command, commit.
    """

    model: ModelSpec
    preprocessing: Preprocessing
    class_names: list[str]
    data: str
    form: str = "training"
    layouts: dict[str, str] = field(default_factory=dict)
    fold_norms: bool = False
    provenance: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        return {**vars(self), "model": self.model.to_dict(), "preprocessing": self.preprocessing.to_dict()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Metadata:
        """Raises InputError where something is missing or unknown."""
        try:
            return cls(
                **{
                    **values,
                    "model": ModelSpec.from_dict(values["model"]),
                    "preprocessing": Preprocessing.from_dict(values["preprocessing"]),
                }
            )
        except (KeyError, TypeError) as error:
            raise InputError(f"the file's description of its network cannot be read ({error}).") from error

    def example_images(self, image_size: int | None = None, batch_size: int = 1) -> torch.Tensor:
        """Normal noise of the shape and scale of a batch, always the same: (batch_size, in_chans, H, W) float32."""
        size = image_size or self.preprocessing.image_size
        generator = torch.Generator().manual_seed(0)
        return torch.randn(batch_size, self.model.in_chans, size, size, generator=generator)

    def to_json(self) -> str:
        return json.dumps(self.to_dict())

    @classmethod
    def from_json(cls, text: str) -> Metadata:
        return cls.from_dict(json.loads(text))


def provenance(seed: int) -> dict[str, Any]:
    """Versions, seed, command and, inside a Git work tree, the commit."""
    versions = {"xvolution": xvolution.__version__, "torch": str(torch.__version__), "python": sys.version.split()[0]}
    for package in ("timm", "lightning"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return {"versions": versions, "seed": seed, "command": [Path(sys.argv[0]).name, *sys.argv[1:]], "commit": _commit()}


def _commit() -> str | None:
    try:
        result = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.strip()
