"""Classifiers in exported files."""

from __future__ import annotations

import torch

from xvolution.training.errors import InputError
from xvolution.training.exported_file import ExportedNetwork


class ExportedClassifier(ExportedNetwork):
    """(N, C, H, W) float32 images to (N, num_classes) logits, on the CPU; a file with a fixed batch size gets them in parts.

    Raises:
        InputError: images of another size than the fixed size of the file.
    """

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        batch, _, *sides = self.file.input_shapes[0]
        if any(fixed not in (None, given) for fixed, given in zip(sides, images.shape[2:], strict=True)):
            fixed, given = (" x ".join(map(str, each)) for each in (sides, images.shape[2:]))
            raise InputError(f"{self.path} takes only images of {fixed} pixels, but got {given}; give that image size.")
        size = batch or max(len(images), 1)
        filled = torch.cat([images, images[-1:].expand(-len(images) % size, *images.shape[1:])])
        return torch.cat([self.run(part)[0] for part in filled.split(size)])[: len(images)]
