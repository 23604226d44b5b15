"""Detectors in exported files."""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch

from xvolution.deploy.runtimes import LoadedFile, Runtime
from xvolution.models.detect_export import OUTPUTS
from xvolution.training.errors import InputError
from xvolution.training.exported_file import ExportedNetwork


class ExportedDetector(ExportedNetwork):
    """Images, each (3, H, W) float32 in [0, 1], to detections as torchvision's detectors give them, on the CPU.

    Raises:
        InputError: the file holds only a feature pyramid.
    """

    def __init__(self, path: str | os.PathLike[str], runtime: Runtime[LoadedFile], checksum: bool = True) -> None:
        super().__init__(path, runtime, checksum)
        if not set(self.file.output_names) <= set(OUTPUTS):
            raise InputError(
                f"{path} holds only a detector's backbone and pyramid, which cannot detect objects; give its "
                "checkpoint."
            )

    def forward(self, images: Sequence[torch.Tensor]) -> list[dict[str, torch.Tensor]]:
        return [dict(zip(self.file.output_names, self.run(image), strict=True)) for image in images]
