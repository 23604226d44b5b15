"""The metadata of a classifier's file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from xvolution.models import ModelSpec
from xvolution.training.data.transforms import Preprocessing
from xvolution.training.errors import InputError
from xvolution.training.metadata import Metadata
from xvolution.training.schema import ClassifierFile


@dataclass(kw_only=True)
class ClassifierMetadata(Metadata):
    """`Metadata` of a classifier.

    Attributes:
        preprocessing: preprocessing of its images.
    """

    type = "classify"
    noun = "a classifier"
    schema = ClassifierFile

    model: ModelSpec
    preprocessing: Preprocessing

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**super().to_dict(), "preprocessing": self.preprocessing.to_dict()}

    @classmethod
    def fields(cls, values: dict[str, Any]) -> dict[str, Any]:
        model, preprocessing = ModelSpec.from_dict(values["model"]), Preprocessing.from_dict(values["preprocessing"])
        return {**values, "model": model, "preprocessing": preprocessing}

    def example_images(self, image_size: int | None = None, batch_size: int = 1) -> torch.Tensor:
        """Normal noise of the shape and scale of a batch, always the same: (batch_size, in_chans, H, W) float32.

        Raises:
            InputError: the image size or the batch size is not allowed.
        """
        if batch_size < 1:
            raise InputError(f"--batch-size is {batch_size}; it must be at least 1.")
        size = self.preprocessing.resized(image_size).image_size
        generator = torch.Generator().manual_seed(0)
        return torch.randn(batch_size, self.model.in_chans, size, size, generator=generator)
