"""Augmentation and preprocessing, by timm."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import torch
from PIL import Image
from timm.data import create_transform
from torchvision import transforms

from xvolution.training.config import LARGEST_SIDE, SMALLEST_SIDE
from xvolution.training.data.reading import SMALL_SIDE
from xvolution.training.errors import InputError

Transform = Callable[[Image.Image], torch.Tensor]


@dataclass(frozen=True)
class Preprocessing:
    """The preprocessing of every image: resize, centre crop, normalize. Plain values, stored with the weights.

    Attributes:
        image_size: side length in pixels.
        mean: of each channel, three or one, for pixels in [0, 1].
        std: likewise.
        crop_pct: the part of the resized image's side that the centre crop keeps.
        interpolation: timm's name for the resampling filter.
    """

    image_size: int
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    crop_pct: float = 1.0
    interpolation: str = "bicubic"

    @property
    def channels(self) -> int:
        """Of an image: 3 for colour, 1 for grey."""
        return len(self.mean)

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "mean": list(self.mean), "std": list(self.std)}

    def resized(self, image_size: int | None) -> Preprocessing:
        """The preprocessing for another side length; None keeps it.

        Raises:
            InputError: the side length is not allowed.
        """
        if image_size is not None and not SMALLEST_SIDE <= image_size <= LARGEST_SIDE:
            raise InputError(f"--image-size is {image_size}; it must be {SMALLEST_SIDE} to {LARGEST_SIDE} pixels.")
        return self if image_size is None else replace(self, image_size=image_size)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Preprocessing:
        return cls(**{**values, "mean": tuple(values["mean"]), "std": tuple(values["std"])})


@dataclass(frozen=True)
class Augmentation:
    """The augmentation of training images, with timm's names and meanings."""

    crop: str = "auto"
    crop_scale: float = 0.08
    hflip: float = 0.5
    auto_augment: str | None = None
    color_jitter: float = 0.0
    random_erase: float = 0.0

    def pads(self, size: int) -> bool:
        """Whether images of this side length are padded and shifted instead of cropped and resized."""
        return self.crop == "pad" or (self.crop == "auto" and size <= SMALL_SIDE)

    @staticmethod
    def padding(size: int) -> int:
        """Pixels of padding at each side."""
        return max(1, size // 8)


def evaluation_transform(preprocessing: Preprocessing) -> Transform:
    """PIL image to a normalized float32 (channels, image_size, image_size) tensor."""
    return _evaluation(preprocessing, use_prefetcher=False)


def evaluation_pixels(preprocessing: Preprocessing) -> Transform:
    """PIL image to a (channels, image_size, image_size) uint8 tensor: what ``evaluation_transform`` normalizes."""
    pixels = _evaluation(preprocessing, use_prefetcher=True)  # timm's prefetcher normalizes, so that this does not
    return lambda image: torch.as_tensor(pixels(image))


def _evaluation(preprocessing: Preprocessing, use_prefetcher: bool) -> Transform:
    return create_transform(
        preprocessing.image_size,
        is_training=False,
        use_prefetcher=use_prefetcher,
        interpolation=preprocessing.interpolation,
        mean=preprocessing.mean,
        std=preprocessing.std,
        crop_pct=preprocessing.crop_pct,
    )


def training_transform(preprocessing: Preprocessing, augmentation: Augmentation) -> Transform:
    """PIL image to a normalized float32 (channels, image_size, image_size) tensor, augmented.

    It draws from Python's, NumPy's and torch's global generators, which the data set seeds for every image.

    Raises:
        InputError: timm has no such augmentation policy.
    """
    if preprocessing.channels == 1:
        # timm's policies want colours; of a grey picture its three channels stay equal.
        mean, std = 3 * preprocessing.mean, 3 * preprocessing.std
        coloured = training_transform(replace(preprocessing, mean=mean, std=std), augmentation)
        return partial(_first_channel, coloured)
    size = preprocessing.image_size
    try:
        stages = _timm_stages(preprocessing, augmentation)
    except (AssertionError, ValueError, KeyError) as error:
        raise InputError(
            f"timm has no augmentation policy {augmentation.auto_augment!r}; give another one, such as rand-m9-mstd0.5."
        ) from error
    if augmentation.pads(size):
        shift = [
            transforms.Resize((size, size), transforms.InterpolationMode(preprocessing.interpolation)),
            transforms.RandomCrop(size, padding=augmentation.padding(size)),
            transforms.RandomHorizontalFlip(augmentation.hflip),
        ]
        stages = (transforms.Compose(shift), *stages[1:])
    return transforms.Compose(list(stages))


def _first_channel(transform: Transform, image: Image.Image) -> torch.Tensor:
    return transform(image.convert("RGB"))[:1]


def _timm_stages(preprocessing: Preprocessing, augmentation: Augmentation) -> tuple[Transform, ...]:
    """timm's three stages: crop and flip, colours and policy, tensor and erasing."""
    return create_transform(
        preprocessing.image_size,
        is_training=True,
        scale=(augmentation.crop_scale, 1.0),
        hflip=augmentation.hflip,
        color_jitter=augmentation.color_jitter,
        auto_augment=augmentation.auto_augment,
        interpolation=preprocessing.interpolation,
        mean=preprocessing.mean,
        std=preprocessing.std,
        re_prob=augmentation.random_erase,
        separate=True,
    )
