"""The parser of `xvolution quantize`."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from functools import partial

from xvolution.training.files import write_text
from xvolution.training.flags.flag import Flag
from xvolution.training.flags.parser import Parser
from xvolution.training.flags.shared import add_checksum, add_judging, add_reading


def quantize_command(arguments: Sequence[str]) -> None:
    """Quantize a classifier and say what it costs."""
    parser = Parser("quantize", "Write a classifier in 8-bit integers, and judge it before and after.")
    checkpoint = "a .ckpt or .safetensors file, or an fp32 .onnx file of xvolution deploy."
    parser.add_argument("checkpoint", type=str, metavar="CHECKPOINT", help=checkpoint)
    data = "images, as in training: those of its training part calibrate, others judge; by default the data it was trained on."
    parser.add_flag("data", Flag("data", str | None, None, data))
    add_judging(parser)
    add_reading(parser)
    plain = "a file of the plain twin, judged before and after as well; none by default."
    parser.add_flag("network", Flag("plain", str | None, None, plain))
    layout = "layout of the operators: auto (the fastest in fp32 in the file's runtime), single, split or parts."
    parser.add_flag("operator", Flag("layout", str, "auto", layout))
    parser.add_flag("recipe", Flag("images", int, 256, "training images that set the ranges of activations."))
    method = Flag("method", str, "minmax", "how a range is taken from what was seen.")
    parser.add_flag("recipe", method, choices=["minmax", "entropy", "percentile"])
    equalized = "give the parts of deployed operators ranges that one 8-bit scale can hold."
    parser.add_flag("recipe", Flag("equalized", bool, False, equalized))
    parser.add_flag("machine", Flag("batch_size", int, 64, "images in a batch."))
    workers = "processes that load images; by default one for each core but one, and none for digits."
    parser.add_flag("machine", Flag("workers", int | None, None, workers))
    output = Flag("output", str, None, "the file, written by its ending: .onnx or .xml.")
    parser.add_flag("output", output, required=True, type=str, metavar="FILE")
    parser.add_flag("output", Flag("json", str | None, None, "a file for the figures; none is written by default."))
    add_checksum(parser)
    values = parser.parse_args(list(arguments)).as_dict()
    report = values.pop("json")
    from xvolution.training.quantization import quantize

    progress = partial(print, file=sys.stderr, flush=True) if sys.stderr.isatty() else None
    result = quantize(values.pop("checkpoint"), values.pop("output"), progress=progress, **values)
    print(result)
    if report is not None:
        write_text(report, json.dumps(result.to_dict(), indent=2) + "\n")
