"""The parser of `xvolution train`: the fields of a configuration as flags, and back."""

from __future__ import annotations

import argparse
import collections.abc
import dataclasses
import functools
import json
import operator
import typing
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import docstring_parser
import yaml
from jsonargparse import ActionYesNo, ArgumentParser, DefaultHelpFormatter

from xvolution.conversion.register import Option, operator_names, options_of, summary_of
from xvolution.training.config import RunConfig
from xvolution.training.errors import InputError
from xvolution.training.tasks import CLASSIFY, TASKS, Task, task_called, task_of
from xvolution.training.upgrade import upgrade_config

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
    arguments = with_recipes(arguments, lambda path, recipe: recipe)
    defaults = task_called(said(arguments, "task") or CLASSIFY.name).defaults()
    operator = said(arguments, "operator") or defaults.operator
    parser = ArgumentParser(
        prog="xvolution train",
        description="Train a network, with X-volution or without. Each task and each operator has flags of its own: see "
        "xvolution train --task detect --help, or --operator linear --help.",
        epilog=operators_help("--operator", operator),
        formatter_class=HelpFormatter,
        default_env=False,
    )
    add_run_flags(parser, defaults)
    add_operator_flags(parser, operator, arguments)
    values = parser.parse_args(list(arguments)).as_dict()
    options = _operator_options(values, operator, arguments)
    return configured(defaults, {**values, "operator": operator, "operator_options": options})


def said(arguments: Sequence[str], setting: str) -> str | None:
    """What a setting is on the command line, or in the last YAML file that has it; None where nothing says it.

    For the settings that decide which flags there are, which have to be known before the flags are parsed.
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
    """The arguments with recipes in the place of the YAML files that hold them.

    Args:
        arguments: of the command line.
        rewrite: makes what is read of a path and the settings in it, which are in the names of this version.
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
    """The settings of a YAML file, or of its text; None where these are none, of which the parser says what is wrong.

    Raises:
        InputError: the file is no text.
    """
    try:
        text = given if "\n" in given else Path(given).read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise InputError(f"--config {given} is no text in UTF-8; give a YAML file of settings.") from None
    except (OSError, ValueError):
        return None
    try:
        settings = yaml.safe_load(text)
        return upgrade_config(settings) if isinstance(settings, dict) else None
    except (ValueError, TypeError, KeyError, AttributeError, yaml.YAMLError):
        return None


def add_run_flags(parser: ArgumentParser, defaults: RunConfig, leave_out: Collection[str] = ()) -> None:
    """Add `--config`, `--task` and a flag for each other field of a configuration but those to be left out."""
    parser.add_argument("--config", action="config", help="YAML file with any of these settings; flags after it win.")
    text = "what the network does; each task has flags and defaults of its own."
    parser.add_argument("--task", choices=tuple(TASKS), default=defaults.task, help=text)
    hints, helps = typing.get_type_hints(type(defaults)), documentation(type(defaults))
    for field in dataclasses.fields(defaults):
        if field.name not in ("task", *leave_out):
            _add_flag(parser, field.name, hints[field.name], getattr(defaults, field.name), helps[field.name])


def add_operator_flags(parser: ArgumentParser, operator: str, arguments: Sequence[str]) -> None:
    """Add a flag for each option of an operator, from its own dataclass or signature, with its own help.

    Raises:
        InputError: there is no such operator, or a flag among the arguments is an option of another one.
    """
    if operator not in operator_names():
        raise InputError(f"--operator is {operator}; it must be one of {', '.join(operator_names())}.")
    options = options_of(operator)
    for name in _foreign(parser, operator, arguments):
        having = [other for other in operator_names() if name in {option.name for option in options_of(other)}]
        listed = ", ".join(flag(option.name) for option in options)
        raise InputError(
            f"{flag(name)} is no option of {operator}, whose options are {listed}. It is one of {', '.join(having)}."
        )
    group = parser.add_argument_group(f"options of --operator {operator}")
    for option in options:
        _add_flag(group, option.name, option.type, option.default, _help_of(option))


def _foreign(parser: ArgumentParser, operator: str, arguments: Sequence[str]) -> list[str]:
    """The options among the arguments that other operators have and this one has not."""
    own = {option.name for option in options_of(operator)}
    others = {option.name for name in operator_names() for option in options_of(name)} - own
    known = {string for action in parser._actions for string in action.option_strings}
    names = [name for name in _flags_in(arguments) if flag(name) not in known]
    return [name for name in names if name in others]


def _flags_in(arguments: Sequence[str]) -> list[str]:
    """The names of all flags among the arguments, as fields."""
    given = [argument[2:].partition("=")[0] for argument in arguments if argument.startswith("--")]
    return [name.removeprefix("no-").replace("-", "_") for name in given]


def operators_help(taken_by: str, chosen: str | None = None) -> str:
    """All operators and their options, for the end of `--help`.

    Args:
        taken_by: the flag that takes the names.
        chosen: the operator whose options have flags of their own.
    """
    lines = [f"operators ({taken_by}), and the options of each:"]
    for name in operator_names():
        lines.append(f"  {name}: {summary_of(name)}")
        if name != chosen:
            lines += [f"      {option.name}: {_help_of(option)}" for option in options_of(name)]
    return "\n".join(lines)


class HelpFormatter(DefaultHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """jsonargparse's help, with the lines of description and epilog as they are."""


def _help_of(option: Option) -> str:
    return documentation(option.documented_by).get(option.name, "").replace("\n", " ")


def _add_flag(parser: Any, name: str, hint: Any, default: Any, text: str) -> None:
    options: dict[str, Any] = {"default": default, "help": text.replace("%", "%%")}
    hint = _writable(hint)
    if hint is bool:
        options["action"] = ActionYesNo(no_prefix="no-")
    else:
        options["type"] = hint
    parser.add_argument(flag(name), *ALIASES.get(name, ()), **options)


def _writable(hint: Any) -> Any:
    """Leave the functions out of a union type: the command line has no way to write one."""
    members = typing.get_args(hint)
    if not any(typing.get_origin(member) is collections.abc.Callable for member in members):
        return hint
    return functools.reduce(operator.or_, [m for m in members if typing.get_origin(m) is not collections.abc.Callable])


def documentation(documented: Any) -> dict[str, str]:
    """What a class and its bases, or a function, say of their fields or arguments."""
    classes = reversed(documented.__mro__) if isinstance(documented, type) else [documented]
    found = [param for each in classes for param in docstring_parser.parse(each.__doc__ or "").params]
    return {param.arg_name: (param.description or "").replace("``", "") for param in found}


def configured(defaults: Config, values: Mapping[str, Any]) -> Config:
    """The configuration of what a parser with `add_run_flags` has parsed, with the task of ``defaults``.

    Raises:
        InputError: a value is not allowed.
    """
    values = {name: value for name, value in values.items() if name not in ("config", "task")}
    hints = typing.get_type_hints(type(defaults))
    for name, value in values.items():
        if value is None and type(None) not in typing.get_args(hints[name]):
            raise InputError(
                f"{flag(name)} is null; leave it out for its default, {getattr(defaults, name)}, or give a value."
            )
    return dataclasses.replace(defaults, **values)


def _operator_options(values: dict[str, Any], operator: str, arguments: Sequence[str]) -> dict[str, Any]:
    """Take the operator's options out of what was parsed; one that the command line names wins over a file's."""
    options, given = dict(values["operator_options"] or {}), set(_flags_in(arguments))
    for option in options_of(operator):
        value = values.pop(option.name)
        if option.name in given or value != option.default:
            options[option.name] = list(value) if isinstance(value, tuple) else value
    return options


def train_flags(config: RunConfig) -> list[str]:
    """The flags that `parse_run` makes this configuration of; what has its default is left out."""
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
        return [flag(name) if value else flag(f"no-{name}")]
    return [flag(name), value if isinstance(value, str) else json.dumps(value)]


def flag(name: str) -> str:
    """A field's flag."""
    return f"--{name.replace('_', '-')}"
