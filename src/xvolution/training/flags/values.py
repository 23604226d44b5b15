"""The values of a flag as text: a short form for help, and words for sentences."""

from __future__ import annotations

import argparse
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from jsonargparse import ActionYesNo

#: Explains the words of `short`.
LEGEND = "N is a whole number, X a number, [N,...] a list such as [3,4], JSON an object such as '{\"name\": 1}'."
_SHORT = {int: "N", float: "X", Path: "FILE", bool: "true|false", dict: "JSON", Any: "JSON"}
#: Placeholders of paths.
_PLACES = {
    **dict.fromkeys(
        ("json", "predictions", "results", "page", "image", "weights", "backbone_weights", "teacher", "plain"), "FILE"
    ),
    "output": "FOLDER",
    "resume": "last|CHECKPOINT",
}
_WORDS = {
    int: "a whole number",
    float: "a number",
    str: "a word",
    Path: "a path",
    bool: "true or false",
    dict: "a JSON object such as '{\"name\": 1}'",
    Any: "JSON",
}
_PLURAL = {
    int: "whole numbers such as [3,4]",
    float: "numbers such as [0.5,1.5]",
    str: "words such as [layer2.*,layer3.*]",
}


def kind_of(action: argparse.Action) -> Any:
    """The Python annotation of an argument's values."""
    if action.choices is not None:
        return Literal[tuple(action.choices)]
    if isinstance(action, ActionYesNo):
        return bool
    return getattr(action, "_typehint", None) or action.type or str


def short(action: argparse.Action) -> str:
    """The placeholder after a flag in help, such as ``N`` or ``{auto,bar,off}``."""
    if isinstance(action.metavar, str) and "null" not in action.metavar:
        return action.metavar
    members = _members(kind_of(action))
    if len(members) == 1 and typing.get_origin(members[0]) is Literal:
        text = "{" + ",".join(map(str, typing.get_args(members[0]))) + "}"
    else:
        text = "|".join(dict.fromkeys(_short(member, action.dest) for member in members))
    return f"{text} ..." if action.nargs in ("+", "*") else text


def in_words(action: argparse.Action) -> str:
    """The allowed values in words, such as "a whole number"."""
    found = list(dict.fromkeys(word for member in _members(kind_of(action)) for word in _words(member)))
    return found[0] if len(found) == 1 else f"{', '.join(found[:-1])} or {found[-1]}"


def choices_of(action: argparse.Action) -> list[str]:
    """The fixed words that an argument accepts, if any."""
    return [
        str(value)
        for member in _members(kind_of(action))
        if typing.get_origin(member) is Literal
        for value in typing.get_args(member)
    ]


def shown(value: Any) -> str:
    """A default, as it is written on the command line."""
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, str | Path):
        return str(value) or "''"
    if isinstance(value, Sequence):
        return f"[{','.join(map(str, value))}]"
    return "none" if value is None or value == {} else str(value)


def _members(kind: Any) -> list[Any]:
    """The types of a union without None; itself where it is none."""
    if typing.get_origin(kind) in (Literal, list, tuple, dict) or not typing.get_args(kind):
        return [kind]
    return [member for member in typing.get_args(kind) if member is not type(None)]


def _short(kind: Any, name: str) -> str:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        return "|".join(map(str, arguments))
    if origin in (list, tuple):
        return f"[{_short(arguments[0], name)},...]"
    return _SHORT.get(origin or kind, _PLACES.get(name, name.rpartition("_")[2].upper()))


def _words(kind: Any) -> list[str]:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        return list(map(str, arguments))
    if origin in (list, tuple):
        return [f"a list of {_PLURAL.get(arguments[0], 'values')}"]
    return [_WORDS.get(origin or kind, "a word")]
