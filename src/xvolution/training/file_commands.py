"""The parsers of `xvolution evaluate`, `deploy`, `predict` and `data`."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

from jsonargparse import ActionYesNo, ArgumentParser

from xvolution.training.errors import InputError
from xvolution.training.files import write_text
from xvolution.training.tasks import TASKS, Task, owners_of

_MAX_PIXELS = "the most that an image may have; 178956970 by default, against files that fill the memory."
_ANY_FORM = "a .ckpt, .safetensors (training or deployed form) or .onnx file."


def evaluate_command(arguments: Sequence[str]) -> None:
    """Evaluate a checkpoint, print the figures, write them where asked."""
    parser = ArgumentParser(
        prog="xvolution evaluate",
        description="Top-1, top-5 and loss of a classifier, COCO's figures of a detector, and their speed.",
    )
    parser.add_argument("checkpoint", type=str, help=_ANY_FORM)
    parser.add_argument("--data", type=str | None, help="as in training; by default the data it was trained on.")
    parser.add_argument("--split", choices=["train", "val", "test"], default="val", help="which part of the data.")
    parser.add_argument(
        "--holdout", type=float | None, help="judge by this fraction of the training part, as in training."
    )
    parser.add_argument("--seed", type=int, default=0, help="of the held-out part.")
    batches = _by_task(lambda task: str(task.evaluation_batch))
    parser.add_argument("--batch-size", type=int | None, help=f"images in a batch; by default {batches}.")
    parser.add_argument("--workers", type=int | None, help="processes that load images.")
    parser.add_argument("--device", type=str, default="auto", help="cpu, cuda, cuda:1, mps or auto.")
    parser.add_argument("--on-bad-image", choices=["error", "skip"], default="error", help="end, or go on without it.")
    parser.add_argument("--max-pixels", type=int | None, help=_MAX_PIXELS)
    _add_outside_images(parser)
    parser.add_argument("--limit-batches", type=int | None, help="evaluate at most so many batches.")
    parser.add_argument("--json", type=str | None, help="file for the figures.")
    _add_checksum(parser)
    _add_task_options(parser, "evaluate")
    values = parser.parse_args(list(arguments)).as_dict()
    report, checkpoint = values.pop("json"), values.pop("checkpoint")
    from xvolution.training.api import evaluate

    result = evaluate(checkpoint, **values)
    print(result)
    if report is not None:
        write_text(report, json.dumps(result.to_dict(), indent=2) + "\n")


def deploy_command(arguments: Sequence[str]) -> None:
    """Re-parameterize a checkpoint and write the deployed form."""
    parser = ArgumentParser(
        prog="xvolution deploy", description="Re-parameterize a checkpoint and write what a deployment runs."
    )
    parser.add_argument("checkpoint", type=str, help="a .ckpt or .safetensors file in training form.")
    endings = _by_task(lambda task: " ".join(task.endings))
    parser.add_argument(
        "--output",
        nargs="+",
        type=str,
        help=f"files, written by their endings: {endings}. With --to, one path without an ending.",
    )
    parser.add_argument(
        "--to", nargs="+", type=str, help="all, or runtimes by name: write, run and time each; one table."
    )
    parser.add_argument("--data", type=str | None, help="with --to, as in training: images to compare predictions on.")
    parser.add_argument("--images", type=int, default=256, help="with --data, how many of the validation part.")
    parser.add_argument("--rounds", type=int, default=30, help="with --to, samples of each latency.")
    parser.add_argument("--json", type=str | None, help="with --to, file for the table.")
    parser.add_argument(
        "--layout",
        type=str,
        default="auto",
        help="auto (times each operator in the runtime of each file), single, split or parts.",
    )
    parser.add_argument(
        "--threads", type=int | None, help="of the CPU while layouts are timed; by default as many as torch has."
    )
    parser.add_argument(
        "--fold-norms",
        action=ActionYesNo(no_prefix="no-"),
        default=False,
        help="fold the other norms into their convolutions.",
    )
    _add_checksum(parser)
    _add_task_options(parser, "deploy")
    values = parser.parse_args(list(arguments)).as_dict()
    values["progress"] = partial(print, file=sys.stderr, flush=True) if sys.stderr.isatty() else None
    checkpoint, output, runtimes, report = (values.pop(name) for name in ("checkpoint", "output", "to", "json"))
    if runtimes is not None:
        _deploy_to(checkpoint, runtimes, output or [None], report, values)
        return
    if output is None:
        raise InputError(
            "nothing says what to write: give --output with files, or --to with runtimes, such as --to all."
        )
    of_table = {"data": values.pop("data"), "json": report}
    del values["images"], values["rounds"]
    if any(value is not None for value in of_table.values()):
        given = " and ".join(f"--{name}" for name, value in of_table.items() if value is not None)
        raise InputError(f"{given}: these are for the table of --to; give --to all, or leave them out.")
    from xvolution.training.api import deploy

    print(deploy(checkpoint, output, **values))


def _deploy_to(
    checkpoint: str, runtimes: Sequence[str], output: Sequence[str | None], report: str | None, values: dict[str, Any]
) -> None:
    """Write the files of several runtimes, and print their table."""
    if len(output) > 1:
        raise InputError(f"--output is {len(output)} names; with --to give one path without an ending.")
    from xvolution.training.shipping import deploy_to

    table = deploy_to(checkpoint, runtimes, output[0], **values)
    print(table)
    if report is not None:
        write_text(report, json.dumps(table.to_dict(), indent=2) + "\n")


def _add_outside_images(parser: ArgumentParser) -> None:
    text = "read images that annotations or tables name outside of the data's folder too."
    parser.add_argument("--outside-images", action=ActionYesNo(no_prefix="no-"), default=False, help=text)


def _add_checksum(parser: ArgumentParser) -> None:
    text = "compare the checkpoint with the checksum in it."
    parser.add_argument("--checksum", action=ActionYesNo(no_prefix="no-"), default=True, help=text)


def _add_task_options(parser: ArgumentParser, command: Literal["evaluate", "deploy"]) -> None:
    """Add what some tasks alone take, in a group for each set of tasks."""
    options = {option.name: option for task in TASKS.values() for option in task.options[command]}
    owners = {name: ", ".join(owners_of(command, name)) for name in options}
    groups = {title: parser.add_argument_group(title) for title in owners.values()}
    for name, option in options.items():
        kind = {"action": ActionYesNo(no_prefix="no-")} if option.type is bool else {"type": option.type | None}
        groups[owners[name]].add_argument(option.flag, default=None, help=option.help, **kind)


def _by_task(value: Callable[[Task[Any, Any]], str]) -> str:
    """Something that differs between tasks, such as "64 (classify), 1 (detect, segment)"."""
    names: dict[str, list[str]] = {}
    for task in TASKS.values():
        names.setdefault(value(task), []).append(task.name)
    return ", ".join(f"{each} ({', '.join(tasks)})" for each, tasks in names.items())


def predict_command(arguments: Sequence[str]) -> None:
    """Draw what a detector finds on images, and write it in COCO's format."""
    parser = ArgumentParser(
        prog="xvolution predict", description="Draw what a detector finds on images, and write it in COCO's format."
    )
    parser.add_argument("checkpoint", type=str, help=_ANY_FORM)
    parser.add_argument("images", nargs="+", type=str, help="files, or folders of them.")
    parser.add_argument("--output", type=str, default="predictions", help="folder for pictures and results.json.")
    parser.add_argument("--score-threshold", type=float, default=0.5, help="what scores less is left out.")
    parser.add_argument("--device", type=str, default="auto", help="cpu, cuda, cuda:1, mps or auto.")
    parser.add_argument("--max-pixels", type=int | None, help=_MAX_PIXELS)
    _add_checksum(parser)
    values = parser.parse_args(list(arguments)).as_dict()
    from xvolution.training.api import predict

    written = predict(values.pop("checkpoint"), values.pop("images"), values.pop("output"), **values)
    print(f"{len(written) - 1} pictures in {written[-1].parent}, results in {written[-1]}")


def data_command(arguments: Sequence[str]) -> None:
    """Check a data set: the one thing to do with it is `check`."""
    parser = ArgumentParser(prog="xvolution data", description="Everything about a folder in COCO's format at once.")
    parser.add_argument("action", choices=["check"], help="what to do.")
    parser.add_argument(
        "folder", type=str, help="with annotations/instances_train*.json, or train/_annotations.coco.json."
    )
    parser.add_argument(
        "--masks", action=ActionYesNo(no_prefix="no-"), default=False, help="every object needs a mask."
    )
    parser.add_argument("--max-pixels", type=int | None, help=_MAX_PIXELS)
    _add_outside_images(parser)
    parser.add_argument("--json", type=str | None, help="file for the whole report.")
    values = parser.parse_args(list(arguments)).as_dict()
    from xvolution.training.coco.check import check_folder

    report = check_folder(values["folder"], values["masks"], values["max_pixels"], values["outside_images"])
    print(report)
    if values["json"] is not None:
        write_text(values["json"], json.dumps(report.to_dict(), indent=2) + "\n")
    if report.refused:
        raise InputError(f"{report.refused} problems of {values['folder']} must be mended.")
