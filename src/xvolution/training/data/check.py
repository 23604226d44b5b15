"""`xvolution data check` of class folders and parquet files: every picture is decoded once."""

from __future__ import annotations

import hashlib
import os
import statistics
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from xvolution.training.data.catalog import holds_tables, table_parts
from xvolution.training.data.folders import images_in, parts_in, place_of_classes, visible_folders
from xvolution.training.data.problems import Problem, Severity, Watch, problem_lines, refused, watched
from xvolution.training.data.reading import BadImage, open_file, printable, read_picture, require_max_pixels
from xvolution.training.errors import InputError

#: Classes whose counts the printed report has one by one; the JSON has all.
_LISTED = 20


@dataclass(frozen=True)
class Picture:
    """One picture of a data set.

    Attributes:
        read: decodes it.
        describe: returns its name for messages, such as its path.
        label: its class.
    """

    read: Callable[[], Image.Image]
    describe: Callable[[], str]
    label: str


@dataclass
class ClassPart:
    """The contents of one part of a data set.

    Attributes:
        images: number of pictures.
        classes: number of pictures of each class, by name.
        sides: shorter sides of the readable pictures, in pixels: smallest, median and largest; empty if there are none.
        sizes: number of different sizes.
        problems: refused and noted problems.
    """

    images: int
    classes: dict[str, int]
    sides: tuple[int, ...] = ()
    sizes: int = 0
    problems: list[Problem] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**vars(self), "sides": list(self.sides), "problems": [each.to_dict() for each in self.problems]}

    def lines(self, name: str) -> list[str]:
        """The lines of a printed report."""
        sides = "no picture can be read"
        if self.sides:
            low, middle, high = self.sides
            sizes = "one size" if self.sizes == 1 else f"{self.sizes} sizes"
            sides = f"{sizes}, shorter sides of {low} to {high} pixels, median {middle}"
        first = f"{name}: {self.images} images in {len(self.classes)} classes; {sides}"
        return [first, f"  {_counts(self.classes)}", *problem_lines(self.problems)]


@dataclass
class ClassReport:
    """The contents of a classification data set.

    Attributes:
        folder: the checked folder.
        parts: the parts by name: train, val, test.
        problems: problems across several parts.
    """

    folder: Path
    parts: dict[str, ClassPart]
    problems: list[Problem] = field(default_factory=list)

    @property
    def refused(self) -> int:
        """Number of problems that stop training and evaluation."""
        return refused(self.problems) + sum(refused(part.problems) for part in self.parts.values())

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        parts = {name: part.to_dict() for name, part in self.parts.items()}
        problems = [each.to_dict() for each in self.problems]
        return {"folder": str(self.folder), "refused": self.refused, "parts": parts, "problems": problems}

    def __str__(self) -> str:
        lines = [line for name, part in self.parts.items() for line in part.lines(name)]
        if self.problems:
            lines += ["all parts:", *problem_lines(self.problems)]
        noted = len(self.problems) + sum(len(part.problems) for part in self.parts.values()) - self.refused
        verdict = "nothing is refused" if self.refused == 0 else f"{self.refused} problems to repair before training"
        return "\n".join([*lines, f"{printable(self.folder)}: {verdict}, {noted} noted"])


def check_classes(
    data: str | os.PathLike[str],
    max_pixels: int | None = None,
    outside_images: bool = False,
    watch: Watch | None = None,
) -> ClassReport:
    """Read every picture of class folders or parquet files, and report errors, unusual pictures and duplicates.

    Two pictures are duplicates if their decoded pixels are equal.

    Args:
        data: a folder of class folders, in folders of parts or not; a parquet file, or a folder of them.
        max_pixels: largest number of pixels in an image; Pillow's own limit if None.
        outside_images: also read images outside the folder that a parquet file names.
        watch: called with the progress.

    Raises:
        InputError: there is no such file or folder, or it is not a classification data set.
    """
    require_max_pixels(max_pixels)
    path = Path(os.path.expanduser(data))
    if not os.path.exists(path):
        raise InputError(f"there is no file or folder {printable(path)}.")
    tables = holds_tables(path)
    found = _tables(path, max_pixels, outside_images) if tables else _folders(path, max_pixels)
    report = ClassReport(path, {})
    seen: dict[bytes, list[tuple[str, Picture]]] = {}
    for name, (classes, pictures) in found.items():
        report.parts[name] = _checked(name, classes, pictures, seen, watch)
    report.problems += _class_problems({name: part.classes for name, part in report.parts.items()}, tables)
    for same in seen.values():
        _note_same(same, report)
    return report


#: Of a part: the names of its classes, and its pictures.
_Part = tuple[list[str], list[Picture]]


def _folders(path: Path, max_pixels: int | None) -> dict[str, _Part]:
    if not path.is_dir():
        raise InputError(f"{printable(path)} is neither a folder of class folders nor a parquet file.")
    place = place_of_classes(path)
    parts, known = parts_in(place) or {"train": place}, list[str]()
    found: dict[str, _Part] = {}
    for name in sorted(parts, key=lambda part: part != "train"):
        classes = visible_folders(place_of_classes(parts[name], known))
        pictures = [
            Picture(
                partial(read_picture, partial(open_file, file), describe, 3, max_pixels), describe, printable(each.name)
            )
            for each in classes
            for file in images_in(each)[0]
            for describe in (partial(printable, file),)
        ]
        found[name] = ([printable(each.name) for each in classes], pictures)
        known = [each.name for each in classes] if name == "train" else known
    return found


def _tables(path: Path, max_pixels: int | None, outside_images: bool) -> dict[str, _Part]:
    found = {}
    for name, source in table_parts(path, outside_images).items():
        source.max_pixels = max_pixels
        pictures = [
            Picture(partial(source.image, index), partial(source.describe, index), source.class_names[label])
            for index, label in enumerate(source.labels.tolist())
            if 0 <= label < len(source.class_names)
        ]
        found[name] = (source.class_names, pictures)
    return found


def _checked(
    name: str,
    classes: Sequence[str],
    pictures: Sequence[Picture],
    seen: dict[bytes, list[tuple[str, Picture]]],
    watch: Watch | None,
) -> ClassPart:
    """Read the pictures of a part, and group them by their pixels."""
    counts = Counter(picture.label for picture in pictures)
    part = ClassPart(len(pictures), {label: counts[label] for label in classes})
    sizes: Counter[tuple[int, int]] = Counter()
    for picture in watched(pictures, name, watch):
        try:
            image = picture.read()
        except BadImage as error:
            part.problems.append(Problem(Severity.REFUSED, "unreadable image", str(error)))
            continue
        sizes[image.size] += 1
        digest = hashlib.blake2b(f"{image.size}".encode() + image.tobytes(), digest_size=16).digest()
        seen.setdefault(digest, []).append((name, picture))
    sides = sorted(min(size) for size in sizes.elements())
    part.sides = (sides[0], statistics.median_low(sides), sides[-1]) if sides else ()
    part.sizes = len(sizes)
    return part


def _class_problems(classes: Mapping[str, Mapping[str, int]], declared: bool) -> Iterator[Problem]:
    """Problems with the classes of the parts, by part and name; classes of a table are declared and may be empty."""
    train = classes.get("train", {})
    if "train" not in classes:
        yield Problem(Severity.REFUSED, "no training part", f"there is no training part; found: {', '.join(classes)}.")
    elif len(train) < 2:
        yield Problem(Severity.REFUSED, "one class", "the training part has only one class; at least two are needed.")
    for name, counts in classes.items():
        for label, count in counts.items():
            if count == 0:
                severity = Severity.NOTED if declared else Severity.REFUSED
                yield Problem(severity, "empty class", f"the class {label} of the part {name} holds no images.")
            if train and label not in train:
                sentence = f"the class {label} of the part {name} is missing in the training part."
                yield Problem(Severity.REFUSED, "unknown class", sentence)


def _note_same(same: Sequence[tuple[str, Picture]], report: ClassReport) -> None:
    """Note equal pictures: in several classes, in several parts, or in one class of one part."""
    if len(same) == 1:
        return
    names = " and ".join(picture.describe() for _, picture in same[:3]) + (
        f" and {len(same) - 3} more" if len(same) > 3 else ""
    )
    parts = list(dict.fromkeys(part for part, _ in same))
    labels = list(dict.fromkeys(picture.label for _, picture in same))
    if len(labels) > 1:
        sentence = f"{names} have the same pixels but belong to the classes {', '.join(labels)}."
        report.problems.append(Problem(Severity.NOTED, "same picture in several classes", sentence))
    if len(parts) > 1:
        sentence = (
            f"{names} have the same pixels and are in the parts {', '.join(parts)}, so an evaluation on one "
            "part is not independent of the other."
        )
        report.problems.append(Problem(Severity.NOTED, "same picture in several parts", sentence))
    elif len(labels) == 1:
        problem = Problem(Severity.NOTED, "same picture twice", f"{names} have the same pixels.")
        report.parts[parts[0]].problems.append(problem)


def _counts(classes: Mapping[str, int]) -> str:
    """The numbers of pictures of the classes, in one line."""
    counts = sorted(classes.items(), key=lambda each: -each[1])
    if len(set(classes.values())) == 1:
        return f"{counts[0][1]} of each class"
    if len(counts) <= _LISTED:
        return ", ".join(f"{name} {count}" for name, count in counts)
    (most, highest), (least, lowest) = counts[0], counts[-1]
    middle = statistics.median_low(classes.values())
    return f"from {lowest} ({least}) to {highest} ({most}) of a class, median {middle}"
