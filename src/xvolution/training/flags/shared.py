"""Flags that several commands have, with one sentence each."""

from __future__ import annotations

from xvolution.training.flags.flag import Flag
from xvolution.training.flags.parser import Parser

DEVICE = Flag(
    "device", str, "auto", "device that runs the network: cpu, cuda, cuda:1 or mps; auto uses a GPU if there is one."
)
_MAX_PIXELS = "largest number of pixels in an image; larger images are an error. 178956970 by default."
_OUTSIDE_IMAGES = "also read images outside the data folder that annotations or tables name."


def add_reading(parser: Parser, outside_images: bool = True) -> None:
    """Add the flags that limit which images are read."""
    parser.add_flag("data", Flag("max_pixels", int | None, None, _MAX_PIXELS), rare=True)
    if outside_images:
        parser.add_flag("data", Flag("outside_images", bool, False, _OUTSIDE_IMAGES), rare=True)


def add_part(parser: Parser, use: str) -> None:
    """Add the flags that choose a part of a data set, and say what it is used for."""
    split = Flag("split", str, "val", f"part of the data to {use}.")
    parser.add_flag("data", split, choices=["train", "val", "test"])
    holdout = (
        "hold out as val, as in training: a fraction of the training part, or a fold such as 2/5; none by default."
    )
    parser.add_flag("data", Flag("holdout", float | str | None, None, holdout))
    seed = "seed that chooses the held-out images; by default that of the network's training if it held out images of these data."
    parser.add_flag("data", Flag("seed", int | None, None, seed))


def add_judging(parser: Parser) -> None:
    """Add the flags that choose the images of an evaluation."""
    add_part(parser, "evaluate on")
    batches = "largest number of batches to evaluate on; all by default."
    parser.add_flag("data", Flag("limit_batches", int | None, None, batches))


def add_checksum(parser: Parser) -> None:
    """Add the flag that checks a file against its checksum."""
    text = "check the file against the checksum stored in it."
    parser.add_flag("network", Flag("checksum", bool, True, text), rare=True)
