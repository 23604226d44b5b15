"""Where detection data come from: folders in COCO's format, and data sets of Hugging Face with boxes."""

from __future__ import annotations

import os
import reprlib
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from pycocotools import mask as coco_mask
from torch import Tensor

from xvolution.training.coco.annotations import Annotations, check_content, clipped, read_annotations, run_lengths
from xvolution.training.data.reading import (
    BadImage,
    Look,
    is_file,
    look_at,
    open_file,
    open_stored,
    printable,
    read_picture,
    require_max_pixels,
    survey,
)
from xvolution.training.errors import InputError

#: The names that folders and files use for a part.
_PARTS = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}


class DetectionSource:
    """Annotated images, in the order of their file. Labels are 1, 2, ... in the order of the category ids; 0 is background.

    Args:
        annotations: checked.
        open_image: opens an image, given its entry.
        masks: whether targets have masks.
        max_pixels: the most that an image may have; Pillow's own limit when None.
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
        """Which image that is, for messages."""
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
                f"{where()} has {image.width} x {image.height} pixels, where the annotations say {entry['width']} x "
                f"{entry['height']}{reason if turned else ''}."
            )
        return image

    def look(self, index: int) -> Look:
        """What there is to say about an image file.

        Raises:
            BadImage: it cannot be opened.
        """
        entry = self.annotations.images[self._ids[index]]
        return look_at(partial(self._open_image, entry), partial(self.describe, index), self.max_pixels)

    def require_objects(self, images: int | None = None) -> None:
        """See that there is something to find, without which there is no average precision.

        Args:
            images: in so many of the first images; in all of them when None.

        Raises:
            InputError: there is nothing but crowds.
        """
        chosen = self._ids[:images]
        if all(each["iscrowd"] for key in chosen for each in self.annotations.objects[key]):
            raise InputError(
                f"the {len(chosen)} images of {printable(self.annotations.path)} that are looked at hold no object to find, so "
                "there is nothing to learn and no average precision; give other data, or more with --limit-val-batches."
            )

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
        judged_by: where ``val`` comes from, in words.
    """

    name: str
    train: DetectionSource
    val: DetectionSource
    judged_by: str = "its validation part"


def open_detection(
    data: str | os.PathLike[str],
    masks: bool = False,
    holdout: float | None = None,
    seed: int = 0,
    on_bad_image: str = "error",
    max_pixels: int | None = None,
    outside_images: bool = False,
) -> DetectionSplits:
    """Open the training and the validation part of a data set; categories and images are checked first.

    Args:
        data: a folder in COCO's format (see ``open_part``), a folder of parquet files with the columns ``image`` and
            ``objects``, or the name of such a data set on the Hugging Face hub.
        masks: targets have masks, and every object needs one.
        holdout: judge by this fraction of the training part instead of the validation part.
        seed: of the fraction.
        on_bad_image: "error" refuses images that are not on the disk, "skip" leaves that to who reads them.
        max_pixels: the most that an image may have; Pillow's own limit when None.
        outside_images: read images that the annotations name outside of the folder too.

    Raises:
        InputError: something is missing or refused; the message names the file and the id.
    """
    train = open_part(data, "train", masks, on_bad_image, max_pixels, outside_images)
    if holdout is not None:
        if not 0 < holdout < 1:
            raise InputError(f"--holdout is {holdout}; it must be between 0 and 1.")
        order = np.random.default_rng(seed).permutation(len(train))
        count = max(1, round(holdout * len(train)))
        parts = (train.subset(np.sort(order[count:])), train.subset(np.sort(order[:count])))
        return DetectionSplits(str(data), *parts, f"{holdout:.0%} of the training part, by --holdout")
    val = open_part(data, "val", masks, on_bad_image, max_pixels, outside_images)
    if val.annotations.categories != train.annotations.categories:
        raise InputError(
            f"{train.annotations.path} and {val.annotations.path} have different categories; they must be the same."
        )
    return DetectionSplits(str(data), train, val)


def open_part(
    data: str | os.PathLike[str],
    part: str,
    masks: bool = False,
    on_bad_image: str = "error",
    max_pixels: int | None = None,
    outside_images: bool = False,
) -> DetectionSource:
    """Open one part of a data set. What is unusual about its images is said in a warning, once for each kind.

    A folder in COCO's format has ``annotations/instances_train2017.json`` (any ending for ``2017``), with its images in
    ``train2017``, ``train``, ``images`` or ``images/train2017``, or ``train/_annotations.coco.json`` with its images beside it.

    Args:
        data: see ``open_detection``.
        part: train, val or test.
        masks: targets have masks, and every object needs one.
        on_bad_image: "error" refuses images that are not on the disk, "skip" leaves that to who reads them.
        max_pixels: the most that an image may have; Pillow's own limit when None.
        outside_images: read images that the annotations name outside of the folder too.

    Raises:
        InputError: something is missing or refused; the message names the file and the id.
    """
    require_max_pixels(max_pixels)
    folder = Path(os.path.expanduser(data))
    if not os.path.isdir(folder) or any(folder.glob("*.parquet")):
        source = _hugging_face(data, part, masks, max_pixels, outside_images)
    else:
        path = annotation_file(folder, part)
        annotations = read_annotations(path, masks, max_pixels, outside_images).require_valid()
        if not annotations.images:
            raise InputError(f"{path} has no images.")
        root = image_root(folder, path, part, annotations)
        if on_bad_image == "error":
            require_images(annotations, root)
        source = DetectionSource(annotations, partial(open_image_file, root), masks, max_pixels)
    for sentence in survey(len(source), source.look).sentences(f"the {part} part of {printable(data)}"):
        warnings.warn(sentence, stacklevel=2)
    return source


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
        if any(is_file(root / name) for name in first):
            return root
    return candidates[0]


def missing_images(annotations: Annotations, root: Path) -> list[dict[str, Any]]:
    """Entries of the images that are not on the disk."""
    return [image for image in annotations.images.values() if not is_file(root / image["file_name"])]


def require_images(annotations: Annotations, root: Path) -> None:
    """See that all images are on the disk.

    Raises:
        InputError: one is not; the message names the first.
    """
    missing = missing_images(annotations, root)
    if missing:
        raise InputError(
            f"image {missing[0]['id']} of {annotations.path} is not on the disk: {printable(root / missing[0]['file_name'])} "
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


def open_image_file(root: Path, entry: dict[str, Any]) -> Image.Image:
    """Open the file that an image's entry names.

    Raises:
        OSError: there is none, or it is no image.
    """
    return open_file(root / entry["file_name"])


def _hugging_face(
    data: str | os.PathLike[str], part: str, masks: bool, max_pixels: int | None, outside_images: bool
) -> DetectionSource:
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

    def open_row(entry: dict[str, Any]) -> Image.Image:
        return open_stored(rows[entry["row"]]["image"], folder, outside_images)

    place = Path(os.path.expanduser(data))
    folder = place if os.path.isdir(place) else None
    name = f"{printable(data)} ({part})"
    content = _coco_content(rows, open_row, name, max_pixels)
    # The images are in the rows, whatever their names.
    annotations = check_content(content, Path(name), max_pixels=max_pixels, outside_images=True).require_valid()
    return DetectionSource(annotations, open_row, masks=False, max_pixels=max_pixels)


def _load_rows(data: str | os.PathLike[str], part: str) -> Any:
    from datasets import load_dataset

    folder = Path(os.path.expanduser(data))
    for name in _PARTS[part]:
        files = sorted(str(path) for path in folder.glob(f"{name}*.parquet")) if os.path.isdir(folder) else []
        try:
            if files:
                return load_dataset("parquet", data_files=files, split="train")
            if not os.path.isdir(folder):
                return load_dataset(str(data), split=name)
        except ValueError:
            continue  # another name of the part
        except Exception as error:  # the hub's client raises errors of many kinds
            raise InputError(f"{data} is neither a folder nor a data set that could be loaded ({error}).") from error
    raise InputError(f"{data} has no part {part!r}.")


def _coco_content(
    rows: Any, open_row: Callable[[dict[str, Any]], Image.Image], name: str, max_pixels: int | None
) -> dict[str, Any]:
    """What a COCO JSON file of the rows would hold.

    Raises:
        BadImage: the size of an image cannot be read.
        InputError: the column ``objects`` holds something else than boxes and categories.
    """
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for row, (image, objects) in enumerate(zip(rows["image"], rows["objects"], strict=True)):
        entry = {"id": row, "row": row, "file_name": (image or {}).get("path") or f"row {row}"}
        where = f"row {row} of {name}"
        width, height = look_at(partial(open_row, entry), partial(str, where), max_pixels).size
        images.append({**entry, "width": width, "height": height})
        for box, kind in _boxes(objects, where):
            annotations.append({"id": len(annotations) + 1, "image_id": row, "category_id": kind, "bbox": box})
    categories = _categories(rows.features["objects"], {each["category_id"] for each in annotations})
    ids = {label: key for key, label in categories.items()}
    for annotation in annotations:
        kind = annotation["category_id"]
        annotation["category_id"] = ids.get(kind) if isinstance(kind, str) else kind
    entries = [{"id": key, "name": label} for key, label in categories.items()]
    return {"images": images, "annotations": annotations, "categories": entries}


def _boxes(objects: Any, where: str) -> list[tuple[Any, Any]]:
    """Box and category of each object of a row: lists of both, or a list of pairs."""
    try:
        if isinstance(objects, list):
            return [(each["bbox"], each["category"]) for each in objects]
        return [] if objects is None else list(zip(objects["bbox"], objects["category"], strict=True))
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"the objects of {where} are {reprlib.repr(objects)}; a bbox and a category of each are needed."
        ) from error


def _categories(feature: Any, used: set[Any]) -> dict[int, str]:
    """Names by id: those of the column's classes, words in the order of the alphabet, or the numbers themselves."""
    feature = getattr(feature, "feature", feature)
    category = feature.get("category") if isinstance(feature, dict) else None
    names = getattr(getattr(category, "feature", category), "names", None)
    if names is not None:
        return dict(enumerate(names))
    words = sorted(kind for kind in used if isinstance(kind, str))
    return dict(enumerate(words)) if words else {kind: str(kind) for kind in sorted(used - {None})}
