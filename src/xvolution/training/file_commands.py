"""The parsers of `xvolution evaluate` and `deploy`."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from xvolution.training.errors import InputError
from xvolution.training.files import write_text
from xvolution.training.flags.flag import Flag
from xvolution.training.flags.parser import Parser
from xvolution.training.flags.shared import DEVICE, add_checksum, add_judging, add_reading
from xvolution.training.flags.task import add_task_options
from xvolution.training.tasks import TASKS, Task

_ANY_FORM = "a .ckpt, .safetensors (training or deployed form), .onnx, .xml, .pt2, .tflite or .mlpackage file."


def evaluate_command(arguments: Sequence[str]) -> None:
    """Evaluate a checkpoint, print the figures, and write them with --json."""
    parser = Parser(
        "evaluate",
        "Measure top-1, top-5 and loss of a classifier, or COCO's average precision of a detector, and the speed.",
    )
    parser.add_argument("checkpoint", type=str, metavar="CHECKPOINT", help=_ANY_FORM)
    data = "data to evaluate on, as in training; by default the data that the network was trained on."
    parser.add_flag("data", Flag("data", str | None, None, data))
    add_judging(parser)
    bad = Flag("on_bad_image", str, "error", "what to do with an unreadable image: error stops, skip leaves it out.")
    parser.add_flag("data", bad, choices=["error", "skip"])
    add_reading(parser)
    parser.add_flag("machine", DEVICE)
    batches = _by_task(lambda task: str(task.evaluation_batch))
    parser.add_flag(
        "machine", Flag("batch_size", int | None, None, f"number of images in a batch; by default {batches}.")
    )
    workers = (
        "number of processes that load images; by default the number of cores minus one; 0 for digits and detectors."
    )
    parser.add_flag("machine", Flag("workers", int | None, None, workers))
    parser.add_flag("output", Flag("json", str | None, None, "JSON file for the figures; by default none is written."))
    add_checksum(parser)
    add_task_options(parser, "evaluate")
    values = parser.parse_args(list(arguments)).as_dict()
    report, checkpoint = values.pop("json"), values.pop("checkpoint")
    from xvolution.training.api import evaluate

    result = evaluate(checkpoint, **values)
    print(result)
    if report is not None:
        write_text(report, json.dumps(result.to_dict(), indent=2) + "\n")


def deploy_command(arguments: Sequence[str]) -> None:
    """Re-parameterize a checkpoint and write its deployed form."""
    parser = Parser("deploy", "Re-parameterize a checkpoint: merge its branches, and write files for deployment.")
    parser.add_argument(
        "checkpoint", type=str, metavar="CHECKPOINT", help="a .ckpt or .safetensors file in training form."
    )
    endings = _by_task(lambda task: " ".join(task.endings))
    files = (
        f"files to write; the ending chooses the format: {endings}. With --to, one path without an ending, "
        "by default the checkpoint's."
    )
    parser.add_flag("output", Flag("output", str | None, None, files), nargs="+", type=str, metavar="FILE ...")
    to = "write, run and time a file for each of these runtimes, and print one table; all for every runtime; none by default."
    parser.add_flag("output", Flag("to", str | None, None, to), nargs="+", type=str, metavar="RUNTIME ...")
    data = "images on which --to compares predictions, as in training; none by default."
    parser.add_flag("data", Flag("data", str | None, None, data))
    parser.add_flag(
        "data", Flag("images", int, 256, "number of images that --to takes from the validation part of --data.")
    )
    ranges = "number of images of the training part that set the ranges of activations for --int8."
    parser.add_flag("data", Flag("calibration_images", int, 256, ranges))
    int8 = "also write a file in 8-bit integers for each runtime of --to that takes such files; needs --data."
    parser.add_flag("output", Flag("int8", bool, False, int8))
    parser.add_flag("measurement", Flag("rounds", int, 30, "number of times that --to measures each latency."))
    parser.add_flag("output", Flag("json", str | None, None, "JSON file for the table of --to; none by default."))
    layout = (
        "layout of the deployed operators: single, split or parts; auto times each and takes the fastest in the file's "
        "runtime."
    )
    parser.add_flag("operator", Flag("layout", str, "auto", layout))
    norms = "also fold the other norms of the network into their convolutions."
    parser.add_flag("network", Flag("fold_norms", bool, False, norms))
    threads = "number of CPU threads while layouts are timed; by default as many as torch uses."
    parser.add_flag("machine", Flag("threads", int | None, None, threads))
    add_checksum(parser)
    add_task_options(parser, "deploy")
    values = parser.parse_args(list(arguments)).as_dict()
    values["progress"] = partial(print, file=sys.stderr, flush=True) if sys.stderr.isatty() else None
    checkpoint, output, runtimes, report = (values.pop(name) for name in ("checkpoint", "output", "to", "json"))
    if runtimes is not None:
        _deploy_to(checkpoint, runtimes, output or [None], report, values)
        return
    if output is None:
        raise InputError(
            "nothing says what to write; give --output with files, or --to with runtimes, such as --to all."
        )
    of_table = {"data": values.pop("data"), "json": report, "int8": values.pop("int8") or None}
    del values["images"], values["calibration_images"], values["rounds"]
    if any(value is not None for value in of_table.values()):
        given = " and ".join(f"--{name}" for name, value in of_table.items() if value is not None)
        raise InputError(f"without --to there is no table for {given}; add --to all, or leave {given} out.")
    from xvolution.training.api import deploy

    print(deploy(checkpoint, output, **values))


def _deploy_to(
    checkpoint: str, runtimes: Sequence[str], output: Sequence[str | None], report: str | None, values: dict[str, Any]
) -> None:
    """Write the files of several runtimes, and print their table."""
    if len(output) > 1:
        raise InputError(f"--output has {len(output)} paths; with --to, give one path without an ending.")
    from xvolution.training.shipping import deploy_to

    table = deploy_to(checkpoint, runtimes, output[0], **values)
    print(table)
    if report is not None:
        write_text(report, json.dumps(table.to_dict(), indent=2) + "\n")


def _by_task(value: Callable[[Task[Any, Any]], str]) -> str:
    """A value of each task in words, such as "64 (classify), 1 (detect, segment)"."""
    names: dict[str, list[str]] = {}
    for task in TASKS.values():
        names.setdefault(value(task), []).append(task.name)
    return ", ".join(f"{each} ({', '.join(tasks)})" for each, tasks in names.items())
