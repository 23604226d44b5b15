"""The parsers of `xvolution train`, `evaluate` and `deploy`."""

from __future__ import annotations

import collections.abc
import dataclasses
import functools
import json
import operator
import typing
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import docstring_parser
from jsonargparse import ActionYesNo, ArgumentParser

from xvolution.surgery import XVolutionConfig
from xvolution.training.config import TrainConfig
from xvolution.training.errors import InputError
from xvolution.training.files import write_text

ALIASES = {"model": ("--backbone",)}


def train_command(arguments: Sequence[str]) -> None:
    """Train from flags and YAML files."""
    config = parse_train(arguments)
    from xvolution.training.run import train

    result = train(config)
    best = result.metrics
    print(
        f"best epoch {int(best['epoch'])}: top-1 {best['val_top1']:.2%}, top-5 {best['val_top5']:.2%}, "
        f"loss {best['val_loss']:.4f}\nweights {result.weights}\ncheckpoint {result.checkpoint}"
    )


def train_parser() -> ArgumentParser:
    """One flag for each field of `TrainConfig`, dashes for underscores, and `--config FILE` for YAML."""
    parser = ArgumentParser(
        prog="xvolution train", description="Train an image classifier, with X-volution or without.", default_env=False
    )
    add_train_flags(parser)
    return parser


def add_train_flags(parser: ArgumentParser, leave_out: Collection[str] = ()) -> None:
    """Add `--config` and a flag for each field of `TrainConfig` but those to be left out."""
    parser.add_argument("--config", action="config", help="YAML file with any of these settings; flags after it win.")
    defaults = TrainConfig()
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
    return train_config(train_parser().parse_args(list(arguments)).as_dict())


def train_config(values: Mapping[str, Any]) -> TrainConfig:
    """The configuration of what a parser with `add_train_flags` has parsed.

    Raises:
        InputError: a value is not allowed.
    """
    values = {name: value for name, value in values.items() if name != "config"}
    try:
        xvolution = XVolutionConfig(**values.pop("xvolution"))
    except ValueError as error:
        raise InputError(f"--xvolution: {error}.") from error
    return TrainConfig(**values, xvolution=xvolution)


def train_flags(config: TrainConfig) -> list[str]:
    """The flags that `parse_train` makes this configuration of; what has its default is left out."""
    own, default = config.to_dict(), TrainConfig().to_dict()
    flags: list[str] = []
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
        prog="xvolution evaluate", description="Top-1, top-5, loss and images per second of a checkpoint."
    )
    parser.add_argument("checkpoint", type=str, help="a .ckpt, .safetensors (training or deployed form) or .onnx file.")
    parser.add_argument("--data", type=str | None, help="as in training; by default the data it was trained on.")
    parser.add_argument("--split", choices=["train", "val", "test"], default="val", help="which part of the data.")
    parser.add_argument(
        "--holdout", type=float | None, help="judge by this fraction of the training part, as in training."
    )
    parser.add_argument("--seed", type=int, default=0, help="of the held-out part.")
    parser.add_argument("--batch-size", type=int, default=64, help="images in a batch.")
    parser.add_argument("--image-size", type=int | None, help="side length in pixels; by default that of training.")
    parser.add_argument("--workers", type=int | None, help="processes that load images.")
    parser.add_argument("--device", type=str, default="auto", help="cpu, cuda, cuda:1, mps or auto.")
    parser.add_argument("--on-bad-image", choices=["error", "skip"], default="error", help="end, or go on without it.")
    parser.add_argument("--limit-batches", type=int | None, help="evaluate at most so many batches.")
    parser.add_argument("--json", type=str | None, help="file for the figures.")
    parser.add_argument("--predictions", type=str | None, help="CSV file for the prediction of every image.")
    values = parser.parse_args(list(arguments)).as_dict()
    report = values.pop("json")
    from xvolution.training.evaluation import evaluate

    result = evaluate(values.pop("checkpoint"), values.pop("data"), **values)
    print(result)
    if report is not None:
        write_text(report, json.dumps(result.to_dict(), indent=2) + "\n")


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
        help="files; by their endings .safetensors, .onnx, .pt2 and .xml (OpenVINO).",
    )
    parser.add_argument("--layout", type=str, default="auto", help="auto (measures), single or split.")
    parser.add_argument(
        "--fold-norms",
        action=ActionYesNo(no_prefix="no-"),
        default=False,
        help="fold the other norms into their convolutions.",
    )
    parser.add_argument("--image-size", type=int | None, help="side length in pixels; by default that of training.")
    parser.add_argument("--batch-size", type=int, default=1, help="of the example input that is measured and compared.")
    values = parser.parse_args(list(arguments)).as_dict()
    from xvolution.training.deployment import deploy

    print(deploy(values.pop("checkpoint"), values.pop("output"), **values))
