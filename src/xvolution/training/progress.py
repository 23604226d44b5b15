"""Progress bars, on a terminal only."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console
from rich.progress import Progress, track

Item = TypeVar("Item")


def followed(items: Iterable[Item], total: int | None, what: str) -> Iterable[Item]:
    """Iterate over the items, with a progress bar on the standard error output if that is a terminal.

    Args:
        items: the items.
        total: number of items.
        what: text before the bar.
    """
    if not sys.stderr.isatty():
        return items
    return track(items, what, total, console=Console(stderr=True), transient=True)


@contextmanager
def counting(total: int, what: str) -> Iterator[Callable[[], None]]:
    """A function to call after each of ``total`` parts, which advances a bar if the standard error output is a terminal."""
    with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task(what, total=total)
        yield lambda: bar.advance(task)
