"""A flag from code: a field of a dataclass or an argument, with its text in the docstring.

The flags of modules that need torch are also stored in files of this package, so that a parser does not import torch.
"""

from __future__ import annotations

import collections.abc
import dataclasses
import functools
import json
import operator
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import docstring_parser


@dataclass(frozen=True)
class Flag:
    """A flag of a command.

    Attributes:
        name: name of the field or argument.
        type: Python annotation of its values.
        default: its default.
        help: one sentence.
    """

    name: str
    type: Any
    default: Any
    help: str

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; the type as it is written in Python."""
        kind = self.type.__name__ if type(self.type) is type else str(self.type)
        return {"name": self.name, "type": kind, "default": self.default, "help": self.help}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Flag:
        """The inverse of `to_dict`, for files of this package alone: the type is evaluated."""
        annotated = types.SimpleNamespace(__annotations__={"type": values["type"]})
        kind = typing.get_type_hints(annotated, {"typing": typing, "NoneType": type(None)})["type"]
        default = values["default"]
        return cls(values["name"], kind, tuple(default) if isinstance(default, list) else default, values["help"])


@dataclass(frozen=True)
class Described:
    """The owner of flags, such as an operator.

    Attributes:
        summary: one sentence.
        flags: its flags.
    """

    summary: str
    flags: tuple[Flag, ...]


def read_flags(package: str, name: str) -> dict[str, Described]:
    """The owners of flags in a file of a package of this library, by name."""
    values = json.loads((files(package) / name).read_text(encoding="utf-8"))
    return {key: Described(each["summary"], tuple(map(Flag.from_dict, each["flags"]))) for key, each in values.items()}


def write_flags(path: Path, described: Mapping[str, Described]) -> None:
    """The inverse of `read_flags`."""
    values = {
        key: {"summary": each.summary, "flags": [flag.to_dict() for flag in each.flags]}
        for key, each in described.items()
    }
    path.write_text(json.dumps(values, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"wrote {path}")


def flag_of(name: str) -> str:
    """A field's flag on the command line."""
    return f"--{name.replace('_', '-')}"


def flags_of_fields(described: Any) -> tuple[Flag, ...]:
    """The fields of a dataclass, or of an instance of one, whose values are then the defaults."""
    cls = described if isinstance(described, type) else type(described)
    hints, helps = typing.get_type_hints(cls), documentation(cls)
    return tuple(
        Flag(field.name, writable(hints[field.name]), getattr(described, field.name, None), helps.get(field.name, ""))
        for field in dataclasses.fields(cls)
    )


def documentation(documented: Any) -> dict[str, str]:
    """The docstrings of a class's fields (with those of its bases) or of a function's arguments, each in one line."""
    classes = reversed(documented.__mro__) if isinstance(documented, type) else [documented]
    found = [param for each in classes for param in docstring_parser.parse(each.__doc__ or "").params]
    return {param.arg_name: " ".join((param.description or "").replace("``", "").split()) for param in found}


def writable(hint: Any) -> Any:
    """A type without functions, which cannot be written on the command line."""
    members = typing.get_args(hint)
    if not any(typing.get_origin(member) is collections.abc.Callable for member in members):
        return hint
    return functools.reduce(operator.or_, [m for m in members if typing.get_origin(m) is not collections.abc.Callable])
