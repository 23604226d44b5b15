"""The parser of `xvolution train`: the fields of a configuration as flags, and back."""

from __future__ import annotations

import argparse
import dataclasses
import json
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml

from xvolution.training.config import RunConfig
from xvolution.training.errors import InputError
from xvolution.training.flags.flag import flag_of
from xvolution.training.flags.operators import flags_of
from xvolution.training.flags.parser import Parser
from xvolution.training.flags.run import add_operator_flags, add_run_flags, names_in, operators_help
from xvolution.training.tasks import CLASSIFY, Task, task_called, task_of
from xvolution.training.upgrade import upgrade_config

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
        InputError: a flag is unknown, a value is not allowed, or there is no such task.
    """
    arguments = with_recipes(arguments, lambda path, recipe: recipe)
    defaults = task_called(said(arguments, "task") or CLASSIFY.name).defaults()
    operator = said(arguments, "operator") or defaults.operator
    parser = Parser(
        "train",
        "Train a network, with or without X-volution. Each task and each operator has its own flags: see\n"
        "xvolution train --task detect --help, or xvolution train --operator linear --help.",
        operators_help("--operator", "--help-all" in arguments, operator),
    )
    add_run_flags(parser, defaults)
    add_operator_flags(parser, operator, arguments)
    values = parser.parse_args(list(arguments)).as_dict()
    options = operator_options(values, operator, arguments)
    return configured(defaults, {**values, "operator": operator, "operator_options": options})


def said(arguments: Sequence[str], setting: str) -> str | None:
    """The value of a setting on the command line, or in the last YAML file that has it; None if neither has it.

    Some settings decide which flags exist. They have to be known before the flags are parsed.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument(f"--{setting}", dest="value")
    parser.add_argument("--config", action="append", default=[])
    known, _ = parser.parse_known_args(list(arguments))
    if known.value is not None:
        return known.value
    for given in reversed(known.config):
        settings = _recipe(given)
        if settings is not None and setting in settings:
            return str(settings[setting])
    return None


def with_recipes(arguments: Sequence[str], rewrite: Callable[[str, dict[str, Any]], Mapping[str, Any]]) -> list[str]:
    """The arguments, with the path of each YAML file replaced by its settings.

    Args:
        arguments: those of the command line.
        rewrite: takes a path and its settings, already upgraded to this version's names, and returns the settings to use.
    """
    given, result = list(arguments), []
    while given:
        argument = given.pop(0)
        path = given.pop(0) if argument == "--config" and given else argument.removeprefix("--config=")
        if path == argument:
            result.append(argument)
        else:
            settings = _recipe(path)
            result += ["--config", path if settings is None else yaml.safe_dump(dict(rewrite(path, settings)))]
    return result


def _recipe(given: str) -> dict[str, Any] | None:
    """The settings in a YAML file, or in YAML text; None if it cannot be read, which the parser reports later.

    Raises:
        InputError: the file is not UTF-8 text.
    """
    try:
        text = given if "\n" in given else Path(given).read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise InputError(f"--config {given} is not UTF-8 text; give a YAML file of settings.") from None
    except (OSError, ValueError):
        return None
    try:
        settings = yaml.safe_load(text)
        return upgrade_config(settings) if isinstance(settings, dict) else None
    except (ValueError, TypeError, KeyError, AttributeError, yaml.YAMLError):
        return None


def configured(defaults: Config, values: Mapping[str, Any]) -> Config:
    """The configuration from the values that a parser with `add_run_flags` has parsed, with the task of ``defaults``.

    Raises:
        InputError: a value is not allowed.
    """
    values = {name: value for name, value in values.items() if name not in ("config", "task")}
    hints = typing.get_type_hints(type(defaults))
    for name, value in values.items():
        if value is None and type(None) not in typing.get_args(hints[name]):
            raise InputError(
                f"{flag_of(name)} is null; give a value, or leave it out for the default, {getattr(defaults, name)}."
            )
    return dataclasses.replace(defaults, **values)


def operator_options(values: dict[str, Any], operator: str, arguments: Sequence[str]) -> dict[str, Any]:
    """Take the operator's options out of the parsed values; the command line takes precedence over a file."""
    options, given = dict(values["operator_options"] or {}), set(names_in(arguments))
    for option in flags_of(operator):
        value = values.pop(option.name)
        if option.name in given or value != option.default:
            options[option.name] = list(value) if isinstance(value, tuple) else value
    return options


def train_flags(config: RunConfig) -> list[str]:
    """The flags from which `parse_run` makes this configuration; settings with their default are left out."""
    task: Task[Any, Any] = task_of(config)
    flags = [] if task is CLASSIFY else ["--task", task.name]
    own, default = config.to_dict(), task.defaults().to_dict()
    options = own.pop("operator_options")
    for name, value in own.items():
        if value != default[name]:
            flags += _written(name, value)
    for name, value in options.items():
        flags += _written(name, value)
    return flags


def _written(name: str, value: Any) -> list[str]:
    if isinstance(value, bool):
        return [flag_of(name) if value else flag_of(f"no-{name}")]
    return [flag_of(name), value if isinstance(value, str) else json.dumps(value)]
