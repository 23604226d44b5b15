"""Tables of Hugging Face, or of parquet files, with images and boxes."""

from __future__ import annotations

import os
import reprlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from xvolution.training.coco.annotations import check_content
from xvolution.training.coco.folder import PARTS
from xvolution.training.coco.source import DetectionSource
from xvolution.training.data.reading import look_at, open_stored, printable
from xvolution.training.errors import InputError


def open_table(
    data: str | os.PathLike[str], part: str, masks: bool, max_pixels: int | None, outside_images: bool
) -> DetectionSource:
    """One part of a data set with the columns ``image`` and ``objects`` (bbox as COCO's, category; id, area where there are).

    Raises:
        InputError: there is no such part, or its objects are not boxes.
    """
    if masks:
        raise InputError(
            f"{data} is not a folder in COCO's format; data sets of Hugging Face have boxes but no masks: "
            "use --task detect."
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
    for name in PARTS[part]:
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
    """The rows as the contents of a COCO JSON file.

    Raises:
        BadImage: the size of an image cannot be read.
        InputError: the column ``objects`` does not hold boxes and categories.
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
            f"the objects of {where} are {reprlib.repr(objects)}; each object needs a bbox and a category."
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
