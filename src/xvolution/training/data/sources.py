"""Sources of images. A source has all labels and decodes one image at a time."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from xvolution.training.data.folders import class_files, visible_folders
from xvolution.training.data.reading import (
    Look,
    Survey,
    listed,
    look_at,
    open_file,
    open_stored,
    printable,
    read_picture,
    survey,
)
from xvolution.training.errors import InputError

#: Labels that are numbers count the classes, so that a large one is no label.
_MOST_CLASSES = 100_000


class ImageSource(ABC):
    """Labelled images.

    Attributes:
        labels: (n,) int64, the class of each image.
        class_names: one name for each class.
        flips: whether a mirrored image still shows its class.
        max_pixels: largest number of pixels in an image; Pillow's own limit if None.
    """

    flips = True
    max_pixels: int | None = None

    def __init__(self, labels: Sequence[int] | np.ndarray, class_names: Sequence[str]) -> None:
        self.labels = np.asarray(labels, dtype=np.int64)
        self.class_names = [str(name) for name in class_names]

    def __len__(self) -> int:
        return len(self.labels)

    def image(self, index: int, channels: int = 3) -> Image.Image:
        """Decode image `index` as RGB, or as grey if `channels` is 1; see `read_picture`.

        Raises:
            BadImage: it cannot be decoded; the message names it.
        """
        return read_picture(partial(self._open, index), partial(self.describe, index), channels, self.max_pixels)

    def survey(self) -> Survey:
        """The properties of some images, evenly spread over the source."""
        return survey(len(self), self._look)

    def _look(self, index: int) -> Look:
        return look_at(partial(self._open, index), partial(self.describe, index), self.max_pixels)

    @abstractmethod
    def _open(self, index: int) -> Image.Image:
        """Open image `index`; decoding may wait until it is converted."""

    @abstractmethod
    def describe(self, index: int) -> str:
        """The name of image `index` for messages, such as its path."""

    def subset(self, indices: Sequence[int] | np.ndarray) -> ImageSource:
        return Subset(self, indices)

    def spread(self, count: int) -> ImageSource:
        """At most this number of images, evenly spread, because a part is often sorted by class."""
        return self.subset(np.unique(np.linspace(0, len(self) - 1, min(count, len(self))).round().astype(np.int64)))


class Subset(ImageSource):
    """Some images of another source, in the order given."""

    def __init__(self, source: ImageSource, indices: Sequence[int] | np.ndarray) -> None:
        self.source, self.indices = source, np.asarray(indices, dtype=np.int64)
        self.flips, self.max_pixels = source.flips, source.max_pixels
        super().__init__(source.labels[self.indices], source.class_names)

    def _open(self, index: int) -> Image.Image:
        return self.source._open(int(self.indices[index]))

    def describe(self, index: int) -> str:
        return self.source.describe(int(self.indices[index]))


class Joined(ImageSource):
    """The images of several sources of the same classes, one source after the other."""

    def __init__(self, sources: Sequence[ImageSource]) -> None:
        self.sources = list(sources)
        self.ends = np.cumsum([len(source) for source in sources])
        self.flips, self.max_pixels = sources[0].flips, sources[0].max_pixels
        super().__init__(np.concatenate([source.labels for source in sources]), sources[0].class_names)

    def _open(self, index: int) -> Image.Image:
        source, own = self._place(index)
        return source._open(own)

    def describe(self, index: int) -> str:
        source, own = self._place(index)
        return source.describe(own)

    def _place(self, index: int) -> tuple[ImageSource, int]:
        """The source that holds an image, and its index there."""
        which = int(np.searchsorted(self.ends, index, side="right"))
        return self.sources[which], index - int(self.ends[which - 1]) if which else index


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
    """A folder with one folder of images for each class.

    Args:
        folder: folder of the class folders.
        class_names: class names of the training part, if this is another part.

    Raises:
        InputError: a class holds no images, or the training part does not have it.
    """

    def __init__(self, folder: Path, class_names: Sequence[str] | None = None) -> None:
        found = {printable(each.name): each for each in visible_folders(folder)}
        names = list(class_names) if class_names is not None else list(found)
        unknown = sorted(set(found) - set(names))
        if unknown:
            raise InputError(
                f"{printable(folder)} has class folders that the training part does not have: {listed(unknown)}."
            )
        self.files: list[Path] = []
        labels: list[int] = []
        for name, place in found.items():
            files = class_files(place)
            self.files += files
            labels += [names.index(name)] * len(files)
        super().__init__(labels, names)

    def _open(self, index: int) -> Image.Image:
        return open_file(self.files[index])

    def describe(self, index: int) -> str:
        return printable(self.files[index])


class TableImages(ImageSource):
    """A Hugging Face data set with a column of images and one of labels.

    Args:
        name: name of the table, for messages.
        table: a ``datasets.Dataset``.
        class_names: class names of the training part, if this is another part; labels in words must then be among them.
        folder: folder of images that the table names without containing them; None if a library stores them elsewhere.
        outside_images: also read images outside the folder.

    Raises:
        InputError: there are no such columns, or they hold other values; the message names them.
    """

    def __init__(
        self,
        name: str,
        table: Any,
        class_names: Sequence[str] | None = None,
        folder: Path | None = None,
        outside_images: bool = False,
    ) -> None:
        from datasets import ClassLabel
        from datasets import Image as ImageFeature

        image_column = _column(table, "images", _is_image, ("image", "img"), name)
        label_column = _column(table, "labels", _is_label, ("label", "labels", "fine_label", "coarse_label"), name)
        feature, values = table.features[label_column], table[label_column]
        _require_values(values, f"{name}, column {label_column}")
        if isinstance(feature, ClassLabel):
            labels, names = np.asarray(values, dtype=np.int64), list(feature.names)
        elif feature.dtype in _WORDS:
            labels, names = _numbered(values, class_names, name)
        else:
            labels, names = _counted(values, f"{name}, column {label_column}")
        super().__init__(labels, names)
        self.name, self.folder, self.outside_images = name, folder, outside_images
        self.column = image_column
        self.table = table.cast_column(image_column, ImageFeature(decode=False)).select_columns([image_column])

    def _open(self, index: int) -> Image.Image:
        return open_stored(self.table[index][self.column], self.folder, self.outside_images)

    def describe(self, index: int) -> str:
        value = self.table[index][self.column] or {}
        path = value.get("path")
        return f"{self.name}, row {index}" + (f" ({printable(path)})" if path else "")


_WORDS = ("string", "large_string", "bool")


def _is_image(feature: Any) -> bool:
    """Images, their files' bytes, or the paths of the files."""
    from datasets import Image as ImageFeature

    if isinstance(feature, dict):
        return feature.keys() == {"bytes", "path"}
    return isinstance(feature, ImageFeature) or getattr(feature, "dtype", None) in ("binary", "large_binary", "string")


def _is_label(feature: Any) -> bool:
    """Classes, numbers or words."""
    from datasets import ClassLabel, Value

    if isinstance(feature, ClassLabel):
        return True
    return isinstance(feature, Value) and (
        feature.dtype in _WORDS or feature.dtype.startswith(("int", "uint", "float"))
    )


def _column(table: Any, what: str, fits: Any, usual_names: Sequence[str], name: str) -> str:
    """Find the column of a kind: a usual name first, then the only column of that type."""
    from datasets import ClassLabel
    from datasets import Image as ImageFeature

    fitting = [column for column, feature in table.features.items() if fits(feature)]
    for candidate in usual_names:
        if candidate in fitting:
            return candidate
    typed = [column for column in fitting if isinstance(table.features[column], ClassLabel | ImageFeature)]
    if len(typed) != 1:
        columns = ", ".join(f"{column} ({_kind(feature)})" for column, feature in table.features.items())
        raise InputError(
            f"{name} needs one column of {what} called {' or '.join(usual_names[:2])}; its columns are {columns}."
        )
    return typed[0]


def _kind(feature: Any) -> str:
    """The kind of a column's values, in a word."""
    return "struct" if isinstance(feature, dict) else str(getattr(feature, "dtype", type(feature).__name__))


def _require_values(values: Any, where: str) -> None:
    """Require that no label is missing."""
    for row, value in enumerate(values):
        if value is None or value != value:
            raise InputError(f"{where}: row {row} has no label ({value}); give it one, or leave the row out.")


def _numbered(values: Any, class_names: Sequence[str] | None, name: str) -> tuple[np.ndarray, list[str]]:
    """Labels that are words, numbered in the order of the alphabet."""
    words = [printable(str(value)) for value in values]
    names = sorted(set(words)) if class_names is None else list(class_names)
    unknown = sorted(set(words) - set(names))
    if unknown:
        raise InputError(f"{name} has labels that the training part does not have: {listed(unknown)}.")
    position = {word: label for label, word in enumerate(names)}
    return np.array([position[word] for word in words], dtype=np.int64), names


def _counted(values: Any, where: str) -> tuple[np.ndarray, list[str]]:
    """Labels that are numbers, which count the classes from 0."""
    numbers = np.asarray(values, dtype=np.float64)
    wrong = (numbers % 1 != 0) | (numbers < 0) | (numbers >= _MOST_CLASSES)
    if wrong.any():
        row = int(wrong.argmax())
        raise InputError(
            f"{where}: row {row} has the label {values[row]}; a label must be a whole number from 0 to "
            f"{_MOST_CLASSES - 1} or the name of a class."
        )
    return numbers.astype(np.int64), [str(label) for label in range(int(numbers.max(initial=-1)) + 1)]


class TorchvisionImages(ImageSource):
    """A torchvision classification data set, which returns (PIL image, label).

    Raises:
        InputError: it is another kind of data set.
    """

    def __init__(self, name: str, dataset: Any) -> None:
        given = next(
            (getattr(dataset, key) for key in ("targets", "labels", "_labels", "y") if hasattr(dataset, key)), None
        )
        try:
            labels = np.asarray([dataset[index][1] for index in range(len(dataset))] if given is None else given)
        except (TypeError, ValueError):
            labels = np.empty(0)
        if labels.ndim != 1 or labels.dtype.kind not in "iu":
            raise InputError(
                f"torchvision's {name} does not have one class for each image; give a data set for classification."
            )
        names = getattr(dataset, "classes", None) or [str(i) for i in range(int(labels.max(initial=-1)) + 1)]
        super().__init__(labels, [name if isinstance(name, str) else ", ".join(name) for name in names])
        self.name, self.dataset = name, dataset

    def _open(self, index: int) -> Image.Image:
        return self.dataset[index][0]

    def describe(self, index: int) -> str:
        return f"{self.name}, image {index}"
