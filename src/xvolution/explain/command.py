"""The parser of `xvolution explain`."""

from __future__ import annotations

from collections.abc import Sequence

from xvolution.training.flags.flag import Flag
from xvolution.training.flags.parser import Parser


def explain_command(arguments: Sequence[str]) -> None:
    """Analyse a trained classifier and print where the page is."""
    parser = Parser(
        "explain",
        "Show what attention does in a trained classifier: the accuracy lost without it, where in the image it acts, and\n"
        "how far it reaches. Writes one HTML page.",
    )
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="a .ckpt or .safetensors file in training form.")
    data = "the images, as in training; by default the data that the network was trained on."
    parser.add_flag("data", Flag("data", str | None, None, data))
    parser.add_flag("data", Flag("split", str, "val", "part of the data to use."), choices=["train", "val", "test"])
    holdout = (
        "hold out as val, as in training: a fraction of the training part, or a fold such as 2/5; none by default."
    )
    parser.add_flag("data", Flag("holdout", float | str | None, None, holdout))
    parser.add_flag("data", Flag("seed", int, 0, "seed that chooses the held-out images."))
    parser.add_flag("data", Flag("images", int, 512, "number of images to use, evenly spread over the part."))
    pixels = "largest number of pixels in an image; larger images are an error. 178956970 by default."
    parser.add_flag("data", Flag("max_pixels", int | None, None, pixels), rare=True)
    outside = "also read images outside the data folder that tables name."
    parser.add_flag("data", Flag("outside_images", bool, False, outside), rare=True)
    operator = "name of the operator to draw; by default the last of those with the largest maps."
    parser.add_flag("operator", Flag("operator", str | None, None, operator))
    parser.add_flag("machine", Flag("batch_size", int, 64, "number of images in a batch."))
    device = "device that runs the network: cpu, cuda, cuda:1 or mps; auto uses a GPU if there is one."
    parser.add_flag("machine", Flag("device", str, "auto", device))
    parser.add_flag("output", Flag("output", str, "explain", "folder for the page and its figures."))
    parser.add_flag(
        "network", Flag("checksum", bool, True, "check the file against the checksum stored in it."), rare=True
    )
    values = parser.parse_args(list(arguments)).as_dict()
    from xvolution.explain.run import explain

    print(explain(values.pop("checkpoint"), **values))
