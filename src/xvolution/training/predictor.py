"""Networks that are ready for pictures, and what every run of one over files is asked and answers."""

from __future__ import annotations

import glob
import os
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from PIL import Image
from torch import Tensor, nn

from xvolution.training.data.folders import images_in
from xvolution.training.data.reading import (
    IMAGE_ENDINGS,
    BadImage,
    is_file,
    open_file,
    printable,
    read_picture,
    require_max_pixels,
)
from xvolution.training.errors import InputError
from xvolution.training.evaluation import device_of
from xvolution.training.metadata import Metadata

#: A file, or a picture that has been opened.
Picture = str | os.PathLike[str] | Image.Image
Answer = TypeVar("Answer")


class Predictor(ABC, Generic[Answer]):
    """A network in eval mode with all that its pictures go through; called with prepared images, it returns its outputs.

    Attributes:
        model: the network; it is called without gradients here, and may be called by itself with them.
        metadata: what its file says of it.
        max_pixels: the most that a picture may have; Pillow's own limit when None.
    """

    def __init__(self, model: nn.Module, metadata: Metadata, max_pixels: int | None = None) -> None:
        require_max_pixels(max_pixels)
        self.model, self.metadata, self.max_pixels = model, metadata, max_pixels

    @property
    def classes(self) -> list[str]:
        """The names of what it tells apart, in the order of its outputs."""
        return self.metadata.class_names

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        return device_of(self.model)

    @abstractmethod
    def preprocess(self, picture: Picture) -> Tensor:
        """One picture as the network takes it, on the CPU.

        Raises:
            BadImage: it cannot be decoded.
        """

    @abstractmethod
    def predict(self, pictures: Picture | Sequence[Picture]) -> list[Answer]:
        """What the network says of each picture.

        Raises:
            BadImage: a picture cannot be decoded.
            InputError: the network answers something else than it should.
        """

    def read(self, picture: Picture, channels: int = 3) -> Image.Image:
        """One picture of mode RGB, or L with one channel, as a viewer shows it.

        Raises:
            BadImage: it cannot be decoded.
        """
        if isinstance(picture, Image.Image):
            return read_picture(picture.copy, lambda: "the picture", channels, self.max_pixels)
        return read_picture(partial(open_file, picture), partial(printable, picture), channels, self.max_pixels)


@dataclass(frozen=True)
class PredictSettings:
    """What a run over files is asked, of any network.

    Attributes:
        on_bad_image: "error" ends at an unreadable picture, "skip" leaves it out.
        batch_size: pictures that go through the network at a time, where it takes several.
    """

    on_bad_image: str = "error"
    batch_size: int = 32

    def __post_init__(self) -> None:
        if self.on_bad_image not in ("error", "skip"):
            raise InputError(f"--on-bad-image is {self.on_bad_image}; it must be error or skip.")
        if self.batch_size < 1:
            raise InputError(f"--batch-size is {self.batch_size}; it must be at least 1.")


@dataclass
class Predictions(ABC):
    """What a run over files found and wrote; as text, the lines that `xvolution predict` prints.

    Attributes:
        answers: of each picture that could be read, in the order in which they were given.
        files: what was written.
        skipped: pictures that could not be read and were left out.
    """

    answers: Sequence[Any]
    files: list[Path] = field(default_factory=list, kw_only=True)
    skipped: list[Path] = field(default_factory=list, kw_only=True)

    @property
    @abstractmethod
    def found(self) -> str:
        """What was found, in lines, the last of which sums it up."""

    def __str__(self) -> str:
        left_out = f", {counted(len(self.skipped), 'unreadable picture')} left out" if self.skipped else ""
        return self.found + left_out


def counted(number: int, noun: str) -> str:
    """Such as "1 picture" and "2 pictures"."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def as_list(pictures: Picture | Sequence[Picture]) -> list[Picture]:
    """One picture, or several, as several."""
    return [pictures] if isinstance(pictures, str | os.PathLike | Image.Image) else list(pictures)


def name_of(picture: Picture) -> str:
    """The path of a picture that was given as a file or has been opened from one; else empty."""
    return str(getattr(picture, "filename", "")) if isinstance(picture, Image.Image) else os.fspath(picture)


def readable(
    predictor: Predictor[Any], paths: Iterable[Path], settings: PredictSettings, skipped: list[Path]
) -> Iterator[tuple[int, Path, Tensor]]:
    """Each file's position and path, and its picture as the network takes it; what is left out is added to ``skipped``.

    Raises:
        BadImage: one cannot be decoded, and ``on_bad_image`` is "error".
        InputError: none can.
    """
    read = 0
    for position, path in enumerate(paths):
        try:
            image = predictor.preprocess(path)
        except BadImage as error:
            if settings.on_bad_image != "skip":
                raise
            warnings.warn(f"skipped: {error}", stacklevel=2)
            skipped.append(path)
        else:
            read += 1
            yield position, path, image
    if not read:
        raise InputError("there was no readable picture.")


def picture_files(given: Iterable[str | os.PathLike[str]]) -> list[Path]:
    """The files that paths name: files, folders with all images in them and in folders below, and patterns such as ``*.jpg``.

    Raises:
        InputError: a path names nothing, or there is no image in a folder.
    """
    return [path for each in given for path in _files(Path(each))]


def _files(given: Path) -> list[Path]:
    if is_file(given):
        return [given]
    if os.path.isdir(given):
        inside, _ = images_in(given)
        if not inside:
            raise InputError(f"there are no images in {printable(given)}; the endings are {', '.join(IMAGE_ENDINGS)}.")
        return inside
    if not glob.has_magic(str(given)):
        raise InputError(f"there is no file {printable(given)}.")
    matching = sorted(Path(name) for name in glob.glob(str(given), recursive=True))
    images = [path for path in matching if path.suffix.lower() in IMAGE_ENDINGS and is_file(path)]
    if not images:
        raise InputError(f"no image matches {printable(given)}; the endings are {', '.join(IMAGE_ENDINGS)}.")
    return images
