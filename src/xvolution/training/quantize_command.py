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
    """Quantize a classifier and print its accuracy before and after."""
    parser = Parser("quantize", "Write a classifier in 8-bit integers, and evaluate it before and after.")
    checkpoint = "a .ckpt or .safetensors file, or an fp32 .onnx file of xvolution deploy."
    parser.add_argument("checkpoint", type=str, metavar="CHECKPOINT", help=checkpoint)
    data = "data as in training: the training part calibrates, --split evaluates; by default the data that it was trained on."
    parser.add_flag("data", Flag("data", str | None, None, data))
    add_judging(parser)
    add_reading(parser)
    plain = "file of the plain network without X-volution, which is also quantized and evaluated; none by default."
    parser.add_flag("network", Flag("plain", str | None, None, plain))
    layout = "layout of the deployed operators: single, split or parts; auto takes the fastest in fp32 in the file's runtime."
    parser.add_flag("operator", Flag("layout", str, "auto", layout))
    parser.add_flag("recipe", Flag("images", int, 256, "number of training images for the calibration."))
    method = Flag("method", str, "minmax", "how the calibration computes the range of an activation.")
    parser.add_flag("recipe", method, choices=["minmax", "entropy", "percentile"])
    equalized = "rescale the parts of deployed operators so that one 8-bit scale covers their ranges."
    parser.add_flag("recipe", Flag("equalized", bool, False, equalized))
    parser.add_flag("machine", Flag("batch_size", int, 64, "number of images in a batch."))
    workers = "number of processes that load images; by default the number of cores minus one; 0 for digits."
    parser.add_flag("machine", Flag("workers", int | None, None, workers))
    output = Flag("output", str, None, "file to write; its ending chooses the format: .onnx or .xml.")
    parser.add_flag("output", output, required=True, type=str, metavar="FILE")
    parser.add_flag("output", Flag("json", str | None, None, "JSON file for the figures; by default none is written."))
    add_checksum(parser)
    values = parser.parse_args(list(arguments)).as_dict()
    report = values.pop("json")
    from xvolution.training.quantization import quantize

    progress = partial(print, file=sys.stderr, flush=True) if sys.stderr.isatty() else None
    result = quantize(values.pop("checkpoint"), values.pop("output"), progress=progress, **values)
    print(result)
    if report is not None:
        write_text(report, json.dumps(result.to_dict(), indent=2) + "\n")
