"""Annotated images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from xvolution.training.coco.annotations import Annotations, clipped
from xvolution.training.coco.masks import decode_mask
from xvolution.training.data.reading import BadImage, Look, look_at, printable, read_picture
from xvolution.training.errors import InputError
from xvolution.training.held_out import HeldOut


class DetectionSource:
    """Annotated images, in the order of their file. Labels are 1, 2, ... in the order of the category ids; 0 is background.

    Args:
        annotations: checked.
        open_image: opens an image, given its entry.
        masks: whether targets have masks.
        max_pixels: largest number of pixels in an image; Pillow's own limit if None.
    """

    def __init__(
        self,
        annotations: Annotations,
        open_image: Callable[[dict[str, Any]], Image.Image],
        masks: bool,
        max_pixels: int | None = None,
    ) -> None:
        self.annotations, self.masks, self.max_pixels = annotations, masks, max_pixels
        self._open_image = open_image
        self._ids = list(annotations.images)
        self._labels = {category: label for label, category in enumerate(annotations.categories, 1)}

    def __len__(self) -> int:
        return len(self._ids)

    @property
    def class_names(self) -> list[str]:
        """Of the labels 1, 2, ..."""
        return list(self.annotations.categories.values())

    @property
    def category_ids(self) -> list[int]:
        """Of the labels 1, 2, ..."""
        return list(self.annotations.categories)

    @property
    def aspect_ratios(self) -> np.ndarray:
        """Width over height of every image."""
        return np.array([image["width"] / image["height"] for image in self.annotations.images.values()])

    def subset(self, indices: np.ndarray) -> DetectionSource:
        """The images at these positions."""
        ids = [self._ids[index] for index in indices]
        own = self.annotations
        chosen = replace(
            own, images={key: own.images[key] for key in ids}, objects={key: own.objects[key] for key in ids}
        )
        return DetectionSource(chosen, self._open_image, self.masks, self.max_pixels)

    def image_id(self, index: int) -> int:
        """COCO's id of an image."""
        return self._ids[index]

    def describe(self, index: int) -> str:
        """The name of an image, for messages."""
        name = printable(self.annotations.images[self._ids[index]]["file_name"])
        return f"image {self._ids[index]} ({name}) of {printable(self.annotations.path)}"

    def image(self, index: int) -> Image.Image:
        """Decode an image as RGB.

        Raises:
            BadImage: it is missing, cannot be decoded, or has another size than its annotations say.
        """
        entry = self.annotations.images[self._ids[index]]
        where = partial(self.describe, index)
        image = read_picture(partial(self._open_image, entry), where, max_pixels=self.max_pixels)
        if image.size != (entry["width"], entry["height"]):
            turned = "EXIF orientation" in self.look(index).notes
            reason = ", once turned by its EXIF orientation; annotate the turned image, or remove the orientation"
            raise BadImage(
                f"{where()} has {image.width} x {image.height} pixels, but the annotations say "
                f"{entry['width']} x {entry['height']}{(reason if turned else '')}."
            )
        return image

    def look(self, index: int) -> Look:
        """The properties of an image file.

        Raises:
            BadImage: it cannot be opened.
        """
        entry = self.annotations.images[self._ids[index]]
        return look_at(partial(self._open_image, entry), partial(self.describe, index), self.max_pixels)

    def require_objects(self, images: int | None = None) -> None:
        """Require that there are objects, because average precision is undefined without them.

        Args:
            images: check only this number of first images; all if None.

        Raises:
            InputError: there are no objects other than crowds.
        """
        chosen = self._ids[:images]
        if all(each["iscrowd"] for key in chosen for each in self.annotations.objects[key]):
            raise InputError(
                f"the {len(chosen)} images of {printable(self.annotations.path)} that are used have no "
                "objects, so the network cannot learn and average precision is undefined; give other data, "
                "or a larger --limit-val-batches."
            )

    def target(self, index: int) -> dict[str, Tensor]:
        """The training target of an image: objects without crowds, clipped at the border, with an area above 0.

        Returns:
            boxes (n, 4) float32 as x1, y1, x2, y2 in pixels, labels (n,) int64, and masks (n, H, W) uint8 with ``masks``.

        Raises:
            InputError: a mask cannot be decoded.
        """
        entry = self.annotations.images[self._ids[index]]
        boxes, labels, masks = [], [], []
        for annotation in self.annotations.objects[self._ids[index]]:
            x1, y1, x2, y2 = clipped(annotation["bbox"], entry["width"], entry["height"])
            if annotation["iscrowd"] or x2 <= x1 or y2 <= y1:
                continue
            boxes.append((x1, y1, x2, y2))
            labels.append(self._labels[annotation["category_id"]])
            if self.masks:
                masks.append(decode_mask(annotation, entry, self.annotations.path))
        target = {
            "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
            "labels": torch.tensor(labels, dtype=torch.int64),
        }
        if self.masks:
            empty = np.zeros((0, entry["height"], entry["width"]), dtype=np.uint8)
            target["masks"] = torch.from_numpy(np.stack(masks) if masks else empty)
        return target


@dataclass(frozen=True)
class DetectionSplits:
    """The parts of a data set.

    Attributes:
        name: the name with which it was opened.
        train, val: images for training and evaluation.
        judged_by: the source of ``val``, in words.
        held_out: ``val``, if a seed chose it.
    """

    name: str
    train: DetectionSource
    val: DetectionSource
    judged_by: str = "its validation part"
    held_out: HeldOut | None = None
