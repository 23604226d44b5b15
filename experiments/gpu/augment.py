"""Augmentation of whole batches where they lie: crops, TrivialAugment, mixup and CutMix."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

#: Width over height of a random crop, as timm draws it.
_ASPECT = (math.log(3 / 4), math.log(4 / 3))
_GREY = (0.299, 0.587, 0.114)


class Augmentation:
    """Random crops and mirroring, and with ``trivial`` one further change of each picture, drawn at random.

    A crop, a rotation and a shear are one affine map, so that pixels are interpolated once.

    Args:
        size: side length of the crops in pixels.
        scale: smallest area of a crop as a fraction of the picture.
        trivial: apply TrivialAugment (Müller and Hutter, ICCV 2021, arXiv 2103.10158) with the operations below.
        device: of the pictures.
        seed: of what is drawn.
    """

    def __init__(self, size: int, scale: float, trivial: bool, device: torch.device, seed: int) -> None:
        self.size, self.scale, self.trivial = size, scale, trivial
        self.generator = torch.Generator(device).manual_seed(seed)

    def __call__(self, pixels: Tensor) -> Tensor:
        """(N, 3, H, W) uint8 -> (N, 3, size, size) float32 in 0 .. 1."""
        images, theta = pixels.float() / 255, self._crops(pixels)
        if self.trivial:
            operation = torch.randint(0, 12, (len(pixels), 1, 1, 1), device=pixels.device, generator=self.generator)
            strength = 2 * self._random(pixels) - 1
            images = recoloured(images, operation, strength.view(-1, 1, 1, 1))
            theta = theta @ moved(operation.view(-1), strength)
        grid = F.affine_grid(theta[:, :2], [len(pixels), 3, self.size, self.size], align_corners=False)
        return F.grid_sample(images, grid, padding_mode="border", align_corners=False)

    def _random(self, like: Tensor) -> Tensor:
        """(N,) in 0 .. 1."""
        return torch.rand(len(like), device=like.device, generator=self.generator)

    def _crops(self, pixels: Tensor) -> Tensor:
        """(N, 3, 3): from coordinates -1 .. 1 of the crop to those of the picture, mirrored or not."""
        area = self.scale + (1 - self.scale) * self._random(pixels)
        ratio = (_ASPECT[0] + (_ASPECT[1] - _ASPECT[0]) * self._random(pixels)).exp().sqrt()
        width, height = (area.sqrt() * ratio).clamp(max=1), (area.sqrt() / ratio).clamp(max=1)
        across, down = ((1 - side) * (2 * self._random(pixels) - 1) for side in (width, height))
        mirror = 1 - 2 * (self._random(pixels) < 0.5).float()
        zero, one = torch.zeros_like(area), torch.ones_like(area)
        return torch.stack([width * mirror, zero, across, zero, height, down, zero, zero, one], 1).view(-1, 3, 3)


def moved(operation: Tensor, strength: Tensor) -> Tensor:
    """(N, 3, 3): operations 8 to 11 rotate by up to 60 degrees, shear either way, and shift across; the others leave it."""
    identity = torch.eye(3, device=strength.device).repeat(len(strength), 1, 1)
    angle = torch.where(operation == 8, strength * math.pi / 3, 0.0)
    identity[:, 0, 0] = identity[:, 1, 1] = angle.cos()
    identity[:, 0, 1] = torch.where(operation == 9, 0.6 * strength, -angle.sin())
    identity[:, 1, 0] = torch.where(operation == 10, 0.6 * strength, angle.sin())
    identity[:, 0, 2] = torch.where(operation == 11, 0.5 * strength, 0.0)
    return identity


def recoloured(images: Tensor, operation: Tensor, strength: Tensor) -> Tensor:
    """Operations 1 to 7 on (N, 3, H, W) in 0 .. 1, each on the pictures that drew it; all others leave the colours.

    Brightness, saturation, contrast, sharpness, posterize, solarize, autocontrast.
    """
    grey = (images * images.new_tensor(_GREY).view(1, 3, 1, 1)).sum(1, keepdim=True)
    factor = 1 + 0.95 * strength
    low, high = images.amin((2, 3), keepdim=True), images.amax((2, 3), keepdim=True)
    levels = 2 ** (8 - (6 * strength.abs()).floor())
    changed = (
        images * factor,
        grey + factor * (images - grey),
        grey.mean((2, 3), keepdim=True) + factor * (images - grey.mean((2, 3), keepdim=True)),
        (smooth := F.avg_pool2d(images, 3, 1, 1, count_include_pad=False)) + factor * (images - smooth),
        (images * (levels - 1)).round() / (levels - 1),
        torch.where(images < strength.abs(), images, 1 - images),
        (images - low) / (high - low).clamp(min=1 / 255),
    )
    for number, result in enumerate(changed, 1):
        images = torch.where(operation == number, result, images)
    return images.clamp(0, 1)


def mixed(
    images: Tensor, labels: Tensor, classes: int, smoothing: float, random: torch.Generator
) -> tuple[Tensor, Tensor]:
    """A batch mixed with itself backwards, by mixup (alpha 0.2) or CutMix (alpha 1), each half of the time.

    Args:
        images: (N, 3, H, W).
        labels: (N,).
        classes: how many there are.
        smoothing: of the labels.
        random: on the CPU, so that nothing waits for the device.

    Returns:
        The images, and target probabilities (N, classes).
    """
    target = F.one_hot(labels, classes) * (1 - smoothing) + smoothing / classes
    if float(torch.rand((), generator=random)) < 0.5:
        share = float(torch._sample_dirichlet(torch.tensor([0.2, 0.2]), random)[0])
        images = share * images + (1 - share) * images.flip(0)
    else:
        height, width = images.shape[2:]
        side = math.sqrt(float(torch.rand((), generator=random)))
        rows, columns = round(side * height), round(side * width)
        top = int(torch.randint(0, height - rows + 1, (), generator=random))
        left = int(torch.randint(0, width - columns + 1, (), generator=random))
        box = (..., slice(top, top + rows), slice(left, left + columns))
        images, other = images.clone(), images.flip(0)
        images[box] = other[box]
        share = 1 - rows * columns / (height * width)
    return images, share * target + (1 - share) * target.flip(0)
