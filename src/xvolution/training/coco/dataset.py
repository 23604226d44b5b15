"""Images with their objects as tensors, augmented by torchvision's transforms v2."""

from __future__ import annotations

import warnings
from typing import Any, TypedDict

import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2

from xvolution.training.coco.source import DetectionSource
from xvolution.training.data.dataset import seed_generators
from xvolution.training.data.reading import BadImage
from xvolution.training.data.sampler import Draw

#: Of large-scale jitter: the image's size relative to the crop's (Ghiasi et al., Simple Copy-Paste, 2021).
LARGE_SCALES = (0.1, 2.0)


class Sample(TypedDict):
    """One image (3, H, W) float32 in [0, 1], what is on it, and its position; ``counted`` is False for padding."""

    image: Tensor
    target: dict[str, Tensor]
    index: int
    counted: bool


class Batch(TypedDict):
    """Lists over the images of a batch: their sizes differ."""

    image: list[Tensor]
    target: list[dict[str, Tensor]]
    index: list[int]
    counted: list[bool]


def training_transform(hflip: float, large_scale_jitter: int | None) -> v2.Compose:
    """Augmentation of image, boxes and masks together.

    Args:
        hflip: probability of mirroring.
        large_scale_jitter: side in pixels of the square that a resized image is cropped or padded to; None leaves it out.
    """
    steps: list[Any] = []
    if large_scale_jitter is not None:
        square = (large_scale_jitter, large_scale_jitter)
        steps += [v2.ScaleJitter(square, LARGE_SCALES, antialias=True), v2.RandomCrop(square, pad_if_needed=True)]
    steps += [v2.RandomHorizontalFlip(hflip), v2.ClampBoundingBoxes()]
    # torchvision's detectors refuse boxes without area, which is what a crop may leave.
    steps += [v2.SanitizeBoundingBoxes(min_size=1.0, labels_getter=_per_object)]
    return v2.Compose(steps)


def _per_object(sample: tuple[Any, dict[str, Tensor]]) -> tuple[Tensor, ...]:
    """What has one entry for each box."""
    return tuple(value for name, value in sample[1].items() if name != "boxes")


class DetectionDataset(Dataset[Any]):
    """Samples of a source.

    Args:
        source: the images.
        transform: of image and target; None for evaluation.
        seed: of the augmentation; None for evaluation.
        on_bad_image: "error" ends at an unreadable image, "skip" takes the next one.
    """

    def __init__(
        self, source: DetectionSource, transform: Any = None, seed: int | None = None, on_bad_image: str = "error"
    ) -> None:
        self.source, self.transform, self.seed, self.on_bad_image = source, transform, seed, on_bad_image

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, draw: Draw) -> Sample:
        index, counted = draw.index, not draw.padding
        try:
            picture = self.source.image(index)
        except BadImage as error:
            if self.on_bad_image != "skip":
                raise
            warnings.warn(f"skipped: {error}", stacklevel=2)
            # An unreadable image of the evaluation keeps its objects, which nothing finds.
            index, counted = self._next_readable(index), counted and self.transform is not None
            picture = self.source.image(index)
        image: Tensor = v2.functional.to_dtype(v2.functional.pil_to_tensor(picture), torch.float32, scale=True)
        target = self.source.target(index)
        if self.transform is not None:
            seed_generators((self.seed or 0, draw.epoch, draw.index))
            image, target = self._augmented(image, target)
        return {"image": image, "target": target, "index": index, "counted": counted}

    def _augmented(self, image: Tensor, target: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        size: Any = image.shape[1:]
        boxes = tv_tensors.BoundingBoxes(target["boxes"], format="XYXY", canvas_size=size)
        wrapped: dict[str, Tensor] = {**target, "boxes": boxes}
        if "masks" in target:
            wrapped["masks"] = tv_tensors.Mask(target["masks"])
        image, wrapped = self.transform(tv_tensors.Image(image), wrapped)
        return image.as_subclass(Tensor), {name: value.as_subclass(Tensor) for name, value in wrapped.items()}

    def _next_readable(self, index: int) -> int:
        for step in range(1, len(self.source)):
            following = (index + step) % len(self.source)
            try:
                self.source.image(following)
            except BadImage:
                continue
            return following
        raise BadImage(f"no image of {self.source.annotations.path} is readable.")


def collate(samples: list[Sample]) -> Batch:
    """Samples as lists, since their sizes differ."""
    return {
        "image": [sample["image"] for sample in samples],
        "target": [sample["target"] for sample in samples],
        "index": [sample["index"] for sample in samples],
        "counted": [sample["counted"] for sample in samples],
    }
