"""Images held as uint8 tensors on the device that trains, where whole batches are normalized, and shifted and mirrored."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset
from torchvision.transforms.functional import InterpolationMode, pil_to_tensor, resize

from xvolution.training.data.dataset import BAD, GOOD, PADDING, Batch
from xvolution.training.data.sampler import Draw
from xvolution.training.data.sources import BadImage, ImageSource
from xvolution.training.data.transforms import Augmentation, Preprocessing, evaluation_pixels
from xvolution.training.errors import InputError


class ImagesInMemory(Dataset[Batch]):
    """Answers, for the draws of a batch, the batch that `ClassificationDataset` describes, of images that were decoded once.

    To train, every image is padded, shifted and mirrored as the ``pad`` crop does; what is drawn for it depends on seed, epoch
    and index alone. To judge, images are those of ``evaluation_transform``.

    Args:
        source: the images; 3 S² bytes are held for each.
        preprocessing: side length S, mean and standard deviation.
        augmentation: its padded crop and its mirroring; nothing else is computed in this way. None for images that judge.
        seed: of the augmentation.
        on_bad_image: "error" raises `BadImage`; "skip" takes the next readable image, with status BAD.
        device: where the images are held and the batches computed.

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
        self.size, self.seed = preprocessing.image_size, seed
        self.padding, self.hflip = 0, 0.0
        pixels = evaluation_pixels(preprocessing)
        if augmentation is not None:
            _require_batches(augmentation, preprocessing)
            self.padding, self.hflip = augmentation.padding(self.size), augmentation.hflip
            pixels = partial(_resized, preprocessing=preprocessing)
        self.images, chosen = _decode(source, self.size, pixels, on_bad_image, torch.device(device))
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
        top, left, mirrored = self._augmentation(draws[0].epoch)[there].unbind(1)
        return {
            "image": self._normalized(self._shifted(self.images[there], top, left, mirrored)),
            "target": self.targets[there],
            "index": index,
            "status": torch.where(padding, PADDING, self.status[index]),
        }

    def _augmentation(self, epoch: int) -> Tensor:
        """(n, 3) int64: for each image of the epoch the rows and columns that it is shifted by, and whether it is mirrored."""
        if self._drawn is None or self._drawn[0] != epoch:
            generator = np.random.default_rng((self.seed, epoch, 1))
            shifts = generator.integers(0, 2 * self.padding, (len(self), 2), endpoint=True)
            mirrored = generator.random((len(self), 1)) < self.hflip
            drawn = torch.from_numpy(np.concatenate([shifts, mirrored], 1)).to(self.images.device)
            self._drawn = (epoch, drawn)
        return self._drawn[1]

    def _shifted(self, images: Tensor, top: Tensor, left: Tensor, mirrored: Tensor) -> Tensor:
        """(N, S, S, 3): windows of padded images, whose columns run backwards where they are mirrored."""
        padded = F.pad(images, (0, 0, *4 * [self.padding]))
        steps = torch.arange(self.size, device=images.device)
        rows = top[:, None] + steps
        columns = left[:, None] + torch.where(mirrored[:, None] > 0, steps.flip(0), steps)
        image = torch.arange(len(images), device=images.device)
        return padded[image[:, None, None], rows[:, :, None], columns[:, None, :]]

    def _normalized(self, images: Tensor) -> Tensor:
        """(N, S, S, 3) uint8 -> (N, 3, S, S) float32 in the channels-last memory format."""
        return ((images.float() - self.mean) / self.std).permute(0, 3, 1, 2)


def _require_batches(augmentation: Augmentation, preprocessing: Preprocessing) -> None:
    for flag, allowed in (
        ("crop", augmentation.pads(preprocessing.image_size)),
        ("auto-augment", augmentation.auto_augment is None),
        ("color-jitter", augmentation.color_jitter == 0),
        ("random-erase", augmentation.random_erase == 0),
    ):
        if not allowed:
            raise InputError(
                f"--in-memory pads, shifts and mirrors whole batches, and --{flag} works on one image at a time; leave one of "
                "the two out (--crop pad is what --in-memory computes)."
            )


def _resized(image: Image.Image, preprocessing: Preprocessing) -> Tensor:
    """(3, S, S) uint8: what the ``pad`` crop pads and shifts."""
    side = [preprocessing.image_size] * 2
    return pil_to_tensor(resize(image, side, InterpolationMode(preprocessing.interpolation)))


def _decode(
    source: ImageSource,
    size: int,
    pixels: Callable[[Image.Image], Tensor],
    on_bad_image: str,
    device: torch.device,
) -> tuple[Tensor, np.ndarray]:
    """All images (n, S, S, 3) uint8, and the index (n,) of the one that each is: its own, or the next readable one's."""
    n = len(source)
    readable = np.ones(n, dtype=bool)
    try:
        images = torch.empty(n, size, size, 3, dtype=torch.uint8, device=device)
    except RuntimeError as error:
        raise InputError(
            f"{n} images of {size}x{size} take {n * 3 * size * size / 2**30:.1f} GiB, more than the memory of {device} gives "
            f"({error}); leave out --in-memory."
        ) from error
    for index in range(n):
        try:
            image = pixels(source.image(index))
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
