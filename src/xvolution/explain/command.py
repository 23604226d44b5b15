"""The parser of `xvolution explain`."""

from __future__ import annotations

from collections.abc import Sequence

from xvolution.training.flags.flag import Flag
from xvolution.training.flags.parser import Parser


def explain_command(arguments: Sequence[str]) -> None:
    """Look into a trained classifier and say where the page is."""
    parser = Parser(
        "explain",
        "What the attention in a trained classifier does: what is lost without it, where it says what, how far it sees.\n"
        "Writes a page.",
    )
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="a .ckpt or .safetensors file in training form.")
    data = "the images, as in training; by default the data it was trained on."
    parser.add_flag("data", Flag("data", str | None, None, data))
    parser.add_flag(
        "data", Flag("split", str, "val", "which part of the data is taken."), choices=["train", "val", "test"]
    )
    holdout = "what val is, as in training: a fraction of the training part, or a fold such as 2/5; by default the data's own."
    parser.add_flag("data", Flag("holdout", float | str | None, None, holdout))
    parser.add_flag("data", Flag("seed", int, 0, "the seed that chooses the held-out part."))
    parser.add_flag("data", Flag("images", int, 512, "how many images are taken, evenly spread over the part."))
    pixels = "the most pixels that an image may have; 178956970 by default."
    parser.add_flag("data", Flag("max_pixels", int | None, None, pixels), rare=True)
    outside = "read images that tables name outside of the data's folder too."
    parser.add_flag("data", Flag("outside_images", bool, False, outside), rare=True)
    operator = "the operator that is drawn; by default the last of those with the largest maps."
    parser.add_flag("operator", Flag("operator", str | None, None, operator))
    parser.add_flag("machine", Flag("batch_size", int, 64, "images in a batch."))
    device = "where the network runs: cpu, cuda, cuda:1, mps, or auto for a GPU where there is one."
    parser.add_flag("machine", Flag("device", str, "auto", device))
    parser.add_flag("output", Flag("output", str, "explain", "a folder for the page and its figures."))
    parser.add_flag(
        "network", Flag("checksum", bool, True, "compare the checkpoint with the checksum in it."), rare=True
    )
    values = parser.parse_args(list(arguments)).as_dict()
    from xvolution.explain.run import explain

    print(explain(values.pop("checkpoint"), **values))
