"""Networks that predict pictures, and the settings and results of a run over files."""

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
    """A network in eval mode with its preprocessing; called with preprocessed images, it returns its outputs.

    Attributes:
        model: the network; the predictor calls it without gradients.
        metadata: the metadata of its file.
        max_pixels: largest number of pixels in a picture; Pillow's own limit if None.
    """

    def __init__(self, model: nn.Module, metadata: Metadata, max_pixels: int | None = None) -> None:
        require_max_pixels(max_pixels)
        self.model, self.metadata, self.max_pixels = model, metadata, max_pixels

    @property
    def classes(self) -> list[str]:
        """The names of the classes, in the order of its outputs."""
        return self.metadata.class_names

    @property
    def device(self) -> torch.device:
        """The device that runs it."""
        return device_of(self.model)

    @abstractmethod
    def preprocess(self, picture: Picture) -> Tensor:
        """One preprocessed picture, on the CPU.

        Raises:
            BadImage: the image cannot be decoded.
        """

    @abstractmethod
    def predict(self, pictures: Picture | Sequence[Picture]) -> list[Answer]:
        """The prediction for each picture.

        Raises:
            BadImage: a picture cannot be decoded.
            InputError: the network's outputs do not have the expected form.
        """

    def read(self, picture: Picture, channels: int = 3) -> Image.Image:
        """One picture of mode RGB, or L with one channel, as a viewer shows it.

        Raises:
            BadImage: the image cannot be decoded.
        """
        if isinstance(picture, Image.Image):
            return read_picture(picture.copy, lambda: "the picture", channels, self.max_pixels)
        return read_picture(partial(open_file, picture), partial(printable, picture), channels, self.max_pixels)


@dataclass(frozen=True)
class PredictSettings:
    """The settings of a run over files, for any network.

    Attributes:
        on_bad_image: "error" stops at an unreadable picture, "skip" leaves it out.
        batch_size: number of pictures in a batch, if the network accepts several.
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
    """The results of a run over files; as text, the lines that `xvolution predict` prints.

    Attributes:
        answers: the prediction for each readable picture, in the given order.
        files: the written files.
        skipped: pictures that could not be read and were left out.
    """

    answers: Sequence[Any]
    files: list[Path] = field(default_factory=list, kw_only=True)
    skipped: list[Path] = field(default_factory=list, kw_only=True)

    @property
    @abstractmethod
    def found(self) -> str:
        """The predictions as lines; the last line is a summary."""

    def __str__(self) -> str:
        left_out = f", {counted(len(self.skipped), 'unreadable picture')} left out" if self.skipped else ""
        return self.found + left_out


def counted(number: int, noun: str) -> str:
    """A number with its noun, such as "1 picture" and "2 pictures"."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def as_list(pictures: Picture | Sequence[Picture]) -> list[Picture]:
    """One or several pictures as a list."""
    return [pictures] if isinstance(pictures, str | os.PathLike | Image.Image) else list(pictures)


def name_of(picture: Picture) -> str:
    """The path of a picture that is a file or was opened from one; else empty."""
    return str(getattr(picture, "filename", "")) if isinstance(picture, Image.Image) else os.fspath(picture)


def readable(
    predictor: Predictor[Any], paths: Iterable[Path], settings: PredictSettings, skipped: list[Path]
) -> Iterator[tuple[int, Path, Tensor]]:
    """Each file's position, path and preprocessed picture; unreadable files are added to ``skipped``.

    Raises:
        BadImage: a picture cannot be decoded, and ``on_bad_image`` is "error".
        InputError: no picture can be decoded.
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
    """The picture files of paths: files, folders (with all images in them and below), and patterns such as ``*.jpg``.

    Raises:
        InputError: a path does not exist, a pattern matches no file, or a folder has no image.
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
