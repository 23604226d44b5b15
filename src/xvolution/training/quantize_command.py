"""The parser of `xvolution quantize`."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from functools import partial

from jsonargparse import ActionYesNo, ArgumentParser

from xvolution.training.files import write_text


def quantize_command(arguments: Sequence[str]) -> None:
    """Quantize a classifier and say what it costs."""
    parser = ArgumentParser(
        prog="xvolution quantize",
        description="Write a classifier in 8-bit integers, and judge it before and after.",
    )
    parser.add_argument(
        "checkpoint", type=str, help="a .ckpt or .safetensors file, or an fp32 .onnx file of xvolution deploy."
    )
    parser.add_argument("--output", type=str, required=True, help="file, written by its ending: .onnx or .xml.")
    parser.add_argument(
        "--data",
        type=str | None,
        help="as in training: images of its training part calibrate, others judge; by default the data it was trained on.",
    )
    parser.add_argument("--plain", type=str | None, help="file of the plain twin, judged before and after as well.")
    parser.add_argument("--images", type=int, default=256, help="training images that set the ranges of activations.")
    text = "how a range is taken from what was seen."
    parser.add_argument("--method", choices=["minmax", "entropy", "percentile"], default="minmax", help=text)
    parser.add_argument(
        "--equalized",
        action=ActionYesNo(no_prefix="no-"),
        default=False,
        help="give the parts of deployed operators ranges that one 8-bit scale can hold.",
    )
    parser.add_argument(
        "--layout",
        type=str,
        default="auto",
        help="auto (the fastest in fp32 in the file's runtime), single, split or parts.",
    )
    parser.add_argument(
        "--split", choices=["train", "val", "test"], default="val", help="which part of the data judges."
    )
    parser.add_argument(
        "--holdout", type=float | None, help="judge by this fraction of the training part, as in training."
    )
    parser.add_argument("--seed", type=int, default=0, help="of the held-out part.")
    parser.add_argument("--batch-size", type=int, default=64, help="images in a batch.")
    parser.add_argument("--workers", type=int | None, help="processes that load images.")
    parser.add_argument("--limit-batches", type=int | None, help="judge by at most so many batches.")
    parser.add_argument("--max-pixels", type=int | None, help="the most that an image may have; 178956970 by default.")
    text = "read images that tables name outside of the data's folder too."
    parser.add_argument("--outside-images", action=ActionYesNo(no_prefix="no-"), default=False, help=text)
    text = "compare files with the checksums in them."
    parser.add_argument("--checksum", action=ActionYesNo(no_prefix="no-"), default=True, help=text)
    parser.add_argument("--json", type=str | None, help="file for the figures.")
    values = parser.parse_args(list(arguments)).as_dict()
    report = values.pop("json")
    from xvolution.training.quantization import quantize

    progress = partial(print, file=sys.stderr, flush=True) if sys.stderr.isatty() else None
    result = quantize(values.pop("checkpoint"), values.pop("output"), progress=progress, **values)
    print(result)
    if report is not None:
        write_text(report, json.dumps(result.to_dict(), indent=2) + "\n")
