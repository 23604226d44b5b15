"""The names that folders, files and tables use for the parts of a data set."""

from __future__ import annotations

import re

PARTS = {
    "train": ("train", "training"),
    "val": ("val", "validation", "valid", "dev"),
    "test": ("test", "testing"),
}


def part_of(name: str) -> str | None:
    """The part, train, val or test, that a folder is named for; None for any other name."""
    return next((part for part, names in PARTS.items() if name.lower() in names), None)


def part_beginning(name: str) -> str | None:
    """The part whose name a file or a table begins with; ``train-00000.parquet`` begins with one, ``trains`` does not."""
    return part_of(re.split(r"[^A-Za-z]", name, maxsplit=1)[0])
