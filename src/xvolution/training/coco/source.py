"""Where detection data come from: folders in COCO's format, and data sets of Hugging Face with boxes."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from pycocotools import mask as coco_mask
from torch import Tensor

from xvolution.training.coco.annotations import Annotations, check_content, clipped, read_annotations, run_lengths
from xvolution.training.data.sources import BadImage
from xvolution.training.errors import InputError

#: The names that folders and files use for a part.
_PARTS = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}


class DetectionSource:
    """Annotated images, in the order of their file. Labels are 1, 2, ... in the order of the category ids; 0 is background.

    Args:
        annotations: checked.
        open_image: opens an image, given its entry.
        masks: whether targets have masks.
    """

    def __init__(
        self, annotations: Annotations, open_image: Callable[[dict[str, Any]], Image.Image], masks: bool
    ) -> None:
        self.annotations, self.masks = annotations, masks
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
        return DetectionSource(chosen, self._open_image, self.masks)

    def image_id(self, index: int) -> int:
        """COCO's id of an image."""
        return self._ids[index]

    def describe(self, index: int) -> str:
        """Which image that is, for messages."""
        return f"image {self._ids[index]} ({self.annotations.images[self._ids[index]]['file_name']})"

    def image(self, index: int) -> Image.Image:
        """Decode an image as RGB.

        Raises:
            BadImage: it is missing, cannot be decoded, or has another size than its annotations say.
        """
        entry = self.annotations.images[self._ids[index]]
        try:
            image = self._open_image(entry).convert("RGB")
        except FileNotFoundError as error:
            raise BadImage(f"{self.describe(index)} of {self.annotations.path} is not on the disk.") from error
        except (OSError, SyntaxError, ValueError, UnidentifiedImageError, Image.DecompressionBombError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise BadImage(f"{self.describe(index)} of {self.annotations.path} is not readable ({reason}).") from error
        if image.size != (entry["width"], entry["height"]):
            raise BadImage(
                f"{self.describe(index)} has {image.width} x {image.height} pixels, where {self.annotations.path} says "
                f"{entry['width']} x {entry['height']}."
            )
        return image

    def target(self, index: int) -> dict[str, Tensor]:
        """What a detector is trained on: objects that are no crowds, cut off at the border, with an area.

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
        name: what it was opened by.
        train, val: to train on and to judge by.
    """

    name: str
    train: DetectionSource
    val: DetectionSource


def open_detection(
    data: str | os.PathLike[str],
    masks: bool = False,
    holdout: float | None = None,
    seed: int = 0,
    on_bad_image: str = "error",
) -> DetectionSplits:
    """Open the training and the validation part of a data set; categories and images are checked first.

    Args:
        data: a folder in COCO's format (see ``open_part``), a folder of parquet files with the columns ``image`` and
            ``objects``, or the name of such a data set on the Hugging Face hub.
        masks: targets have masks, and every object needs one.
        holdout: judge by this fraction of the training part instead of the validation part.
        seed: of the fraction.
        on_bad_image: "error" refuses images that are not on the disk, "skip" leaves that to who reads them.

    Raises:
        InputError: something is missing or refused; the message names the file and the id.
    """
    train = open_part(data, "train", masks, on_bad_image)
    if holdout is not None:
        if not 0 < holdout < 1:
            raise InputError(f"--holdout is {holdout}; it must be between 0 and 1.")
        order = np.random.default_rng(seed).permutation(len(train))
        count = max(1, round(holdout * len(train)))
        return DetectionSplits(str(data), train.subset(np.sort(order[count:])), train.subset(np.sort(order[:count])))
    val = open_part(data, "val", masks, on_bad_image)
    if val.annotations.categories != train.annotations.categories:
        raise InputError(
            f"{train.annotations.path} and {val.annotations.path} have different categories; they must be the same."
        )
    return DetectionSplits(str(data), train, val)


def open_part(
    data: str | os.PathLike[str], part: str, masks: bool = False, on_bad_image: str = "error"
) -> DetectionSource:
    """Open one part of a data set.

    A folder in COCO's format has ``annotations/instances_train2017.json`` (any ending for ``2017``), with its images in
    ``train2017``, ``train``, ``images`` or ``images/train2017``, or ``train/_annotations.coco.json`` with its images beside it.

    Args:
        data: see ``open_detection``.
        part: train, val or test.
        masks: targets have masks, and every object needs one.
        on_bad_image: "error" refuses images that are not on the disk, "skip" leaves that to who reads them.

    Raises:
        InputError: something is missing or refused; the message names the file and the id.
    """
    folder = Path(data).expanduser()
    if not folder.is_dir() or any(folder.glob("*.parquet")):
        return _hugging_face(data, part, masks)
    path = annotation_file(folder, part)
    annotations = read_annotations(path, masks).require_valid()
    if not annotations.images:
        raise InputError(f"{path} has no images.")
    root = image_root(folder, path, part, annotations)
    if on_bad_image == "error":
        require_images(annotations, root)
    return DetectionSource(annotations, partial(_open_file, root), masks)


def annotation_file(folder: Path, part: str) -> Path:
    """The annotation file of one part.

    Raises:
        InputError: there is none, or there are several.
    """
    patterns = []
    for name in _PARTS[part]:
        patterns += [
            f"annotations/instances_{name}*.json",
            f"{name}/_annotations.coco.json",
            f"annotations/{name}*.json",
        ]
        patterns += [f"instances_{name}*.json", f"{name}.json"]
    for pattern in patterns:
        found = sorted(folder.glob(pattern))
        if len(found) > 1:
            raise InputError(f"{folder} has several files {pattern}; keep one of {', '.join(p.name for p in found)}.")
        if found:
            return found[0]
    raise InputError(
        f"{folder} has no annotations of its part {part!r}; put them into annotations/instances_{part}.json or "
        f"{part}/_annotations.coco.json."
    )


def image_root(folder: Path, path: Path, part: str, annotations: Annotations) -> Path:
    """The folder that the file names of ``path`` are in: the first that has one of the first images, else the first there is."""
    suffix = path.stem.removeprefix("instances_")
    names = (suffix, part, "images", f"images/{suffix}", f"images/{part}")
    candidates = [root for root in (*(folder / name for name in names), folder, path.parent) if root.is_dir()]
    first = [image["file_name"] for image in list(annotations.images.values())[:8]]
    for root in candidates:
        if any((root / name).is_file() for name in first):
            return root
    return candidates[0]


def missing_images(annotations: Annotations, root: Path) -> list[dict[str, Any]]:
    """Entries of the images that are not on the disk."""
    return [image for image in annotations.images.values() if not (root / image["file_name"]).is_file()]


def require_images(annotations: Annotations, root: Path) -> None:
    """See that all images are on the disk.

    Raises:
        InputError: one is not; the message names the first.
    """
    missing = missing_images(annotations, root)
    if missing:
        raise InputError(
            f"image {missing[0]['id']} of {annotations.path} is not on the disk: {root / missing[0]['file_name']} "
            f"({len(missing)} of {len(annotations.images)} are missing)."
        )


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
        raise ValueError(f"its runs add up to {sum(runs)} pixels, where the image has {height * width}")
    return segmentation


def _open_file(root: Path, entry: dict[str, Any]) -> Image.Image:
    return Image.open(root / entry["file_name"])


def _hugging_face(data: str | os.PathLike[str], part: str, masks: bool) -> DetectionSource:
    """A data set with the columns ``image`` and ``objects`` (bbox as COCO's, category; id, area where there are)."""
    if masks:
        raise InputError(
            f"{data} is no folder in COCO's format; data sets of Hugging Face have boxes, no masks: use --task detect."
        )
    from datasets import Image as ImageFeature

    rows = _load_rows(data, part)
    if not {"image", "objects"} <= set(rows.column_names):
        raise InputError(f"{data} has the columns {', '.join(rows.column_names)}; detection needs image and objects.")
    rows = rows.cast_column("image", ImageFeature(decode=False))
    annotations = check_content(_coco_content(rows), Path(f"{data} ({part})")).require_valid()

    def open_row(entry: dict[str, Any]) -> Image.Image:
        stored = rows[entry["row"]]["image"]
        return Image.open(io.BytesIO(stored["bytes"]) if stored["bytes"] is not None else stored["path"])

    return DetectionSource(annotations, open_row, masks=False)


def _load_rows(data: str | os.PathLike[str], part: str) -> Any:
    from datasets import load_dataset

    folder = Path(data).expanduser()
    for name in _PARTS[part]:
        files = sorted(str(path) for path in folder.glob(f"{name}*.parquet")) if folder.is_dir() else []
        try:
            if files:
                return load_dataset("parquet", data_files=files, split="train")
            if not folder.is_dir():
                return load_dataset(str(data), split=name)
        except ValueError:
            continue  # another name of the part
        except Exception as error:  # the hub's client raises errors of many kinds
            raise InputError(f"{data} is neither a folder nor a data set that could be loaded ({error}).") from error
    raise InputError(f"{data} has no part {part!r}.")


def _coco_content(rows: Any) -> dict[str, Any]:
    feature = rows.features["objects"]
    feature = getattr(feature, "feature", feature)
    category = feature["category"] if isinstance(feature, dict) else feature[0]["category"]
    category = getattr(category, "feature", category)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    used: set[int] = set()
    for row, (image, objects) in enumerate(zip(rows["image"], rows["objects"], strict=True)):
        with Image.open(io.BytesIO(image["bytes"]) if image["bytes"] is not None else image["path"]) as opened:
            width, height = opened.size
        images.append(
            {"id": row, "row": row, "file_name": image["path"] or f"row {row}", "width": width, "height": height}
        )
        for box, kind in zip(objects["bbox"], objects["category"], strict=True):
            used.add(int(kind))
            annotations.append(
                {"id": len(annotations) + 1, "image_id": row, "category_id": int(kind), "bbox": [float(v) for v in box]}
            )
    names = getattr(category, "names", None) or {kind: str(kind) for kind in sorted(used)}
    pairs = enumerate(names) if isinstance(names, list) else names.items()
    return {"images": images, "annotations": annotations, "categories": [{"id": k, "name": v} for k, v in pairs]}
