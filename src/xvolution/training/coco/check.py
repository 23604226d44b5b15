"""`xvolution data check` for a folder in COCO's format."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from xvolution.training.coco.annotations import Annotations, read_annotations
from xvolution.training.coco.folder import annotation_file, image_root, missing_images, open_image_file
from xvolution.training.coco.masks import decode_mask
from xvolution.training.data.problems import Problem, Severity, Watch, problem_lines, refused, watched
from xvolution.training.data.reading import NOTES, BadImage, look_at, printable, read_picture, require_max_pixels
from xvolution.training.errors import InputError


@dataclass
class PartReport:
    """The contents of one annotation file, and its problems.

    Attributes:
        path: the file.
        images, images_without_objects, objects, crowds, masks: number of each.
        categories: number of objects of each category, by name.
        problems: refused and noted problems.
    """

    path: Path
    images: int
    images_without_objects: int
    objects: int
    crowds: int
    masks: int
    categories: dict[str, int]
    problems: list[Problem]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**vars(self), "path": str(self.path), "problems": [each.to_dict() for each in self.problems]}

    def __str__(self) -> str:
        unused = [name for name, count in self.categories.items() if count == 0]
        lines = [
            f"{self.path}: {self.images} images ({self.images_without_objects} without objects), {self.objects} objects in "
            f"{len(self.categories) - len(unused)} of {len(self.categories)} categories, {self.crowds} crowds, {self.masks} masks"
        ]
        return "\n".join([*lines, *problem_lines(self.problems)])


@dataclass
class DataReport:
    """The contents of a folder.

    Attributes:
        folder: the checked folder.
        parts: the parts by name: train, val, test.
        missing: reasons why parts could not be read.
    """

    folder: Path
    parts: dict[str, PartReport] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)

    @property
    def refused(self) -> int:
        """Number of problems that stop training and evaluation."""
        return len(self.missing) + sum(refused(part.problems) for part in self.parts.values())

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        parts = {name: part.to_dict() for name, part in self.parts.items()}
        return {"folder": str(self.folder), "refused": self.refused, "parts": parts, "missing": self.missing}

    def __str__(self) -> str:
        verdict = "nothing is refused" if self.refused == 0 else f"{self.refused} problems to repair before training"
        return "\n".join([*map(str, self.parts.values()), *self.missing, f"{self.folder}: {verdict}"])


def check_folder(
    folder: str | os.PathLike[str],
    masks: bool = False,
    max_pixels: int | None = None,
    outside_images: bool = False,
    watch: Watch | None = None,
) -> DataReport:
    """Check annotations, images and masks of every part of a folder in COCO's format.

    Args:
        folder: see ``open_part``.
        masks: every object needs a mask; otherwise invalid masks are noted.
        max_pixels: largest number of pixels in an image; Pillow's own limit if None.
        outside_images: allow images that the annotations name outside of the folder.
        watch: called with the progress.

    Raises:
        InputError: there is no such folder, or it has no annotations at all.
    """
    require_max_pixels(max_pixels)
    folder = Path(os.path.expanduser(folder))
    if not os.path.isdir(folder):
        raise InputError(f"there is no folder {printable(folder)}.")
    report = DataReport(folder)
    for part in ("train", "val", "test"):
        try:
            path = annotation_file(folder, part)
        except InputError as error:
            if part != "test":
                report.missing.append(str(error))
            continue
        try:
            annotations = read_annotations(path, masks, max_pixels, outside_images)
        except InputError as error:
            report.missing.append(str(error))
            continue
        root = image_root(folder, path, part, annotations)
        annotations.problems += [
            *_image_problems(annotations, root, max_pixels, part, watch),
            *_mask_problems(annotations, masks),
        ]
        report.parts[part] = _summary(annotations)
    names = {part: report.parts[part].categories.keys() for part in ("train", "val") if part in report.parts}
    if len(names) == 2 and names["train"] != names["val"]:
        report.missing.append(f"the parts train and val of {folder} have different categories; they must be the same.")
    return report


def _image_problems(
    annotations: Annotations, root: Path, max_pixels: int | None, part: str, watch: Watch | None
) -> list[Problem]:
    missing = missing_images(annotations, root)
    problems = [
        Problem(
            Severity.REFUSED,
            "missing image",
            f"image {image['id']} of {annotations.path} is not on the disk: {printable(root / image['file_name'])}.",
        )
        for image in missing
    ]
    absent = {image["id"] for image in missing}
    for image in watched(list(annotations.images.values()), part, watch):
        if image["id"] in absent:
            continue
        where = f"image {image['id']} of {annotations.path}, {printable(root / image['file_name'])},"
        file = partial(open_image_file, root, image), partial(str, where)
        try:
            size, notes = read_picture(*file, max_pixels=max_pixels).size, look_at(*file, max_pixels).notes
        except BadImage as error:
            problems.append(Problem(Severity.REFUSED, "unreadable image", str(error)))
            continue
        problems += [
            Problem(Severity.NOTED, note, f"{where} is one of the images that {NOTES[note]}.") for note in notes
        ]
        if size != (image["width"], image["height"]):
            turned = ", once turned by its EXIF orientation" if "EXIF orientation" in notes else ""
            sentence = (
                f"{where} has {size[0]} x {size[1]} pixels{turned}, but the annotations say {image['width']} "
                f"x {image['height']}."
            )
            problems.append(Problem(Severity.REFUSED, "image of another size", sentence))
    return problems


def _mask_problems(annotations: Annotations, masks: bool) -> list[Problem]:
    problems = []
    severity = Severity.REFUSED if masks else Severity.NOTED
    for key, objects in annotations.objects.items():
        for annotation in objects:
            if "segmentation" not in annotation:
                continue
            try:
                decode_mask(annotation, annotations.images[key], annotations.path)
            except InputError as error:
                problems.append(Problem(severity, "mask", str(error)))
    return problems


def _summary(annotations: Annotations) -> PartReport:
    objects = [annotation for each in annotations.objects.values() for annotation in each]
    counts = Counter(annotation["category_id"] for annotation in objects)
    return PartReport(
        path=annotations.path,
        images=len(annotations.images),
        images_without_objects=sum(not each for each in annotations.objects.values()),
        objects=len(objects),
        crowds=sum(annotation["iscrowd"] for annotation in objects),
        masks=sum("segmentation" in annotation for annotation in objects),
        categories={name: counts[key] for key, name in annotations.categories.items()},
        problems=annotations.problems,
    )
