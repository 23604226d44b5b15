"""The parsers of `xvolution train`, `evaluate` and `deploy`."""

from __future__ import annotations

import argparse
import collections.abc
import dataclasses
import functools
import json
import operator
import typing
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import docstring_parser
import yaml
from jsonargparse import ActionYesNo, ArgumentParser

from xvolution.surgery import XVolutionConfig
from xvolution.training.config import AnyConfig, DetectionConfig, RunConfig, TrainConfig
from xvolution.training.errors import InputError
from xvolution.training.files import write_text

TASKS = ("classify", "detect", "segment")
ALIASES = {"model": ("--backbone",)}

Config = TypeVar("Config", bound=AnyConfig)


def train_command(arguments: Sequence[str]) -> None:
    """Train from flags and YAML files."""
    config = parse_run(arguments)
    from xvolution.training.once import train_task

    result = train_task(config)
    if isinstance(config, DetectionConfig):
        names = [name for name in ("box_ap", "box_ap50", "mask_ap", "mask_ap50") if f"val_{name}" in result.metrics]
        figures = ", ".join(f"{name.replace('_ap', ' AP')} {result.metrics[f'val_{name}']:.2%}" for name in names)
    else:
        best = result.metrics
        figures = f"top-1 {best['val_top1']:.2%}, top-5 {best['val_top5']:.2%}, loss {best['val_loss']:.4f}"
    print(
        f"best epoch {int(result.metrics['epoch'])}: {figures}\nweights {result.weights}\ncheckpoint {result.checkpoint}"
    )


def parse_run(arguments: Sequence[str]) -> AnyConfig:
    """Parse flags and YAML files into the configuration of their task.

    Raises:
        InputError: a value is not allowed, or there is no such task.
        SystemExit: a flag is unknown or of the wrong type; the parser has said so.
    """
    defaults = task_defaults(task_of(arguments))
    if isinstance(defaults, TrainConfig):
        return parse_train(arguments)
    parser = _run_parser("Train a detector (--task detect) or a detector with masks (--task segment).")
    add_run_flags(parser, defaults)
    return configured(defaults, parser.parse_args(list(arguments)).as_dict())


def task_defaults(task: str) -> AnyConfig:
    """The configuration of a task that nothing was said about.

    Raises:
        InputError: there is no such task.
    """
    if task not in TASKS:
        raise InputError(f"--task is {task}; the tasks are {', '.join(TASKS)}.")
    return TrainConfig() if task == "classify" else DetectionConfig(task="segment" if task == "segment" else "detect")


def task_of(arguments: Sequence[str], otherwise: str = "classify") -> str:
    """What `--task` says, on the command line or in the last YAML file that has it; ``otherwise`` where nothing does."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--task")
    parser.add_argument("--config", action="append", default=[])
    known, _ = parser.parse_known_args(list(arguments))
    if known.task is not None:
        return known.task
    for path in reversed(known.config):
        try:
            settings = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        except (OSError, yaml.YAMLError):
            continue  # the parser proper says what is wrong with it
        if isinstance(settings, dict) and "task" in settings:
            return str(settings["task"])
    return otherwise


def train_parser() -> ArgumentParser:
    """One flag for each field of `TrainConfig`, dashes for underscores, and `--config FILE` for YAML."""
    parser = _run_parser(
        "Train an image classifier, with X-volution or without. Detectors have flags of their own: see "
        "xvolution train --task detect --help."
    )
    parser.add_argument("--task", choices=TASKS, default="classify", help="classify images, detect boxes, or segment.")
    add_run_flags(parser, TrainConfig())
    return parser


def _run_parser(description: str) -> ArgumentParser:
    return ArgumentParser(prog="xvolution train", description=description, default_env=False)


def add_run_flags(parser: ArgumentParser, defaults: RunConfig, leave_out: Collection[str] = ()) -> None:
    """Add `--config` and a flag for each field of a configuration but those to be left out."""
    parser.add_argument("--config", action="config", help="YAML file with any of these settings; flags after it win.")
    _add_fields(parser, "", defaults, leave_out)
    _add_fields(parser, "xvolution.", defaults.xvolution)


def _add_fields(parser: ArgumentParser, prefix: str, defaults: Any, leave_out: Collection[str] = ()) -> None:
    """Add a flag for each field of a dataclass that can be written down."""
    hints = typing.get_type_hints(type(defaults))
    helps = _field_documentation(type(defaults))
    for field in dataclasses.fields(defaults):
        if field.name in leave_out:
            continue
        hint, default = _writable(hints[field.name]), getattr(defaults, field.name)
        options: dict[str, Any] = {"default": default, "help": helps.get(field.name, "of the operator XVolution.")}
        if hint is bool:
            options["action"] = ActionYesNo(no_prefix="no-")
        elif not dataclasses.is_dataclass(hint):
            options["type"] = hint
        else:
            continue
        parser.add_argument(_flag(prefix, field.name), *ALIASES.get(field.name, ()), **options)


def _writable(hint: Any) -> Any:
    """Leave the functions out of a union type: the command line has no way to write one."""
    members = typing.get_args(hint)
    if not any(typing.get_origin(member) is collections.abc.Callable for member in members):
        return hint
    return functools.reduce(operator.or_, [m for m in members if typing.get_origin(m) is not collections.abc.Callable])


def _field_documentation(cls: type) -> dict[str, str]:
    documented = [p for c in reversed(cls.__mro__) for p in docstring_parser.parse(c.__doc__ or "").params]
    return {p.arg_name: (p.description or "").replace("``", "") for p in documented}


def parse_train(arguments: Sequence[str]) -> TrainConfig:
    """Parse flags and YAML files into a configuration.

    Raises:
        InputError: a value is not allowed.
        SystemExit: a flag is unknown or of the wrong type; the parser has said so.
    """
    return configured(TrainConfig(), train_parser().parse_args(list(arguments)).as_dict())


def configured(defaults: Config, values: Mapping[str, Any]) -> Config:
    """The configuration of what a parser with `add_run_flags` has parsed, with the task of ``defaults``.

    Raises:
        InputError: a value is not allowed.
    """
    values = {name: value for name, value in values.items() if name not in ("config", "task")}
    if isinstance(defaults, DetectionConfig):
        values["task"] = defaults.task
    try:
        xvolution = XVolutionConfig(**values.pop("xvolution"))
    except ValueError as error:
        raise InputError(f"--xvolution: {error}.") from error
    return type(defaults)(**values, xvolution=xvolution)


def train_flags(config: AnyConfig) -> list[str]:
    """The flags that `parse_run` makes this configuration of; what has its default is left out."""
    flags = ["--task", config.task] if isinstance(config, DetectionConfig) else []
    own, default = config.to_dict(), task_defaults(flags[-1] if flags else "classify").to_dict()
    for prefix, given, usual in (
        ("", own, default),
        ("xvolution.", own.pop("xvolution"), default.pop("xvolution")),
    ):
        for name in given:
            value = given[name]
            if value == usual[name]:
                continue
            flag = _flag(prefix, name)
            if isinstance(value, bool) and isinstance(usual[name], bool):
                flags.append(flag if value else _flag("no-" + prefix, name))
            else:
                flags += [flag, value if isinstance(value, str) else json.dumps(value)]
    return flags


def _flag(prefix: str, name: str) -> str:
    return f"--{prefix}{name.replace('_', '-')}"


def evaluate_command(arguments: Sequence[str]) -> None:
    """Evaluate a checkpoint, print the figures, write them where asked."""
    parser = ArgumentParser(
        prog="xvolution evaluate",
        description="Top-1, top-5 and loss of a classifier, COCO's figures of a detector, and their speed.",
    )
    parser.add_argument("checkpoint", type=str, help="a .ckpt, .safetensors (training or deployed form) or .onnx file.")
    parser.add_argument("--data", type=str | None, help="as in training; by default the data it was trained on.")
    parser.add_argument("--split", choices=["train", "val", "test"], default="val", help="which part of the data.")
    parser.add_argument(
        "--holdout", type=float | None, help="judge by this fraction of the training part, as in training."
    )
    parser.add_argument("--seed", type=int, default=0, help="of the held-out part.")
    parser.add_argument("--batch-size", type=int | None, help="images in a batch; by default 64, of a detector 1.")
    parser.add_argument("--workers", type=int | None, help="processes that load images.")
    parser.add_argument("--device", type=str, default="auto", help="cpu, cuda, cuda:1, mps or auto.")
    parser.add_argument("--on-bad-image", choices=["error", "skip"], default="error", help="end, or go on without it.")
    parser.add_argument("--limit-batches", type=int | None, help="evaluate at most so many batches.")
    parser.add_argument("--json", type=str | None, help="file for the figures.")
    classifier = parser.add_argument_group("classifiers")
    classifier.add_argument("--image-size", type=int | None, help="side length in pixels; by default that of training.")
    classifier.add_argument("--predictions", type=str | None, help="CSV file for the prediction of every image.")
    detector = parser.add_argument_group("detectors")
    detector.add_argument(
        "--results", type=str | None, help="JSON file for the detections in COCO's submission format."
    )
    detector.add_argument("--page", type=str | None, help="HTML file with pictures, the truth beside what was found.")
    detector.add_argument("--pictures", type=int | None, help="on the page; 24 by default.")
    values = parser.parse_args(list(arguments)).as_dict()
    report, checkpoint = values.pop("json"), values.pop("checkpoint")
    from xvolution.training.checkpoint import read_metadata
    from xvolution.training.metadata import DetectorMetadata

    if isinstance(read_metadata(checkpoint), DetectorMetadata):
        from xvolution.training.detection_evaluation import evaluate_detector

        result: Any = evaluate_detector(checkpoint, **_given(values, ("image_size", "predictions"), "a detector"))
    else:
        from xvolution.training.evaluation import evaluate

        result = evaluate(checkpoint, **_given(values, ("results", "page", "pictures"), "a classifier"))
    print(result)
    if report is not None:
        write_text(report, json.dumps(result.to_dict(), indent=2) + "\n")


def _given(values: Mapping[str, Any], foreign: Sequence[str], kind: str) -> dict[str, Any]:
    """The values that were given.

    Raises:
        InputError: one of the other kind of network was.
    """
    given = {name: value for name, value in values.items() if value is not None}
    for name in foreign:
        if given.pop(name, None) is not None:
            raise InputError(f"{_flag('', name)} has no meaning for {kind}; leave it out.")
    return given


def deploy_command(arguments: Sequence[str]) -> None:
    """Re-parameterize a checkpoint and write the deployed form."""
    parser = ArgumentParser(
        prog="xvolution deploy", description="Re-parameterize a checkpoint and write what a deployment runs."
    )
    parser.add_argument("checkpoint", type=str, help="a .ckpt or .safetensors file in training form.")
    parser.add_argument(
        "--output",
        nargs="+",
        required=True,
        help="files; by their endings .safetensors, .onnx, .xml (OpenVINO) and, of a classifier, .pt2.",
    )
    parser.add_argument("--layout", type=str, default="auto", help="auto (measures), single or split.")
    parser.add_argument(
        "--fold-norms",
        action=ActionYesNo(no_prefix="no-"),
        default=False,
        help="fold the other norms into their convolutions.",
    )
    classifier = parser.add_argument_group("classifiers")
    classifier.add_argument("--image-size", type=int | None, help="side length in pixels; by default that of training.")
    classifier.add_argument(
        "--batch-size", type=int | None, help="of the example that is measured and compared; 1 by default."
    )
    classifier.add_argument(
        "--fixed-size",
        action=ActionYesNo(no_prefix="no-"),
        default=None,
        help="fix batch and image size in exported files: a branch whose kernel the image decides is one convolution then.",
    )
    detector = parser.add_argument_group("detectors")
    detector.add_argument(
        "--image", type=str | None, help="file of the example whose detections are compared; else noise."
    )
    values = parser.parse_args(list(arguments)).as_dict()
    checkpoint, outputs = values.pop("checkpoint"), values.pop("output")
    from xvolution.training.checkpoint import read_metadata
    from xvolution.training.metadata import DetectorMetadata

    if isinstance(read_metadata(checkpoint), DetectorMetadata):
        from xvolution.training.detection_deployment import deploy_detector_file

        result: Any = deploy_detector_file(
            checkpoint, outputs, **_given(values, ("image_size", "batch_size", "fixed_size"), "a detector")
        )
    else:
        from xvolution.training.deployment import deploy

        result = deploy(checkpoint, outputs, **_given(values, ("image",), "a classifier"))
    print(result)
