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
from torch import nn

import xvolution
from xvolution.models import ModelSpec, build_model
from xvolution.models.detection import DetectorSpec, build_detector
from xvolution.training.data.transforms import Preprocessing
from xvolution.training.errors import InputError


@dataclass
class Metadata:
    """Kept in the header of every weights file and in every checkpoint.

    Attributes:
        model: the network.
        preprocessing: of its images; a detector prepares them itself.
        class_names: of its outputs; of a detector without the background.
        data: what it was trained on.
        form: "training" or "deployed".
        layouts: module name to layout, of the deployed form.
        fold_norms: whether the other convolution and norm pairs are folded too, in the deployed form.
        provenance: versions, seed, command, commit.
        category_ids: of a detector: the data's number of each class.
    """

    model: ModelSpec | DetectorSpec
    preprocessing: Preprocessing | None
    class_names: list[str]
    data: str
    form: str = "training"
    layouts: dict[str, str] = field(default_factory=dict)
    fold_norms: bool = False
    provenance: dict[str, Any] = field(default_factory=dict)
    category_ids: list[int] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        preprocessing = None if self.preprocessing is None else self.preprocessing.to_dict()
        return {**vars(self), "model": self.model.to_dict(), "preprocessing": preprocessing}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Metadata:
        """Raises InputError where something is missing or unknown."""
        try:
            spec = DetectorSpec if "architecture" in values["model"] else ModelSpec
            preprocessing = values["preprocessing"]
            given = {
                "model": spec.from_dict(values["model"]),
                "preprocessing": None if preprocessing is None else Preprocessing.from_dict(preprocessing),
            }
            return cls(**{**values, **given})
        except (KeyError, TypeError) as error:
            raise InputError(f"the file's description of its network cannot be read ({error}).") from error

    @property
    def title(self) -> str:
        """What the network is called."""
        model = self.model
        return model.name if isinstance(model, ModelSpec) else f"{model.architecture} {model.backbone}"

    def classifier(self) -> tuple[ModelSpec, Preprocessing]:
        """The network and the preprocessing of its images.

        Raises:
            InputError: the network is a detector.
        """
        if not isinstance(self.model, ModelSpec) or self.preprocessing is None:
            raise InputError(f"{self.title} is a detector, and this is for classifiers.")
        return self.model, self.preprocessing

    def detector(self) -> DetectorSpec:
        """The network.

        Raises:
            InputError: it is a classifier.
        """
        if not isinstance(self.model, DetectorSpec):
            raise InputError(f"{self.title} is a classifier, and this is for detectors.")
        return self.model

    def network(self) -> nn.Module:
        """The network in its training form, with new weights, in eval mode.

        Raises:
            ModelError: it cannot be built.
        """
        model = self.model
        return (build_model(model) if isinstance(model, ModelSpec) else build_detector(model)).eval()

    def example_images(self, image_size: int | None = None, batch_size: int = 1) -> torch.Tensor:
        """Normal noise of the shape and scale of a batch, always the same: (batch_size, in_chans, H, W) float32."""
        spec, preprocessing = self.classifier()
        size = image_size or preprocessing.image_size
        generator = torch.Generator().manual_seed(0)
        return torch.randn(batch_size, spec.in_chans, size, size, generator=generator)

    def example_inputs(self, image_size: int | None = None, batch_size: int = 1) -> Any:
        """What the network is called with: `example_images`, or for a detector one argument, a list of images in [0, 1]."""
        if isinstance(self.model, ModelSpec):
            return self.example_images(image_size, batch_size)
        height = image_size or self.model.min_size
        width = min(self.model.max_size, height * 5 // 4)
        generator = torch.Generator().manual_seed(0)
        return ([torch.rand(3, height, width, generator=generator) for _ in range(batch_size)],)

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
