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
from xvolution.models.detection import DetectorSpec
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
        """Raises InputError where something is missing or unknown, or where it is a detector's."""
        if describes_detector(values):
            raise InputError("the file holds a detector, where a classifier is needed.")
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


@dataclass
class DetectorMetadata:
    """What ``Metadata`` is for a classifier. A detector prepares its images itself.

    Attributes:
        model: the detector.
        class_names, category_ids: of the labels 1, 2, ...
        data, form, layouts, fold_norms, provenance: those of ``Metadata``.
    """

    model: DetectorSpec
    class_names: list[str]
    category_ids: list[int]
    data: str
    form: str = "training"
    layouts: dict[str, str] = field(default_factory=dict)
    fold_norms: bool = False
    provenance: dict[str, Any] = field(default_factory=dict)

    @property
    def masks(self) -> bool:
        """Whether the detector finds masks."""
        return self.model.architecture == "maskrcnn"

    def to_dict(self) -> dict[str, Any]:
        return {**vars(self), "model": self.model.to_dict()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> DetectorMetadata:
        """Raises InputError where something is missing or unknown, or where it is a classifier's."""
        if not describes_detector(values):
            raise InputError("the file holds a classifier, where a detector is needed.")
        try:
            return cls(**{**values, "model": DetectorSpec.from_dict(values["model"])})
        except (KeyError, TypeError) as error:
            raise InputError(f"the file's description of its detector cannot be read ({error}).") from error

    def to_json(self) -> str:
        return json.dumps(self.to_dict())


AnyMetadata = Metadata | DetectorMetadata


def describes_detector(values: Any) -> bool:
    """Whether ``to_dict`` of a detector's metadata made these values."""
    return isinstance(values, dict) and isinstance(values.get("model"), dict) and "architecture" in values["model"]


def metadata_from_dict(values: dict[str, Any]) -> AnyMetadata:
    """A classifier's or a detector's. Raises InputError where something is missing or unknown."""
    return DetectorMetadata.from_dict(values) if describes_detector(values) else Metadata.from_dict(values)


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
