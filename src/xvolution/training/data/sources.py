"""Where images come from. A source knows its labels at once and decodes one image at a time."""

from __future__ import annotations

import io
import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from xvolution.training.errors import InputError


class BadImage(InputError):
    """One image that cannot be decoded; the message names it."""

    def __init__(self, message: str) -> None:
        # A loader's worker process hands over the whole traceback as the message; the sentence is its last line.
        super().__init__(message.strip().splitlines()[-1].rpartition("BadImage: ")[2])


class ImageSource(ABC):
    """Labelled images.

    Attributes:
        labels: (n,) int64, the class of each image.
        class_names: one name for each class.
        flips: whether a mirrored image still shows its class.
    """

    flips = True

    def __init__(self, labels: Sequence[int] | np.ndarray, class_names: Sequence[str]) -> None:
        self.labels = np.asarray(labels, dtype=np.int64)
        self.class_names = [str(name) for name in class_names]

    def __len__(self) -> int:
        return len(self.labels)

    def image(self, index: int) -> Image.Image:
        """Decode image `index` as RGB.

        Raises:
            BadImage: it cannot be decoded; the message names it.
        """
        try:
            return self._open(index).convert("RGB")
        except (OSError, SyntaxError, ValueError, UnidentifiedImageError, Image.DecompressionBombError) as error:
            raise BadImage(f"{self.describe(index)} is not a readable image ({_one_line(error)}).") from error

    @abstractmethod
    def _open(self, index: int) -> Image.Image:
        """Open image `index`; decoding may wait until it is converted."""

    @abstractmethod
    def describe(self, index: int) -> str:
        """Name image `index` the way its owner would look for it."""

    def subset(self, indices: Sequence[int] | np.ndarray) -> ImageSource:
        return Subset(self, indices)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


class Subset(ImageSource):
    """Some images of another source, in the order given."""

    def __init__(self, source: ImageSource, indices: Sequence[int] | np.ndarray) -> None:
        self.source, self.indices = source, np.asarray(indices, dtype=np.int64)
        self.flips = source.flips
        super().__init__(source.labels[self.indices], source.class_names)

    def _open(self, index: int) -> Image.Image:
        return self.source._open(int(self.indices[index]))

    def describe(self, index: int) -> str:
        return self.source.describe(int(self.indices[index]))


class ArrayImages(ImageSource):
    """Images in memory: (n, H, W) or (n, H, W, 3) uint8."""

    def __init__(self, name: str, images: np.ndarray, labels: np.ndarray, class_names: Sequence[str]) -> None:
        super().__init__(labels, class_names)
        self.name, self.images = name, images

    def _open(self, index: int) -> Image.Image:
        return Image.fromarray(self.images[index])

    def describe(self, index: int) -> str:
        return f"{self.name}, image {index}"


class FolderImages(ImageSource):
    """A folder with one folder of images for each class."""

    def __init__(self, folder: Path, class_names: Sequence[str] | None = None) -> None:
        from torchvision.datasets.folder import IMG_EXTENSIONS

        found = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))
        names = list(class_names) if class_names is not None else found
        unknown = sorted(set(found) - set(names))
        if unknown:
            raise InputError(f"{folder} has class folders that the training part has not: {', '.join(unknown[:5])}.")
        self.files: list[Path] = []
        labels: list[int] = []
        for name in found:
            files = sorted(path for path in (folder / name).rglob("*") if path.suffix.lower() in IMG_EXTENSIONS)
            if not files:
                raise InputError(f"the class folder {folder / name} holds no images; add some or remove the folder.")
            self.files += files
            labels += [names.index(name)] * len(files)
        super().__init__(labels, names)

    def _open(self, index: int) -> Image.Image:
        return Image.open(self.files[index])

    def describe(self, index: int) -> str:
        return str(self.files[index])


class TableImages(ImageSource):
    """A Hugging Face data set with an image column {bytes, path} and a label column."""

    def __init__(self, name: str, table: Any) -> None:
        from datasets import ClassLabel
        from datasets import Image as ImageFeature

        image_column = _column(table, ImageFeature, ("image", "img"), name)
        label_column = _column(table, ClassLabel, ("label", "labels", "fine_label", "coarse_label"), name)
        labels = np.asarray(table[label_column], dtype=np.int64)
        feature = table.features[label_column]
        names = feature.names if isinstance(feature, ClassLabel) else [str(i) for i in range(int(labels.max()) + 1)]
        super().__init__(labels, names)
        self.name = name
        self.column = image_column
        self.table = table.cast_column(image_column, ImageFeature(decode=False)).select_columns([image_column])

    def _open(self, index: int) -> Image.Image:
        value = self.table[index][self.column]
        if value is None:
            raise ValueError("the row holds no image")
        return Image.open(io.BytesIO(value["bytes"]) if value["bytes"] is not None else value["path"])

    def describe(self, index: int) -> str:
        value = self.table[index][self.column] or {}
        path = value.get("path")
        return f"{self.name}, row {index}" + (f" ({path})" if path else "")


def _column(table: Any, feature: type, usual_names: Sequence[str], name: str) -> str:
    """Find the column of a kind: a usual name first, then the only column of that type."""
    for candidate in usual_names:
        if candidate in table.column_names:
            return candidate
    typed = [column for column, kind in table.features.items() if isinstance(kind, feature)]
    if len(typed) != 1:
        raise InputError(
            f"{name} needs one column called {' or '.join(usual_names[:2])}; its columns are {', '.join(table.column_names)}."
        )
    return typed[0]


class TorchvisionImages(ImageSource):
    """A torchvision classification data set, which answers (PIL image, label)."""

    def __init__(self, name: str, dataset: Any) -> None:
        labels = next(
            (getattr(dataset, key) for key in ("targets", "labels", "_labels", "y") if hasattr(dataset, key)), None
        )
        if labels is None:
            labels = [int(dataset[index][1]) for index in range(len(dataset))]
        labels = np.asarray(labels, dtype=np.int64)
        names = getattr(dataset, "classes", None) or [str(i) for i in range(int(labels.max()) + 1)]
        super().__init__(labels, [name if isinstance(name, str) else ", ".join(name) for name in names])
        self.name, self.dataset = name, dataset

    def _open(self, index: int) -> Image.Image:
        return self.dataset[index][0]

    def describe(self, index: int) -> str:
        return f"{self.name}, image {index}"
