"""The locations of annotations and images in a folder in COCO's format."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL import Image

from xvolution.training.coco.annotations import Annotations
from xvolution.training.data.reading import is_file, open_file, printable
from xvolution.training.errors import InputError

#: The names that folders and files use for a part.
PARTS = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}


def annotation_file(folder: Path, part: str) -> Path:
    """The annotation file of one part.

    Raises:
        InputError: there is no such file, or there are several.
    """
    patterns = []
    for name in PARTS[part]:
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
        f"{folder} has no annotations for the part {part!r}; put them into annotations/instances_{part}.json "
        f"or {part}/_annotations.coco.json."
    )


def image_root(folder: Path, path: Path, part: str, annotations: Annotations) -> Path:
    """The folder for the file names in ``path``: the first one that has one of the first images, else the first existing one."""
    suffix = path.stem.removeprefix("instances_")
    names = (suffix, part, "images", f"images/{suffix}", f"images/{part}")
    candidates = [root for root in (*(folder / name for name in names), folder, path.parent) if root.is_dir()]
    first = [image["file_name"] for image in list(annotations.images.values())[:8]]
    for root in candidates:
        if any(is_file(root / name) for name in first):
            return root
    return candidates[0]


def missing_images(annotations: Annotations, root: Path) -> list[dict[str, Any]]:
    """Entries of the images whose files do not exist."""
    return [image for image in annotations.images.values() if not is_file(root / image["file_name"])]


def require_images(annotations: Annotations, root: Path) -> None:
    """Require that all image files exist.

    Raises:
        InputError: an image file does not exist; the message names the first.
    """
    missing = missing_images(annotations, root)
    if missing:
        raise InputError(
            f"image {missing[0]['id']} of {annotations.path} is not on the disk: {printable(root / missing[0]['file_name'])} "
            f"({len(missing)} of {len(annotations.images)} are missing)."
        )


def open_image_file(root: Path, entry: dict[str, Any]) -> Image.Image:
    """Open the file that an image's entry names.

    Raises:
        OSError: there is no such file, or it is not an image.
    """
    return open_file(root / entry["file_name"])
