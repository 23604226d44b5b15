"""The parser of `xvolution train`: the fields of a configuration as flags, and back."""

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
from xvolution.training.config import RunConfig
from xvolution.training.errors import InputError
from xvolution.training.tasks import CLASSIFY, TASKS, Task, task_called, task_of

ALIASES = {"model": ("--backbone",)}

Config = TypeVar("Config", bound=RunConfig)


def train_command(arguments: Sequence[str]) -> None:
    """Train from flags and YAML files."""
    config = parse_run(arguments)
    from xvolution.training.api import train

    result = train(config)
    best = f"best epoch {int(result.metrics['epoch'])}: {task_of(config).figures(result.metrics)}"
    print(f"{best}\nweights {result.weights}\ncheckpoint {result.checkpoint}")


def parse_run(arguments: Sequence[str]) -> RunConfig:
    """Parse flags and YAML files into the configuration of their task.

    Raises:
        InputError: a value is not allowed, or there is no such task.
        SystemExit: a flag is unknown or of the wrong type; the parser has said so.
    """
    defaults = task_called(task_named(arguments, CLASSIFY.name)).defaults()
    parser = ArgumentParser(
        prog="xvolution train",
        description="Train a network, with X-volution or without. Each task has flags of its own: see "
        "xvolution train --task detect --help.",
        default_env=False,
    )
    add_run_flags(parser, defaults)
    return configured(defaults, parser.parse_args(list(arguments)).as_dict())


def task_named(arguments: Sequence[str], otherwise: str) -> str:
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


def add_run_flags(parser: ArgumentParser, defaults: RunConfig, leave_out: Collection[str] = ()) -> None:
    """Add `--config`, `--task` and a flag for each other field of a configuration but those to be left out."""
    parser.add_argument("--config", action="config", help="YAML file with any of these settings; flags after it win.")
    text = "what the network does; each task has flags and defaults of its own."
    parser.add_argument("--task", choices=tuple(TASKS), default=defaults.task, help=text)
    _add_fields(parser, "", defaults, ("task", *leave_out))
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


def configured(defaults: Config, values: Mapping[str, Any]) -> Config:
    """The configuration of what a parser with `add_run_flags` has parsed, with the task of ``defaults``.

    Raises:
        InputError: a value is not allowed.
    """
    values = {name: value for name, value in values.items() if name not in ("config", "task")}
    try:
        xvolution = XVolutionConfig(**values.pop("xvolution"))
    except ValueError as error:
        raise InputError(f"--xvolution: {error}.") from error
    return dataclasses.replace(defaults, **values, xvolution=xvolution)


def train_flags(config: RunConfig) -> list[str]:
    """The flags that `parse_run` makes this configuration of; what has its default is left out."""
    task: Task[Any, Any] = task_of(config)
    flags = [] if task is CLASSIFY else ["--task", task.name]
    own, default = config.to_dict(), task.defaults().to_dict()
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
