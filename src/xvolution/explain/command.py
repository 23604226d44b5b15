"""The parser of `xvolution explain`."""

from __future__ import annotations

from collections.abc import Sequence

from xvolution.training.flags.flag import Flag
from xvolution.training.flags.parser import Parser
from xvolution.training.flags.shared import DEVICE, add_checksum, add_part, add_reading


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
    add_part(parser, "use")
    parser.add_flag("data", Flag("images", int, 512, "number of images to use, evenly spread over the part."))
    add_reading(parser)
    operator = "name of the operator to draw; by default the last of those with the largest maps."
    parser.add_flag("operator", Flag("operator", str | None, None, operator))
    parser.add_flag("machine", Flag("batch_size", int, 64, "number of images in a batch."))
    parser.add_flag("machine", DEVICE)
    parser.add_flag("output", Flag("output", str, "explain", "folder for the page and its figures."))
    add_checksum(parser)
    values = parser.parse_args(list(arguments)).as_dict()
    from xvolution.explain.run import explain

    print(explain(values.pop("checkpoint"), **values))
