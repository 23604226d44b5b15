"""Opening the training and evaluation parts of the data set in `--data`."""

from __future__ import annotations

import inspect
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from xvolution.training.config import LARGEST_SEED
from xvolution.training.data.folders import parts_in, place_of_classes
from xvolution.training.data.parts import part_beginning
from xvolution.training.data.reading import Survey, listed, printable, require_max_pixels
from xvolution.training.data.sources import (
    ArrayImages,
    FolderImages,
    ImageSource,
    Joined,
    Subset,
    TableImages,
    TorchvisionImages,
)
from xvolution.training.errors import InputError
from xvolution.training.fold import Fold, parse_holdout
from xvolution.training.held_out import HeldOut

HELD_OUT = 0.2  # of a data set that comes in one part
DIGITS_SIZE = 32  # in pixels; their own 8 are too few for the strides of a network


@dataclass
class DataSplits:
    """The parts of one data set; training is evaluated on `val`.

    Attributes:
        name: the name with which it was opened.
        train: training images.
        val: evaluation images: the data set's own validation (or test) part, or one held out of `train`.
        test: the data set's test part if it has one beside `val`.
        survey: properties of the training images.
        judged_by: the source of ``val``, in words.
        held_out: ``val``, if a seed chose it.
    """

    name: str
    train: ImageSource
    val: ImageSource
    test: ImageSource | None
    survey: Survey
    judged_by: str = "its validation part"
    held_out: HeldOut | None = None

    @property
    def image_size(self) -> int:
        """A side length, in pixels, that suits the training images."""
        return DIGITS_SIZE if self.name == "digits" else self.survey.image_size

    def part(self, split: str) -> ImageSource:
        """Return the part called `split`: train, val or test.

        Raises:
            InputError: the data set has no such part.
        """
        source = {"train": self.train, "val": self.val, "test": self.test}.get(split)
        if source is None:
            raise InputError(
                f"{self.name} has no part called {split!r}; its parts are train, val"
                + (", test." if self.test else ".")
            )
        return source


def open_data(
    data: str | os.PathLike[str],
    holdout: float | str | None = None,
    seed: int = 0,
    max_pixels: int | None = None,
    outside_images: bool = False,
) -> DataSplits:
    """Open a data set. What is unusual about its images is said in a warning, once for each kind.

    Args:
        data: `digits`; a folder of class folders (in `train` and `val` or `test` folders, or not); a parquet file or a
            folder of them; a torchvision data set (`torchvision:CIFAR10` or `CIFAR10`, downloaded to `~/.cache/xvolution`
            or `$XVOLUTION_DATA`); any other name is a Hugging Face data set (`hf:uoft-cs/cifar10`).
        holdout: evaluate on this fraction of the training part instead of `val`, to tune settings without using `val`; or on a
            fold such as ``2/5``: the second of five parts of training and validation part together.
        seed: seed that chooses the held-out images.
        max_pixels: largest number of pixels in an image; Pillow's own limit if None.
        outside_images: also read images outside the folder that a parquet file names.

    Raises:
        InputError: there is no such data set, or it is not a classification data set.
    """
    require_max_pixels(max_pixels)
    kept = parse_holdout(holdout)
    name = os.fspath(data)
    if not name:
        raise InputError("the file does not say on which data the network was trained; give --data.")
    parts = _open_parts(name, outside_images)
    if "train" not in parts:
        raise InputError(f"{name} has no training part; found: {', '.join(parts) or 'nothing'}.")
    for part, source in parts.items():
        if len(source) == 0:
            raise InputError(f"the {part} part of {printable(name)} holds no images.")
        source.max_pixels = max_pixels
    if len(parts["train"].class_names) < 2:
        raise InputError(
            f"{printable(name)} has only one class, {listed(parts['train'].class_names)}; give data with at "
            "least two classes."
        )
    surveys = {part: source.survey() for part, source in parts.items()}
    for part, survey in surveys.items():
        for sentence in survey.sentences(f"the {part} part of {printable(name)}"):
            warnings.warn(sentence, stacklevel=2)
    train, val, test = parts["train"], parts.get("val"), parts.get("test")
    chosen: HeldOut | None = None
    judged_by = "a fixed fifth of every class" if name == "digits" else "its validation part"
    if isinstance(kept, Fold):
        train, val = folded(Joined([train] if val is None else [train, val]), kept, seed)
        chosen = HeldOut(str(kept), seed)
        judged_by = f"part {kept.number} of {kept.count} of all images but a test part's, because of --holdout {kept}"
    elif kept is not None:
        train, val = held_out(train, kept, seed)
        chosen = HeldOut(kept, seed)
        judged_by = f"{kept:.0%} of the training part, because of --holdout"
    elif val is None and test is not None:
        val, test = test, None
        judged_by = "its test part, because there is no validation part"
    elif val is None:
        train, val = held_out(train, HELD_OUT, seed)
        chosen = HeldOut(HELD_OUT, seed)
        judged_by = f"{HELD_OUT:.0%} of every class, held out with --split-seed {seed}, because there is only one part"
    assert val is not None
    return DataSplits(name, train, val, test, surveys["train"], judged_by, chosen)


def folded(source: ImageSource, fold: Fold, seed: int) -> tuple[ImageSource, Subset]:
    """The images of the other folds and those of this one, each in the source's order."""
    _require_seed(seed)
    judges = fold.judges(source.labels, seed)
    if judges.all() or not judges.any():
        raise InputError(f"{len(source)} images cannot be divided into {fold.count} parts; ask for fewer.")
    return source.subset(np.flatnonzero(~judges)), Subset(source, np.flatnonzero(judges))


def _require_seed(seed: int) -> None:
    if not 0 <= seed <= LARGEST_SEED:
        raise InputError(f"--seed is {seed}; it must be from 0 to {LARGEST_SEED}.")


def held_out(source: ImageSource, fraction: float, seed: int) -> tuple[ImageSource, ImageSource]:
    """Split off the same fraction of every class, and at least one of a class of two; both parts keep the source's order."""
    _require_seed(seed)
    generator = np.random.default_rng(seed)
    chosen = np.zeros(len(source), dtype=bool)
    for label in np.unique(source.labels):
        members = np.flatnonzero(source.labels == label)
        count = max(round(len(members) * fraction), min(1, len(members) - 1))
        chosen[generator.permutation(members)[:count]] = True
    if not chosen.any():
        raise InputError(
            f"none of the classes of these {len(source)} images has two images, so no validation part can be "
            "split off; give a validation part."
        )
    return source.subset(np.flatnonzero(~chosen)), source.subset(np.flatnonzero(chosen))


def _open_parts(name: str, outside_images: bool) -> dict[str, ImageSource]:
    if name == "digits":
        return _digits()
    path = Path(os.path.expanduser(name))
    if os.path.exists(path):
        try:
            return table_parts(path, outside_images) if holds_tables(path) else _folders(path)
        except OSError as error:
            raise InputError(
                f"{printable(error.filename or path)} cannot be read ({error.strerror or error})."
            ) from error
    prefix, _, rest = name.partition(":")
    if prefix == "torchvision" and rest:
        return _torchvision(rest)
    if prefix == "hf" and rest:
        return _hugging_face(rest)
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise InputError(f"there is no file or folder {printable(name)}.")
    if "/" not in name and _torchvision_class(name) is not None:
        return _torchvision(name)
    return _hugging_face(name)


def _digits() -> dict[str, ImageSource]:
    """scikit-learn's 1,797 handwritten digits, 8x8; a fixed fifth of every class is for evaluation."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.round(digits.images * (255 / 16)).astype(np.uint8)
    source = ArrayImages("digits", images, digits.target, [str(i) for i in range(10)])
    source.flips = False
    train, val = held_out(source, HELD_OUT, seed=0)
    return {"train": train, "val": val}


def _folders(path: Path) -> dict[str, ImageSource]:
    if not path.is_dir():
        raise InputError(f"{printable(path)} is neither a folder of class folders nor a parquet file.")
    place = place_of_classes(path)
    parts = parts_in(place)
    if not parts:
        return {"train": FolderImages(place)}
    train = FolderImages(place_of_classes(parts.pop("train")))
    names = train.class_names
    return {
        "train": train,
        **{part: FolderImages(place_of_classes(each, names), names) for part, each in parts.items()},
    }


def holds_tables(path: Path) -> bool:
    """Whether a path is a parquet file or a folder of them."""
    return path.suffix == ".parquet" or (path.is_dir() and any(each.is_file() for each in path.glob("*.parquet")))


def table_parts(path: Path, outside_images: bool = False) -> dict[str, ImageSource]:
    """Parquet files, grouped into parts by the beginning of their names."""
    from datasets import load_dataset

    files: dict[str, list[str]] = {}
    for file in sorted(path.glob("*.parquet")) if path.is_dir() else [path]:
        files.setdefault(part_beginning(file.name) or "train", []).append(str(file))
    folder = path if path.is_dir() else path.parent
    return _tables(printable(path), lambda: load_dataset("parquet", data_files=files), folder, outside_images)


def _hugging_face(name: str) -> dict[str, ImageSource]:
    from datasets import load_dataset

    return _tables(name, lambda: load_dataset(name))


def _tables(
    name: str, load: Callable[[], Any], folder: Path | None = None, outside_images: bool = False
) -> dict[str, ImageSource]:
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
    named: dict[str, tuple[str, Any]] = {}
    for split, table in tables.items():
        part = part_beginning(split)
        if part is not None and part not in named:
            named[part] = (f"{name} [{split}]", table)
    if "train" not in named:
        raise InputError(f"{name} has no training part; its parts are {listed(tables)}.")
    place = (folder, outside_images)
    train = TableImages(*named.pop("train"), None, *place)
    return {"train": train, **{part: TableImages(*each, train.class_names, *place) for part, each in named.items()}}


def _torchvision_class(name: str) -> Any | None:
    from torchvision import datasets

    return next((getattr(datasets, known) for known in datasets.__all__ if known.lower() == name.lower()), None)


#: What the argument ``train`` or ``split`` of a torchvision data set is for each part; the first that the data set knows.
_BY_TRAIN = {"train": (True,), "test": (False,)}
_BY_SPLIT = {"train": ("train", "trainval", "train-standard"), "val": ("val", "valid"), "test": ("test",)}


def _torchvision(name: str) -> dict[str, ImageSource]:
    """The parts of a torchvision data set, by its constructor's argument: ``train``, ``split`` or neither."""
    dataset = _torchvision_class(name)
    if dataset is None:
        raise InputError(f"torchvision has no data set called {name!r}.")
    takes = inspect.signature(dataset).parameters
    chooser = next((each for each in ("train", "split") if each in takes), None)
    needs = [
        each.name
        for each in takes.values()
        if each.default is each.empty
        and each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)
        and each.name not in ("root", "download", chooser)
    ]
    if needs:
        raise InputError(
            f"torchvision's {name} needs {listed(needs)}, which --data cannot pass; write its images into "
            "class folders."
        )
    root = os.path.expanduser(os.environ.get("XVOLUTION_DATA", os.path.join("~", ".cache", "xvolution")))
    download = {"download": True} if "download" in takes else {}
    if chooser is None:
        return {"train": TorchvisionImages(name, _downloaded(dataset, name, root, download))}
    parts: dict[str, ImageSource] = {}
    for part, values in (_BY_TRAIN if chooser == "train" else _BY_SPLIT).items():
        for value in values:
            try:
                loaded = _downloaded(dataset, name, root, {chooser: value, **download})
            except _NoSuchPart:
                continue
            parts[part] = TorchvisionImages(name, loaded)
            break
    if "train" not in parts:
        raise InputError(f"torchvision's {name} has no part called {' or '.join(map(str, _BY_SPLIT['train']))}.")
    return parts


class _NoSuchPart(ValueError):
    """A torchvision data set has no part of a name."""


def _downloaded(dataset: Any, name: str, root: str, arguments: dict[str, Any]) -> Any:
    try:
        return dataset(root=root, **arguments)
    except Exception as error:  # network, disk and archive errors of a download
        reason = " ".join(str(error).split())
        if isinstance(error, ValueError) and reason.startswith("Unknown value"):  # of torchvision's verify_str_arg
            raise _NoSuchPart(reason) from error
        raise InputError(f"torchvision's {name} cannot be downloaded to {root} ({reason}).") from error
