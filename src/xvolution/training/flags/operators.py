"""Every operator by name, with its options as flags, for parsers: from the register if it is loaded, else from a file.

The register of operators needs torch. `operators.json` has its entries for the operators of this package;
`python -m xvolution.training.flags.operators` writes it, and a test compares it with the register. If an operator of another
package has been imported, the register is loaded and used.
"""

from __future__ import annotations

import sys
from functools import cache
from pathlib import Path
from typing import Any

from xvolution.training.flags.flag import Described, Flag, documentation, read_flags, writable, write_flags

_FILE = "operators.json"


def operator_names() -> tuple[str, ...]:
    """See `xvolution.conversion.register.operator_names`."""
    if _is_loaded():
        from xvolution.conversion import register

        return register.operator_names()
    return tuple(_stored())


def flags_of(name: str) -> tuple[Flag, ...]:
    """The options of an operator of `operator_names`."""
    return (_registered(name) if _is_loaded() else _stored()[name]).flags


def summary_of(name: str) -> str:
    """One sentence about an operator of `operator_names`."""
    return (_registered(name) if _is_loaded() else _stored()[name]).summary


def all_registered() -> dict[str, Described]:
    """All entries of the register; loads it."""
    from xvolution.conversion import register

    return {name: _registered(name) for name in register.operator_names()}


def _is_loaded() -> bool:
    """Whether the register may have entries that the file does not have; registering always starts with this import."""
    return "xvolution.attention" in sys.modules


def _registered(name: str) -> Described:
    from xvolution.conversion import register

    flags = [
        Flag(option.name, writable(option.type), option.default, _said(option.documented_by, option.name))
        for option in register.options_of(name)
    ]
    return Described(register.summary_of(name), tuple(flags))


@cache
def _documentation(documented: Any) -> dict[str, str]:
    return documentation(documented)


def _said(documented: Any, name: str) -> str:
    return _documentation(documented).get(name, "")


@cache
def _stored() -> dict[str, Described]:
    return read_flags("xvolution.training.flags", _FILE)


if __name__ == "__main__":
    write_flags(Path(__file__).with_name(_FILE), all_registered())
