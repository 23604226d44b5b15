"""The parser of `xvolution explain`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence


def explain_command(arguments: Sequence[str]) -> None:
    """Look into a trained classifier and say where the page is."""
    parser = argparse.ArgumentParser(
        prog="xvolution explain",
        description="What the attention in a trained classifier does: what is lost without it, where it says what, how far it "
        "sees. Writes a page.",
    )
    parser.add_argument("checkpoint", help="a .ckpt or .safetensors file in training form")
    parser.add_argument("--data", help="as in training; by default the data it was trained on")
    parser.add_argument(
        "--split", choices=["train", "val", "test"], default="val", help="which part of the data (default: val)"
    )
    parser.add_argument("--holdout", type=float, help="take this fraction of the training part for val, as in training")
    parser.add_argument("--seed", type=int, default=0, help="of the held-out part (default: 0)")
    parser.add_argument("--images", type=int, default=512, help="how many, evenly spread over the part (default: 512)")
    parser.add_argument("--operator", help="draw this one; by default the last of those with the largest maps")
    parser.add_argument("--batch-size", type=int, default=64, help="images in a batch (default: 64)")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, mps or auto (default: auto)")
    parser.add_argument("--max-pixels", type=int, help="the most that an image may have (default: 178956970)")
    parser.add_argument(
        "--outside-images", action="store_true", help="read images that tables name outside of the data's folder too"
    )
    parser.add_argument("--output", default="explain", help="folder for the page and its figures (default: explain)")
    parser.add_argument(
        "--checksum",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="compare the checkpoint with the checksum in it (default: yes)",
    )
    values = vars(parser.parse_args(list(arguments)))
    from xvolution.explain.run import explain

    print(explain(values.pop("checkpoint"), **values))
