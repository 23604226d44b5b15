"""The flags of each bench, from a file, so that the parser does not import torch.

`python -m xvolution.bench.flags` writes `flags.json` from the benches' dataclasses, and a test holds it against them.
"""

from __future__ import annotations

import dataclasses
import importlib
import types
import typing
from functools import cache
from pathlib import Path
from typing import Any

import docstring_parser

from xvolution.training.flags.flag import Described, flags_of_fields, read_flags, write_flags

_FILE = "flags.json"
#: Module and class of each bench.
KINDS = {
    "networks": ("xvolution.bench.networks", "NetworkBench"),
    "operators": ("xvolution.bench.operators", "OperatorBench"),
    "options": ("xvolution.bench.options", "OptionBench"),
    "mechanisms": ("xvolution.bench.mechanisms", "MechanismBench"),
    "scaling": ("xvolution.bench.scaling", "ScalingBench"),
}


def bench_of(kind: str) -> Any:
    """The class of a bench; imports its module."""
    module, name = KINDS[kind]
    return getattr(importlib.import_module(module), name)


@cache
def stored() -> dict[str, Described]:
    """The flags of each bench from the file."""
    return read_flags("xvolution.bench", _FILE)


def described() -> dict[str, Described]:
    """The flags of each bench from its class; sequences are lists, as on the command line."""
    return {kind: _described(bench_of(kind)) for kind in KINDS}


def _described(bench: Any) -> Described:
    flags = [
        dataclasses.replace(flag, type=types.GenericAlias(list, typing.get_args(flag.type)))
        if typing.get_args(flag.type)
        else flag
        for flag in flags_of_fields(bench)
    ]
    return Described(docstring_parser.parse(bench.__doc__).short_description or "", tuple(flags))


if __name__ == "__main__":
    write_flags(Path(__file__).with_name(_FILE), described())
