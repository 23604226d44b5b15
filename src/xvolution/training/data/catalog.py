"""From the one `--data` argument to a training and an evaluation part."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from xvolution.training.data.sources import ArrayImages, FolderImages, ImageSource, TableImages, TorchvisionImages
from xvolution.training.errors import InputError

HELD_OUT = 0.2  # of a data set that comes in one part
SPLIT_NAMES = {
    "train": ("train", "training"),
    "val": ("val", "validation", "valid", "dev"),
    "test": ("test", "testing"),
}


@dataclass
class DataSplits:
    """The parts of one data set; `val` is what training is judged by.

    Attributes:
        name: what was asked for.
        train: images to learn from.
        val: images to judge by: the data set's own validation (or test) part, or one held out of `train`.
        test: the data set's test part where it has one beside `val`.
        image_size: a side length, in pixels, that suits the images.
    """

    name: str
    train: ImageSource
    val: ImageSource
    test: ImageSource | None
    image_size: int

    def part(self, split: str) -> ImageSource:
        """Answer the part called `split`: train, val or test.

        Raises:
            InputError: the data set has no such part.
        """
        source = {"train": self.train, "val": self.val, "test": self.test}.get(split)
        if source is None:
            raise InputError(
                f"{self.name} has no part called {split!r}; there are train, val" + (", test." if self.test else ".")
            )
        return source


def open_data(data: str | os.PathLike[str], holdout: float | None = None, seed: int = 0) -> DataSplits:
    """Open a data set.

    Args:
        data: `digits`; a folder of class folders (in `train` and `val` or `test` folders, or not); a parquet file or a
            folder of them; a torchvision data set (`torchvision:CIFAR10` or `CIFAR10`, downloaded to `~/.cache/xvolution`
            or `$XVOLUTION_DATA`); any other name is a Hugging Face data set (`hf:uoft-cs/cifar10`).
        holdout: fraction of the training part to judge by in the place of `val`, to tune without looking at `val`.
        seed: of the split where one is made.

    Raises:
        InputError: there is no such data set, or it is not a classification data set.
    """
    name = os.fspath(data)
    parts = _open_parts(name)
    if "train" not in parts:
        raise InputError(f"{name} has no training part; found: {', '.join(parts) or 'nothing'}.")
    for part, source in parts.items():
        if len(source) == 0:
            raise InputError(f"the {part} part of {name} holds no images.")
    train, val, test = parts["train"], parts.get("val"), parts.get("test")
    if holdout is not None:
        train, val = held_out(train, holdout, seed)
    elif val is None and test is not None:
        val, test = test, None
    elif val is None:
        train, val = held_out(train, HELD_OUT, seed)
    assert val is not None
    return DataSplits(name, train, val, test, _suitable_size(name, train))


def held_out(source: ImageSource, fraction: float, seed: int) -> tuple[ImageSource, ImageSource]:
    """Split off the same fraction of every class, and at least one of a class of two; both parts keep the source's order."""
    if not 0 < fraction < 1:
        raise InputError(f"the held-out fraction must lie between 0 and 1, not {fraction}.")
    generator = np.random.default_rng(seed)
    chosen = np.zeros(len(source), dtype=bool)
    for label in np.unique(source.labels):
        members = np.flatnonzero(source.labels == label)
        count = max(round(len(members) * fraction), min(1, len(members) - 1))
        chosen[generator.permutation(members)[:count]] = True
    if not chosen.any():
        raise InputError(f"{len(source)} images of which no class has two cannot be split; give a validation part.")
    return source.subset(np.flatnonzero(~chosen)), source.subset(np.flatnonzero(chosen))


def _suitable_size(name: str, source: ImageSource) -> int:
    """The images' own size where it is small, 32 for the 8x8 digits, and 224 for photographs."""
    if name == "digits":
        return 32
    for index in range(min(len(source), 8)):
        try:
            side = min(source.image(index).size)
        except InputError:
            continue
        return side if side <= 96 else 224
    return 224


def _open_parts(name: str) -> dict[str, ImageSource]:
    if name == "digits":
        return _digits()
    path = Path(name).expanduser()
    if path.exists():
        return _parquet(path) if path.suffix == ".parquet" or _holds_parquet(path) else _folders(path)
    prefix, _, rest = name.partition(":")
    if prefix == "torchvision" and rest:
        return _torchvision(rest)
    if prefix == "hf" and rest:
        return _hugging_face(rest)
    if "/" in name and (name.startswith((".", "/", "~")) or name.count("/") > 1):
        raise InputError(f"there is no file or folder {name}.")
    if "/" not in name and _torchvision_class(name) is not None:
        return _torchvision(name)
    return _hugging_face(name)


def _digits() -> dict[str, ImageSource]:
    """scikit-learn's 1,797 handwritten digits, 8x8; a fixed fifth of every class to judge by."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.round(digits.images * (255 / 16)).astype(np.uint8)
    source = ArrayImages("digits", images, digits.target, [str(i) for i in range(10)])
    source.flips = False
    train, val = held_out(source, HELD_OUT, seed=0)
    return {"train": train, "val": val}


def _split_of(name: str) -> str | None:
    stem = name.lower()
    return next((part for part, names in SPLIT_NAMES.items() if stem.startswith(names)), None)


def _folders(path: Path) -> dict[str, ImageSource]:
    if not path.is_dir():
        raise InputError(f"{path} is neither a folder of class folders nor a parquet file.")
    folders = sorted(entry for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    parts = {part: folder for folder in folders if (part := _exact_split(folder.name))}
    if "train" not in parts:
        if len(folders) < 2:
            raise InputError(
                f"{path} needs at least two class folders, or a train folder with them; found {len(folders)} folders."
            )
        return {"train": FolderImages(path)}
    train = FolderImages(parts["train"])
    others = {part: FolderImages(folder, train.class_names) for part, folder in parts.items() if part != "train"}
    return {"train": train, **others}


def _exact_split(name: str) -> str | None:
    return next((part for part, names in SPLIT_NAMES.items() if name.lower() in names), None)


def _holds_parquet(path: Path) -> bool:
    return path.is_dir() and any(path.glob("*.parquet"))


def _parquet(path: Path) -> dict[str, ImageSource]:
    """Parquet files, gathered into parts by how their names begin."""
    from datasets import load_dataset

    files: dict[str, list[str]] = {}
    for file in sorted(path.glob("*.parquet")) if path.is_dir() else [path]:
        files.setdefault(_split_of(file.name) or "train", []).append(str(file))
    return _tables(str(path), lambda: load_dataset("parquet", data_files=files))


def _hugging_face(name: str) -> dict[str, ImageSource]:
    from datasets import load_dataset

    return _tables(name, lambda: load_dataset(name))


def _tables(name: str, load: Callable[[], Any]) -> dict[str, ImageSource]:
    from datasets import disable_progress_bars

    disable_progress_bars()
    try:
        tables = load()
    except Exception as error:  # the library raises whatever its many readers raise
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(
            f"{name} cannot be opened as a data set ({reason}); give digits, a folder of class folders, parquet files, "
            "a torchvision data set (torchvision:CIFAR10) or a Hugging Face data set."
        ) from error
    parts: dict[str, ImageSource] = {}
    for split, table in tables.items():
        part = _split_of(split)
        if part is not None and part not in parts:
            parts[part] = TableImages(f"{name} [{split}]", table)
    return parts


def _torchvision_class(name: str) -> Any | None:
    from torchvision import datasets

    return next((getattr(datasets, known) for known in datasets.__all__ if known.lower() == name.lower()), None)


def _torchvision(name: str) -> dict[str, ImageSource]:
    dataset = _torchvision_class(name)
    if dataset is None:
        raise InputError(f"torchvision has no data set called {name!r}.")
    root = os.environ.get("XVOLUTION_DATA", os.path.join("~", ".cache", "xvolution"))
    root = os.path.expanduser(root)
    parts: dict[str, ImageSource] = {}
    for part, arguments in (("train", {"train": True}), ("test", {"train": False})):
        try:
            loaded = dataset(root, download=True, **arguments)
        except TypeError:
            loaded = dataset(root, download=True, split=part)
        except Exception as error:  # network, disk and archive errors of a download
            raise InputError(f"torchvision's {name} cannot be downloaded to {root} ({error}).") from error
        parts[part] = TorchvisionImages(name, loaded)
    return parts
