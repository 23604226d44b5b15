"""Classifiers in ONNX files."""

from __future__ import annotations

import os

import torch

from xvolution.training.onnx_file import OnnxNetwork


class OnnxClassifier(OnnxNetwork):
    """(N, 3, H, W) float32 images to (N, num_classes) logits, on the CPU; a file of a fixed batch takes them part by part.

    Raises:
        InputError: the file is no ONNX network.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        super().__init__(path)
        self.input = self.session.get_inputs()[0]

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        batch = self.input.shape[0]
        size = batch if isinstance(batch, int) else max(len(images), 1)
        filled = torch.cat([images, images[-1:].expand(-len(images) % size, *images.shape[1:])])
        return torch.cat([self._logits(part) for part in filled.split(size)])[: len(images)]

    def _logits(self, images: torch.Tensor) -> torch.Tensor:
        (logits, *_) = self.session.run(None, {self.input.name: images.contiguous().numpy()})
        return torch.from_numpy(logits)
