"""Classifiers in ONNX files."""

from __future__ import annotations

import torch

from xvolution.training.onnx_file import OnnxNetwork


class OnnxClassifier(OnnxNetwork):
    """(N, 3, H, W) float32 images to (N, num_classes) logits, on the CPU; a file of a fixed batch takes them part by part.

    Raises:
        InputError: the file is no ONNX network.
    """

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        size = self.session.input_shapes[0][0] or max(len(images), 1)
        filled = torch.cat([images, images[-1:].expand(-len(images) % size, *images.shape[1:])])
        return torch.cat([self.session(part)[0] for part in filled.split(size)])[: len(images)]
