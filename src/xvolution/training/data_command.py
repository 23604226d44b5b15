"""The parser of `xvolution data`."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from xvolution.training.errors import InputError
from xvolution.training.files import write_text
from xvolution.training.flags.flag import Flag
from xvolution.training.flags.parser import Parser
from xvolution.training.flags.shared import add_reading

if TYPE_CHECKING:
    from xvolution.training.coco.check import DataReport
    from xvolution.training.data.check import ClassReport


def data_command(arguments: Sequence[str]) -> None:
    """Check a data set; `check` is the only action."""
    parser = Parser(
        "data",
        "Read every picture of a data set and report errors, unusual pictures and duplicates.\n"
        "The exit code is 2 if something must be repaired before training.",
    )
    parser.add_argument("action", choices=["check"], help="the action: check reads all pictures.")
    folder = (
        "class folders, parquet files, or a folder in COCO's format: with annotations/instances_train*.json, or "
        "train/_annotations.coco.json."
    )
    parser.add_argument("folder", type=str, metavar="FOLDER", help=folder)
    parser.add_flag("data", Flag("masks", bool, False, "require a mask for every object of a folder in COCO's format."))
    add_reading(parser)
    report = "JSON file for the whole report; by default none is written."
    parser.add_flag("output", Flag("json", str | None, None, report))
    values = parser.parse_args(list(arguments)).as_dict()
    found = _checked(values["folder"], values["masks"], values["max_pixels"], values["outside_images"])
    print(found)
    if values["json"] is not None:
        write_text(values["json"], json.dumps(found.to_dict(), indent=2) + "\n")
    if found.refused:
        raise InputError(f"{values['folder']} has {found.refused} problems that must be repaired before training.")


def _checked(folder: str, masks: bool, max_pixels: int | None, outside_images: bool) -> DataReport | ClassReport:
    """Check a folder as COCO's format if it has annotations or masks are required, else as class folders."""
    watch = progress_line if sys.stderr.isatty() else None
    if masks or _has_annotations(Path(folder).expanduser()):
        from xvolution.training.coco.check import check_folder

        return check_folder(folder, masks, max_pixels, outside_images, watch)
    from xvolution.training.data.check import check_classes

    return check_classes(folder, max_pixels, outside_images, watch)


#: Names that only a folder in COCO's format has.
_ANNOTATIONS = ("annotations", "*/_annotations.coco.json", "instances_*.json", "train.json", "val.json", "test.json")


def _has_annotations(folder: Path) -> bool:
    """Whether there is anything that may be an annotation file in COCO's format."""
    return folder.is_dir() and any(next(folder.glob(pattern), None) is not None for pattern in _ANNOTATIONS)


def progress_line(part: str, done: int, total: int) -> None:
    """Show the progress on the terminal in one line, which is erased at the end."""
    if done == total:
        print("\r\033[K", end="", file=sys.stderr, flush=True)
    elif done % 50 == 0:
        print(f"\r{part}: {done:,} of {total:,} pictures", end="", file=sys.stderr, flush=True)
