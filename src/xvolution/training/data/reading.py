"""Reading pictures: decoding image files, and a survey of a data set's pictures."""

from __future__ import annotations

import io
import os
import stat
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from xvolution.training.errors import InputError

IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
#: What Pillow reads at most where nothing is said.
MAX_PIXELS = 178_956_970
#: pycocotools counts the pixels of a mask in 32 bits.
MOST_MAX_PIXELS = 2**31 - 1
#: Images that a look at a data set takes.
SURVEYED = 64
#: Shorter side in pixels up to which images keep their size; larger ones are photographs.
SMALL_SIDE = 96
PHOTOGRAPH_SIDE = 224

#: What is unusual in an image, and what becomes of images with it.
NOTES = {
    "EXIF orientation": "have an EXIF orientation and are rotated accordingly; their boxes must refer to the rotated image",
    "transparency": "have transparent pixels, which are shown on white",
    "16 bits": "have 16 bits per channel and are scaled to 8 bits, so that 65535 becomes 255",
    "16 bits, dark": "have 16 bits per channel but only values below 4096, so that they are nearly black; rescale the files",
    "several pictures": "hold several pictures; only the first is used",
}

_ORIENTATION = 0x0112


class BadImage(InputError):
    """One image that cannot be decoded; the message names it."""

    def __init__(self, message: str) -> None:
        # A loader's worker process hands over the whole traceback as the message; the sentence is its last line.
        super().__init__(message.strip().splitlines()[-1].rpartition("BadImage: ")[2])


@dataclass(frozen=True)
class Look:
    """The properties of one image file.

    Attributes:
        size: width and height in pixels, after rotation by its EXIF orientation.
        grey: whether it has one channel.
        notes: unusual properties, as keys of ``NOTES``.
    """

    size: tuple[int, int]
    grey: bool
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Survey:
    """The properties of some images of a data set."""

    looks: tuple[Look, ...]

    @property
    def grey(self) -> bool:
        """Whether all of them have one channel."""
        return bool(self.looks) and all(look.grey for look in self.looks)

    @property
    def sides(self) -> list[int]:
        """The shorter side of each, in pixels, sorted."""
        return sorted(min(look.size) for look in self.looks)

    @property
    def image_size(self) -> int:
        """A side length for the median image: its own if it is small, else that of photographs."""
        return _suitable(statistics.median_low(self.sides)) if self.looks else PHOTOGRAPH_SIDE

    @property
    def mixed(self) -> bool:
        """Whether different images would need different side lengths."""
        return len({_suitable(side) for side in self.sides}) > 1

    def sentences(self, name: str) -> Iterator[str]:
        """One sentence for each kind of unusual image."""
        for note, count in Counter(note for look in self.looks for note in look.notes).items():
            yield f"{name}: {count} of {len(self.looks)} images that were checked {NOTES[note]}."


def _suitable(side: int) -> int:
    return side if side <= SMALL_SIDE else PHOTOGRAPH_SIDE


def survey(length: int, look: Callable[[int], Look]) -> Survey:
    """Survey images that are spread evenly over a source; unreadable ones are ignored here and reported when they are read."""
    looks = []
    for index in np.unique(np.linspace(0, length - 1, min(length, SURVEYED)).round().astype(int)):
        try:
            looks.append(look(int(index)))
        except BadImage:
            continue
    return Survey(tuple(looks))


def open_file(path: str | os.PathLike[str]) -> Image.Image:
    """Open an image file without decoding it.

    Raises:
        OSError: it is not a regular file (a named pipe would block), or Pillow does not know its format.
    """
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise OSError("it is a folder, a pipe or a device, not a regular file")
    return Image.open(path)


def leaves_folder(name: str) -> bool:
    """Whether a file's name points outside of its folder."""
    return PurePath(name).is_absolute() or ".." in PurePath(name).parts


def open_stored(value: Mapping[str, Any] | None, folder: Path | None, outside_images: bool) -> Image.Image:
    """Open an image that a table contains or refers to.

    Args:
        value: ``bytes`` of the file, or its ``path``.
        folder: folder of the path; None if a library stores the file elsewhere.
        outside_images: allow paths that leave the folder.

    Raises:
        BadImage: the path leaves the folder.
        OSError: it is not an image.
        ValueError: it has neither bytes nor a path.
    """
    if value is None or (value["bytes"] is None and value["path"] is None):
        raise ValueError("the row holds no image")
    if value["bytes"] is not None:
        return Image.open(io.BytesIO(value["bytes"]))
    if folder is None:
        return open_file(value["path"])
    if leaves_folder(value["path"]) and not outside_images:
        raise BadImage(
            f"{printable(value['path'])} is outside of the folder {printable(folder)}; give --outside-images "
            "if you trust the file that names it."
        )
    return open_file(folder / value["path"])


def is_file(path: Path) -> bool:
    """Whether a path is a regular file; False for invalid names."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def read_picture(
    open_image: Callable[[], Image.Image], describe: Callable[[], str], channels: int = 3, max_pixels: int | None = None
) -> Image.Image:
    """Decode an image as a viewer shows it: rotated by its EXIF orientation, 16 bits scaled to 8, transparent pixels on white.

    Args:
        open_image: opens the image.
        describe: returns its name for messages.
        channels: 3 for RGB, 1 for grey.
        max_pixels: see ``require_max_pixels``.

    Returns:
        A picture of mode RGB or L.

    Raises:
        BadImage: it cannot be decoded; the message names it.
    """
    with _opened(open_image, describe, max_pixels) as opened:
        ImageOps.exif_transpose(opened, in_place=True)
        return _opaque(_eight_bits(opened)).convert("L" if channels == 1 else "RGB")


def look_at(open_image: Callable[[], Image.Image], describe: Callable[[], str], max_pixels: int | None = None) -> Look:
    """The properties of an image from its header, and from its pixels if it has 16 bits.

    Raises:
        BadImage: it cannot be opened; the message names it.
    """
    with _opened(open_image, describe, max_pixels) as opened:
        orientation = opened.getexif().get(_ORIENTATION, 1)
        # Pillow turns TIFF files itself, and their size with them.
        turned = orientation in range(5, 9) and opened.format != "TIFF"
        deep = opened.mode.startswith("I")
        notes = {
            "EXIF orientation": orientation in range(2, 9),
            "transparency": opened.has_transparency_data,
            "several pictures": getattr(opened, "is_animated", False),
        }
        size = (opened.height, opened.width) if turned else opened.size
        grey = opened.mode in ("1", "L", "LA", "La", "F") or deep
        if deep:
            dark = bool(np.asarray(opened).max() < 4096)
            notes |= {"16 bits, dark": dark, "16 bits": not dark}
        return Look(size, grey, tuple(note for note, holds in notes.items() if holds))


@contextmanager
def _opened(
    open_image: Callable[[], Image.Image], describe: Callable[[], str], max_pixels: int | None
) -> Iterator[Image.Image]:
    if max_pixels is not None:
        Image.MAX_IMAGE_PIXELS = max_pixels  # of this process: Pillow asks it when it opens, decodes and crops
    try:
        with open_image() as opened:
            if max_pixels is not None and opened.width * opened.height > max_pixels:
                raise Image.DecompressionBombError(f"it has {opened.width} x {opened.height} pixels")
            yield opened
    except BadImage:
        raise
    except FileNotFoundError as error:
        raise BadImage(f"{describe()} is not on the disk.") from error
    except Image.DecompressionBombError as error:
        raise BadImage(
            f"{describe()} is larger than the limit of {max_pixels or MAX_PIXELS} pixels "
            f"({_one_line(error)}); give a larger --max-pixels if you trust the file."
        ) from error
    except Exception as error:  # Pillow's many decoders raise whatever they meet in a damaged file
        raise BadImage(f"{describe()} is not a readable image ({_one_line(error)}).") from error


def _eight_bits(picture: Image.Image) -> Image.Image:
    """Grey values of more than 8 bits scaled to 8; Pillow would cut them off at 255."""
    if picture.mode == "F":
        raise ValueError("it holds floating-point values, whose range is unknown; write 8 or 16 bits")
    if not picture.mode.startswith("I"):
        return picture
    values = np.asarray(picture).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise ValueError(f"it holds values from {values.min()} to {values.max()}; write 8 or 16 bits")
    return Image.fromarray(((values + 128) // 257).astype(np.uint8))


def _opaque(picture: Image.Image) -> Image.Image:
    """The picture on white: the colours of transparent pixels are undefined."""
    if not picture.has_transparency_data:
        return picture
    over = picture.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", over.size, (255, 255, 255, 255)), over)


def require_max_pixels(max_pixels: int | None) -> None:
    """Check the largest number of pixels of an image.

    Args:
        max_pixels: None for Pillow's own limit, so that no file fills the memory.

    Raises:
        InputError: it is below 1, or above the limit for masks.
    """
    if max_pixels is not None and not 1 <= max_pixels <= MOST_MAX_PIXELS:
        raise InputError(f"--max-pixels is {max_pixels}; it must be 1 to {MOST_MAX_PIXELS}.")


def printable(name: str | os.PathLike[str]) -> str:
    r"""A file's name for messages and tables; bytes that are not UTF-8 are written as \xe9."""
    text = os.fspath(name)
    try:
        encoded = text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # half a character, as a JSON file can name it
        encoded = text.encode("utf-8", "backslashreplace")
    return encoded.decode("utf-8", "backslashreplace")


def listed(names: Iterable[str], count: int = 5) -> str:
    """The first of several names, for messages."""
    names = list(names)
    return ", ".join(names[:count]) + (f" and {len(names) - count} more" if len(names) > count else "")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
