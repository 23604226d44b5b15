"""Random crops of whole batches, as `ImagesInMemory` computes them on the device that trains."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from xvolution.training.data.transforms import Augmentation

#: Width over height of a random crop, as timm draws it.
ASPECT_RATIOS = (3 / 4, 4 / 3)


class Crops(Protocol):
    """Random crops of square images.

    Attributes:
        held: side length in pixels at which the images are held.
    """

    held: int

    def draw(self, generator: np.random.Generator, count: int) -> np.ndarray:
        """(count, ...): random numbers for the crops of this number of images."""
        ...

    def __call__(self, images: Tensor, drawn: Tensor) -> Tensor:
        """(N, held, held, 3) uint8 and their random numbers, (N, ...) -> (N, S, S, 3)."""
        ...


class PaddedCrops:
    """Windows of images that are padded by zeros, some of them mirrored: ``crop="pad"``.

    Args:
        size: S, of images and windows.
        padding: pixels at each side.
        hflip: probability of mirroring.
    """

    def __init__(self, size: int, padding: int, hflip: float) -> None:
        self.held, self.padding, self.hflip = size, padding, hflip

    def draw(self, generator: np.random.Generator, count: int) -> np.ndarray:
        """(count, 3) int64: first row, first column, and whether the image is mirrored."""
        shifts = generator.integers(0, 2 * self.padding, (count, 2), endpoint=True)
        mirrored = generator.random((count, 1)) < self.hflip
        return np.concatenate([shifts, mirrored], 1)

    def __call__(self, images: Tensor, drawn: Tensor) -> Tensor:
        """(N, S, S, 3) uint8 -> (N, S, S, 3) uint8."""
        top, left, mirrored = drawn.unbind(1)
        padded = F.pad(images, (0, 0, *4 * [self.padding]))
        steps = torch.arange(self.held, device=images.device)
        rows = top[:, None] + steps
        columns = left[:, None] + torch.where(mirrored[:, None] > 0, steps.flip(0), steps)
        image = torch.arange(len(images), device=images.device)
        return padded[image[:, None, None], rows[:, :, None], columns[:, None, :]]


class ResizedCrops:
    """Boxes of random area and shape, resized to S and some of them mirrored: ``crop="rrc"``.

    The images are held at twice the size, so that a crop of at least a quarter of the image is not magnified.

    Args:
        size: S, of the resized crops.
        scale: smallest area of a crop, as a fraction of the image.
        hflip: probability of mirroring.
    """

    def __init__(self, size: int, scale: float, hflip: float) -> None:
        self.held, self.size, self.scale, self.hflip = 2 * size, size, scale, hflip

    def draw(self, generator: np.random.Generator, count: int) -> np.ndarray:
        """(count, 5) float32: top, left, height and width of the box as fractions of the image, and whether it is mirrored."""
        area = generator.uniform(self.scale, 1, count)
        narrowest, widest = np.log(ASPECT_RATIOS)
        root = np.exp(generator.uniform(narrowest, widest, count) / 2)
        sides = np.minimum(np.sqrt(area) * np.stack([1 / root, root]), 1)
        corner = generator.random((2, count)) * (1 - sides)
        mirrored = generator.random((1, count)) < self.hflip
        return np.concatenate([corner, sides, mirrored]).T.astype(np.float32)

    def __call__(self, images: Tensor, drawn: Tensor) -> Tensor:
        """(N, 2 S, 2 S, 3) uint8 -> (N, S, S, 3) float32, by bilinear interpolation."""
        top, left, height, width, mirrored = drawn.unbind(1)
        zero = torch.zeros_like(top)
        across = torch.stack([width * (1 - 2 * mirrored), zero, 2 * left + width - 1], 1)
        down = torch.stack([zero, height, 2 * top + height - 1], 1)
        boxes = torch.stack([across, down], 1)
        grid = F.affine_grid(boxes, [len(images), 3, self.size, self.size], align_corners=False)
        pixels = images.permute(0, 3, 1, 2).float()
        return F.grid_sample(pixels, grid, padding_mode="border", align_corners=False).permute(0, 2, 3, 1).contiguous()


def batch_crops(augmentation: Augmentation, size: int) -> Crops:
    """The crops for ``augmentation`` of images with side length ``size``."""
    if augmentation.pads(size):
        return PaddedCrops(size, augmentation.padding(size), augmentation.hflip)
    return ResizedCrops(size, augmentation.crop_scale, augmentation.hflip)
