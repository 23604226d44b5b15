"""Templates of pages, and their common style sheet."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import jinja2

#: In front of negative numbers on pages and in tables.
MINUS = "\N{MINUS SIGN}"


def environment(package: str) -> jinja2.Environment:
    """The templates of a package, with the style sheet of this one."""
    import jinja2

    made = jinja2.Environment(
        loader=jinja2.ChoiceLoader(
            [jinja2.PackageLoader(package, "."), jinja2.PackageLoader("xvolution.training", ".")]
        ),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters.update(
        percent=lambda value: f"{100 * value:.2f}\u00a0%",
        scientific=lambda value: f"{value:.1e}".replace("e-0", "e-"),
        signed=lambda value, digits=2: f"{value:+.{digits}f}".replace("-", MINUS),
        shell=shlex.join,
        si=lambda value: f"{value / 1e9:.2f}\u00a0G" if value >= 1e9 else f"{value / 1e6:.2f}\u00a0M",
    )
    return made
