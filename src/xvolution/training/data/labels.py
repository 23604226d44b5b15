"""Matching a data set's labels with a network's classes."""

from __future__ import annotations

from collections.abc import Sequence

from xvolution.training.data.sources import ImageSource
from xvolution.training.errors import InputError


def require_labels(source: ImageSource, num_classes: int, name: str) -> None:
    """Check every label before the first batch.

    Raises:
        InputError: a label is outside of the network's classes; the message names the first such image.
    """
    wrong = (source.labels < 0) | (source.labels >= num_classes)
    if wrong.any():
        index = int(wrong.argmax())
        raise InputError(
            f"{name} has labels outside of the network's {num_classes} classes: {source.describe(index)} has "
            f"class {int(source.labels[index])}, but only 0 to {num_classes - 1} are allowed "
            f"({int(wrong.sum())} such images)."
        )


def align_labels(source: ImageSource, class_names: Sequence[str]) -> ImageSource:
    """Number the labels as the network does, by class name, where every class of the data is one of the network's.

    A folder with only some of the classes is thus evaluated correctly. If names differ, the numbers stay the same.
    """
    position = {name: label for label, name in enumerate(class_names)}
    if source.class_names == list(class_names) or not set(source.class_names) <= position.keys():
        return source
    aligned = source.subset(range(len(source)))
    known = (source.labels >= 0) & (source.labels < len(source.class_names))
    aligned.labels[known] = [position[source.class_names[label]] for label in source.labels[known]]
    aligned.class_names = list(class_names)
    return aligned
