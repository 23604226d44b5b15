"""Opens detection data: folders in COCO's format, and tables with boxes."""

from __future__ import annotations

import os
import warnings
from functools import partial
from pathlib import Path

import numpy as np

from xvolution.training.coco.annotations import read_annotations
from xvolution.training.coco.folder import annotation_file, image_root, open_image_file, require_images
from xvolution.training.coco.source import DetectionSource, DetectionSplits
from xvolution.training.coco.tables import open_table
from xvolution.training.data.reading import printable, require_max_pixels, survey
from xvolution.training.errors import InputError
from xvolution.training.fold import Fold, parse_holdout
from xvolution.training.held_out import HeldOut


def open_detection(
    data: str | os.PathLike[str],
    masks: bool = False,
    holdout: float | str | None = None,
    seed: int = 0,
    on_bad_image: str = "error",
    max_pixels: int | None = None,
    outside_images: bool = False,
) -> DetectionSplits:
    """Open the training and the validation part of a data set; categories and images are checked first.

    Args:
        data: a folder in COCO's format (see ``open_part``), a folder of parquet files with the columns ``image`` and
            ``objects``, or the name of such a data set on the Hugging Face hub.
        masks: targets have masks, and every object needs one.
        holdout: evaluate on this fraction of the training part instead of the validation part.
        seed: seed that chooses the held-out images.
        on_bad_image: "error" refuses missing images at once, "skip" leaves them to the reader.
        max_pixels: largest number of pixels in an image; Pillow's own limit if None.
        outside_images: also read images outside the folder that the annotations name.

    Raises:
        InputError: something is missing or refused; the message names the file and the id.
    """
    train = open_part(data, "train", masks, on_bad_image, max_pixels, outside_images)
    kept = parse_holdout(holdout)
    if isinstance(kept, Fold):
        raise InputError(f"--holdout is {kept}; folds are for classifiers, so give a fraction such as 0.1.")
    if kept is not None:
        order = np.random.default_rng(seed).permutation(len(train))
        count = max(1, round(kept * len(train)))
        parts = (train.subset(np.sort(order[count:])), train.subset(np.sort(order[:count])))
        judged_by = f"{kept:.0%} of the training part, because of --holdout"
        return DetectionSplits(str(data), *parts, judged_by, HeldOut(kept, seed))
    val = open_part(data, "val", masks, on_bad_image, max_pixels, outside_images)
    if val.annotations.categories != train.annotations.categories:
        raise InputError(
            f"{train.annotations.path} and {val.annotations.path} have different categories; they must be the same."
        )
    return DetectionSplits(str(data), train, val)


def open_part(
    data: str | os.PathLike[str],
    part: str,
    masks: bool = False,
    on_bad_image: str = "error",
    max_pixels: int | None = None,
    outside_images: bool = False,
) -> DetectionSource:
    """Open one part of a data set. What is unusual about its images is said in a warning, once for each kind.

    A folder in COCO's format has ``annotations/instances_train2017.json`` (any ending for ``2017``), with its images in
    ``train2017``, ``train``, ``images`` or ``images/train2017``, or ``train/_annotations.coco.json`` with its images beside it.

    Args:
        data: see ``open_detection``.
        part: train, val or test.
        masks: targets have masks, and every object needs one.
        on_bad_image: "error" refuses missing images at once, "skip" leaves them to the reader.
        max_pixels: largest number of pixels in an image; Pillow's own limit if None.
        outside_images: also read images outside the folder that the annotations name.

    Raises:
        InputError: something is missing or refused; the message names the file and the id.
    """
    require_max_pixels(max_pixels)
    folder = Path(os.path.expanduser(data))
    if not os.path.isdir(folder) or any(folder.glob("*.parquet")):
        source = open_table(data, part, masks, max_pixels, outside_images)
    else:
        path = annotation_file(folder, part)
        annotations = read_annotations(path, masks, max_pixels, outside_images).require_valid()
        if not annotations.images:
            raise InputError(f"{path} has no images.")
        root = image_root(folder, path, part, annotations)
        if on_bad_image == "error":
            require_images(annotations, root)
        source = DetectionSource(annotations, partial(open_image_file, root), masks, max_pixels)
    for sentence in survey(len(source), source.look).sentences(f"the {part} part of {printable(data)}"):
        warnings.warn(sentence, stacklevel=2)
    return source
