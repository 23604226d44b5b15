"""Detectors in ONNX files."""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch

from xvolution.training.errors import InputError
from xvolution.training.onnx_file import OnnxNetwork


class OnnxDetector(OnnxNetwork):
    """Images, each (3, H, W) float32 in [0, 1], to detections as torchvision's detectors give them, on the CPU.

    Raises:
        InputError: the file is no ONNX network, or it holds a feature pyramid alone.
    """

    def __init__(self, path: str | os.PathLike[str], checksum: bool = True) -> None:
        super().__init__(path, checksum)
        if self.session.properties.get("content") == "pyramid":
            raise InputError(
                f"{path} holds a detector's backbone and pyramid alone, which find nothing; give its checkpoint."
            )

    def forward(self, images: Sequence[torch.Tensor]) -> list[dict[str, torch.Tensor]]:
        return [dict(zip(self.session.output_names, self.session(image), strict=True)) for image in images]
