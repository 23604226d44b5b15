"""Flags that several commands have, with one sentence each."""

from __future__ import annotations

from xvolution.training.flags.flag import Flag
from xvolution.training.flags.parser import Parser

DEVICE = Flag(
    "device", str, "auto", "where the network runs: cpu, cuda, cuda:1, mps, or auto for a GPU where there is one."
)
_MAX_PIXELS = "the most pixels that an image may have; 178956970 by default, against files that fill the memory."
_OUTSIDE_IMAGES = "read images that annotations or tables name outside of the data's folder too."


def add_reading(parser: Parser, outside_images: bool = True) -> None:
    """Add what bounds the reading of images."""
    parser.add_flag("data", Flag("max_pixels", int | None, None, _MAX_PIXELS), rare=True)
    if outside_images:
        parser.add_flag("data", Flag("outside_images", bool, False, _OUTSIDE_IMAGES), rare=True)


def add_judging(parser: Parser) -> None:
    """Add which part of the data judges."""
    split = Flag("split", str, "val", "which part of the data the network is judged by.")
    parser.add_flag("data", split, choices=["train", "val", "test"])
    holdout = "judge as in training: by a fraction of the training part, or a fold such as 2/5; by default by --split."
    parser.add_flag("data", Flag("holdout", float | str | None, None, holdout))
    parser.add_flag("data", Flag("seed", int, 0, "the seed that chooses the held-out part."))
    parser.add_flag(
        "data", Flag("limit_batches", int | None, None, "judge by at most so many batches; all by default.")
    )


def add_checksum(parser: Parser) -> None:
    """Add whether a file is compared with the checksum in it."""
    text = "compare the checkpoint with the checksum in it."
    parser.add_flag("network", Flag("checksum", bool, True, text), rare=True)
