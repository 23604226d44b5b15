"""Masks of objects, as polygons or run lengths."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from xvolution.training.coco.annotations import run_lengths
from xvolution.training.errors import InputError


def decode_mask(annotation: dict[str, Any], image: dict[str, Any], path: Path) -> np.ndarray:
    """The mask (H, W) uint8 of an object, as pycocotools decodes it.

    Raises:
        InputError: it cannot be decoded.
    """
    return coco_mask.decode(checked_mask(annotation, image, path))


def checked_mask(annotation: dict[str, Any], image: dict[str, Any], path: Path) -> dict[str, Any]:
    """The mask of an object as compressed RLE.

    Raises:
        InputError: it cannot be decoded.
    """
    try:
        return encode_mask(annotation["segmentation"], image)
    except (ValueError, TypeError, IndexError) as error:
        raise InputError(f"the mask of annotation {annotation['id']} of {path} cannot be decoded ({error}).") from error


def encode_mask(segmentation: Any, image: dict[str, Any]) -> dict[str, Any]:
    """Compressed RLE of polygons or of RLE.

    Raises:
        ValueError: the runs of compressed RLE do not cover the image.
    """
    height, width = image["height"], image["width"]
    if isinstance(segmentation, list):
        return coco_mask.merge(coco_mask.frPyObjects(segmentation, height, width))
    if isinstance(segmentation["counts"], list):
        return coco_mask.frPyObjects(segmentation, height, width)
    runs = run_lengths(segmentation["counts"])
    if min(runs, default=0) < 0 or sum(runs) != height * width:
        raise ValueError(f"its runs add up to {sum(runs)} pixels, but the image has {height * width}")
    return segmentation
