"""A small folder in COCO's format: bright rectangles on dark images, masks in every encoding there is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

#: With gaps, and not in the order of the names.
CATEGORIES = [{"id": 7, "name": "block"}, {"id": 3, "name": "brick"}]


def rectangle(box: tuple[int, int, int, int], height: int, width: int, encoding: str) -> Any:
    """A segmentation of x, y, width, height."""
    x, y, w, h = box
    if encoding == "polygon":
        return [[x, y, x + w, y, x + w, y + h, x, y + h]]
    mask = np.zeros((height, width), dtype=np.uint8, order="F")
    mask[y : y + h, x : x + w] = 1
    if encoding == "compressed":
        encoded = coco_mask.encode(mask)
        return {"size": [height, width], "counts": encoded["counts"].decode("ascii")}
    flat = mask.flatten(order="F")
    changes = np.flatnonzero(np.diff(flat)) + 1
    runs = np.diff(np.concatenate([[0], changes, [flat.size]])).tolist()
    return {"size": [height, width], "counts": ([0] if flat[0] else []) + runs}


def content(count: int = 8) -> dict[str, Any]:
    """What an annotation file holds: every other image is high; the last one has no objects, the first one a crowd."""
    images, annotations = [], []
    for index in range(count):
        height, width = (64, 48) if index % 2 else (48, 64)
        images.append({"id": 100 + index, "file_name": f"{index:03d}.png", "height": height, "width": width})
        for number in range(2 if index < count - 1 else 0):
            box = (4 + 20 * number + index % 4, 6 + 3 * index % 20, 14 + index % 3, 18)
            annotations.append(
                {
                    "id": 1000 + len(annotations),
                    "image_id": 100 + index,
                    "category_id": (3, 7)[number],
                    "bbox": list(box),
                    "area": box[2] * box[3],
                    "iscrowd": int(index == 0 and number == 1),
                    "segmentation": rectangle(box, height, width, ("polygon", "uncompressed", "compressed")[index % 3]),
                }
            )
    return {"images": images, "annotations": annotations, "categories": CATEGORIES}


def write(folder: Path, part: str, data: dict[str, Any]) -> Path:
    """Write annotations and images; the path of the annotations."""
    (folder / "annotations").mkdir(parents=True, exist_ok=True)
    (folder / part).mkdir(exist_ok=True)
    path = folder / "annotations" / f"instances_{part}.json"
    path.write_text(json.dumps(data))
    generator = np.random.default_rng(0)
    for image in data["images"]:
        pixels = generator.integers(0, 60, (image["height"], image["width"], 3), dtype=np.uint8)
        for annotation in data["annotations"]:
            if annotation["image_id"] == image["id"]:
                x, y, w, h = annotation["bbox"]
                colour = (250, 220, 40) if annotation["category_id"] == 3 else (60, 240, 250)
                pixels[y : y + h, x : x + w] = colour
        Image.fromarray(pixels).save(folder / part / image["file_name"])
    return path


def write_folder(folder: Path, count: int = 8) -> Path:
    for part in ("train", "val"):
        write(folder, part, content(count))
    return folder
