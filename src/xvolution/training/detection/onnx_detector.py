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

    def __init__(self, path: str | os.PathLike[str]) -> None:
        super().__init__(path)
        if self.properties.get("content") == "pyramid":
            raise InputError(
                f"{path} holds a detector's backbone and pyramid alone, which find nothing; give its checkpoint."
            )
        self.output_names = [output.name for output in self.session.get_outputs()]

    def forward(self, images: Sequence[torch.Tensor]) -> list[dict[str, torch.Tensor]]:
        return [self._find(image) for image in images]

    def _find(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        outputs = self.session.run(self.output_names, {"image": image.contiguous().numpy()})
        return {name: torch.from_numpy(output) for name, output in zip(self.output_names, outputs, strict=True)}
