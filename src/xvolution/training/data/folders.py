"""Folders of images: which files are images, and which folders are parts of a data set or classes."""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Collection
from pathlib import Path

from xvolution.training.data.parts import part_of
from xvolution.training.data.reading import IMAGE_ENDINGS, listed, printable
from xvolution.training.errors import InputError

#: What archives, file servers and file systems leave beside one's own folders; hidden ones have a dot.
_NOBODYS = ("__MACOSX", "@eaDir", "lost+found", "$RECYCLE.BIN", "System Volume Information")
#: Files that nobody takes for images.
_NO_IMAGES = (".txt", ".md", ".json", ".csv", ".xml", ".yaml", ".yml", ".npy", ".db", ".ini", ".html", ".pdf")


def visible_folders(folder: Path) -> list[Path]:
    """The folders in a folder and links to folders, by name, without hidden ones, system folders and links to a parent."""
    found = []
    inside = _ancestors(folder)
    for entry in sorted(folder.iterdir()):
        if _counts(entry.name) and os.path.isdir(entry):
            if os.path.realpath(entry) in inside:
                warnings.warn(f"{printable(entry)} links to a folder that contains it, and is left out.", stacklevel=2)
            else:
                found.append(entry)
    return found


def images_in(folder: Path) -> tuple[list[Path], Counter[str]]:
    """The image files under a folder, by path, and the number of other files for each ending of possible images.

    Links are followed, each folder once. Entries with an image's ending that are not files are included, so that reading reports
    them.
    """
    images, others = [], Counter[str]()
    seen = _ancestors(folder)
    for place, folders, files in os.walk(folder, onerror=_raise, followlinks=True):
        if place != str(folder):
            real = os.path.realpath(place)
            if real in seen:
                folders.clear()
                continue
            seen.add(real)
        folders[:] = sorted(name for name in folders if _counts(name))
        for name in files:
            ending = os.path.splitext(name)[1].lower()
            if name.startswith(".") or ending in _NO_IMAGES:
                continue
            if ending in IMAGE_ENDINGS:
                images.append(Path(place, name))
            else:
                others[ending or "no ending"] += 1
    return sorted(images), others


def _raise(error: OSError) -> None:
    raise error


def _ancestors(folder: Path) -> set[str]:
    real = Path(os.path.realpath(folder))
    return {str(real), *map(str, real.parents)}


def _counts(name: str) -> bool:
    return not name.startswith(".") and name not in _NOBODYS


def holds_images(folder: Path) -> bool:
    """Whether a folder directly contains image files."""
    return any(
        entry.suffix.lower() in IMAGE_ENDINGS and not entry.name.startswith(".") and not entry.is_dir()
        for entry in folder.iterdir()
    )


def place_of_classes(folder: Path, known: Collection[str] = ()) -> Path:
    """The folder itself, or the single folder in it if that contains folders and no images.

    Args:
        folder: the given folder, or a part of it.
        known: names of classes, which are not such a single folder.
    """
    inside = visible_folders(folder)
    if len(inside) != 1 or inside[0].name in known or part_of(inside[0].name) or holds_images(folder):
        return folder
    if holds_images(inside[0]) or not visible_folders(inside[0]):
        return folder
    warnings.warn(
        f"{printable(folder)} contains one folder, {printable(inside[0].name)}; the folders inside it are used.",
        stacklevel=2,
    )
    return inside[0]


def parts_in(folder: Path) -> dict[str, Path]:
    """The folders of the parts train, val and test; empty if the folders are classes.

    Among other folders, one with a part's name that holds images itself, and no folders, is a class of that name.

    Raises:
        InputError: two folders have names of one part, there is no training part, parts lie inside of classes, or it is unclear
            which is which.
    """
    inside = visible_folders(folder)
    named = [each for each in inside if part_of(each.name)]
    split = [each for each in named if visible_folders(each)]
    trains = any(part_of(each.name) == "train" for each in split)
    if not trains and named and len(named) == len(inside):
        names = listed(f"{each.name} ({len(visible_folders(each))} class folders)" for each in named)
        raise InputError(
            f"{printable(folder)} has no training part; put the class folders into a folder named train. "
            f"Found: {names}."
        )
    if not trains:
        _require_classes(folder, inside)
        return {}
    parts: dict[str, Path] = {}
    for each in split:
        part = part_of(each.name)
        assert part is not None
        if part in parts:
            raise InputError(
                f"{printable(folder)} has two folders of the part {part}, {parts[part].name} and {each.name}; keep one of them."
            )
        parts[part] = each
    left_out = [each for each in inside if each not in split and holds_images(each)]
    names = listed(printable(each.name) for each in left_out)
    if len(parts) == 1 and any(each not in named for each in left_out):
        raise InputError(
            f"{printable(folder)} has {parts['train'].name} with folders in it beside {names} with images: "
            "it is unclear whether it is the training part or a class. Remove the other folders, or put the "
            "images of the class directly into its folder."
        )
    if left_out:
        warnings.warn(
            f"{printable(folder)}: {names} is left out; the images of a part lie in folders of their classes.",
            stacklevel=2,
        )
    return parts


def _require_classes(folder: Path, inside: list[Path]) -> None:
    for each in inside:
        parts = [below.name for below in visible_folders(each) if part_of(below.name)]
        if parts and not holds_images(each):
            raise InputError(
                f"{printable(folder)} has the parts {', '.join(parts)} inside of {printable(each.name)}; put folders of the "
                f"classes into folders of the parts, such as {parts[0]}/{printable(each.name)}."
            )
    if len(inside) < 2:
        images, others = images_in(folder)
        found = f"the folder {printable(inside[0].name)}" if inside else "no folder"
        unread = f", {_count(others)}" if others else ""
        raise InputError(
            f"{printable(folder)} needs at least two class folders, or a train folder with them; it has {found} and "
            f"{len(images)} images{unread}."
        )


def class_files(folder: Path) -> list[Path]:
    """The images of one class.

    Raises:
        InputError: there are no images.
    """
    images, others = images_in(folder)
    if not images:
        instead = f"; it has {_count(others)}, and the endings are {', '.join(IMAGE_ENDINGS)}" if others else ""
        raise InputError(
            f"the class folder {printable(folder)} holds no images{instead}; add some or remove the folder."
        )
    if others:
        warnings.warn(f"{printable(folder)}: {_count(others)} are left out.", stacklevel=2)
    return images


def _count(others: Counter[str]) -> str:
    return listed(f"{count} files of {ending}" for ending, count in others.most_common())
