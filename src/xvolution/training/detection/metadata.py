"""The metadata of a detector's file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from xvolution.models.detection import DetectorSpec
from xvolution.training.metadata import Metadata
from xvolution.training.schema import DetectorFile


@dataclass(kw_only=True)
class DetectorMetadata(Metadata):
    """`Metadata` of a detector, which preprocesses its images itself.

    Attributes:
        category_ids: category ids in the data of the labels 1, 2, ...
    """

    type = "detect"
    noun = "a detector"
    schema = DetectorFile

    model: DetectorSpec
    category_ids: list[int]

    @property
    def masks(self) -> bool:
        """Whether the detector finds masks."""
        return self.model.architecture == "maskrcnn"

    @classmethod
    def fields(cls, values: dict[str, Any]) -> dict[str, Any]:
        return {**values, "model": DetectorSpec.from_dict(values["model"])}

    def example_image(self) -> torch.Tensor:
        """Uniform noise, always the same: (3, min_size, min_size) float32 in [0, 1)."""
        side = self.model.min_size
        return torch.rand(3, side, side, generator=torch.Generator().manual_seed(0))
