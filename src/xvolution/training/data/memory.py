"""Images held as uint8 tensors on the device that trains, where whole batches are cropped, mirrored and normalized."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms.functional import InterpolationMode, pil_to_tensor, resize

from xvolution.training.data.crops import Crops, batch_crops
from xvolution.training.data.dataset import BAD, GOOD, PADDING, Batch
from xvolution.training.data.reading import BadImage
from xvolution.training.data.sampler import Draw
from xvolution.training.data.sources import ImageSource
from xvolution.training.data.transforms import Augmentation, Preprocessing, evaluation_pixels
from xvolution.training.errors import InputError


class ImagesInMemory(Dataset[Batch]):
    """Returns, for the draws of a batch, a batch as of `ClassificationDataset`, from images that were decoded once.

    To train, every image is resized to a square once, and cropped and mirrored at random; the random numbers depend only on seed,
    epoch and index. For evaluation, images are those of ``evaluation_transform``.

    Args:
        source: the images; each takes S² bytes per channel, and 4 S² bytes per channel for random crops.
        preprocessing: side length S, mean and standard deviation.
        augmentation: its crop and mirroring; other augmentations are not supported. None for evaluation.
        seed: of the augmentation.
        on_bad_image: "error" raises `BadImage`; "skip" takes the next readable image, with status BAD.
        device: device that holds the images and computes the batches.

    Raises:
        InputError: an augmentation that works on one image at a time.
    """

    def __init__(
        self,
        source: ImageSource,
        preprocessing: Preprocessing,
        augmentation: Augmentation | None,
        seed: int = 0,
        on_bad_image: str = "error",
        device: torch.device | str = "cpu",
    ) -> None:
        self.seed = seed
        self.crops: Crops | None = None
        side, pixels = preprocessing.image_size, evaluation_pixels(preprocessing)
        if augmentation is not None:
            _require_batches(augmentation)
            self.crops = batch_crops(augmentation, side)
            side = self.crops.held
            pixels = partial(_resized, size=side, interpolation=preprocessing.interpolation)
        self.images, chosen = _decode(source, side, preprocessing.channels, pixels, on_bad_image, torch.device(device))
        self.targets = torch.from_numpy(source.labels[chosen]).to(device)
        self.status = torch.where(torch.from_numpy(chosen == np.arange(len(source))), GOOD, BAD)
        self.mean, self.std = (
            255 * torch.tensor(values, device=device) for values in (preprocessing.mean, preprocessing.std)
        )
        self._drawn: tuple[int, Tensor] | None = None

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, draws: Sequence[Draw]) -> Batch:
        index = torch.tensor([draw.index for draw in draws])
        padding = torch.tensor([draw.padding for draw in draws])
        there = index.to(self.images.device)
        images = self.images[there]
        if self.crops is not None:
            images = self.crops(images, self._augmentation(draws[0].epoch)[there])
        return {
            "image": self._normalized(images),
            "target": self.targets[there],
            "index": index,
            "status": torch.where(padding, PADDING, self.status[index]),
        }

    def _augmentation(self, epoch: int) -> Tensor:
        """(n, ...): the random numbers for each image of the epoch."""
        assert self.crops is not None
        if self._drawn is None or self._drawn[0] != epoch:
            drawn = self.crops.draw(np.random.default_rng((self.seed, epoch, 1)), len(self))
            self._drawn = (epoch, torch.from_numpy(drawn).to(self.images.device))
        return self._drawn[1]

    def _normalized(self, images: Tensor) -> Tensor:
        """(N, S, S, channels) -> (N, channels, S, S) float32 in the channels-last memory format."""
        return ((images.float() - self.mean) / self.std).permute(0, 3, 1, 2)


def _require_batches(augmentation: Augmentation) -> None:
    for flag, allowed in (
        ("auto-augment", augmentation.auto_augment is None),
        ("color-jitter", augmentation.color_jitter == 0),
        ("random-erase", augmentation.random_erase == 0),
    ):
        if not allowed:
            raise InputError(
                f"--in-memory augments whole batches, but --{flag} works on one image at a time; leave one "
                "of the two out."
            )


def _resized(image: Image.Image, size: int, interpolation: str) -> Tensor:
    """(channels, size, size) uint8: what is cropped."""
    return pil_to_tensor(resize(image, [size, size], InterpolationMode(interpolation)))


def _decode(
    source: ImageSource,
    size: int,
    channels: int,
    pixels: Callable[[Image.Image], Tensor],
    on_bad_image: str,
    device: torch.device,
) -> tuple[Tensor, np.ndarray]:
    """All images (n, S, S, channels) uint8, and the index (n,) of each: its own, or that of the next readable image."""
    n = len(source)
    readable = np.ones(n, dtype=bool)
    try:
        images = torch.empty(n, size, size, channels, dtype=torch.uint8, device=device)
    except RuntimeError as error:
        raise InputError(
            f"{n} images of {size}x{size} take {n * channels * size * size / 2**30:.1f} GiB, more than the "
            f"free memory of {device} ({error}); leave out --in-memory."
        ) from error
    for index in range(n):
        try:
            image = pixels(source.image(index, channels))
        except BadImage as error:
            if on_bad_image != "skip":
                raise
            warnings.warn(f"skipped: {error}", stacklevel=2)
            readable[index] = False
            continue
        images[index] = image.permute(1, 2, 0)
    chosen = _next_readable(readable, source)
    images[torch.from_numpy(~readable).to(device)] = images[torch.from_numpy(chosen[~readable]).to(device)]
    return images, chosen


def _next_readable(readable: np.ndarray, source: ImageSource) -> np.ndarray:
    good = np.flatnonzero(readable)
    if len(good) == 0:
        raise BadImage(f"no image is readable; the last one tried was {source.describe(len(source) - 1)}.")
    return good[np.searchsorted(good, np.arange(len(readable))) % len(good)]
