"""How far something is, on a terminal alone."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console
from rich.progress import Progress, track

Item = TypeVar("Item")


def followed(items: Iterable[Item], total: int | None, what: str) -> Iterable[Item]:
    """The items, with a bar on the standard errors while they are taken, where that is a terminal.

    Args:
        items: what is taken one by one.
        total: how many there are.
        what: stands before the bar.
    """
    if not sys.stderr.isatty():
        return items
    return track(items, what, total, console=Console(stderr=True), transient=True)


@contextmanager
def counting(total: int, what: str) -> Iterator[Callable[[], None]]:
    """A function to call after each of ``total`` parts, which moves a bar, where the standard errors are a terminal."""
    with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task(what, total=total)
        yield lambda: bar.advance(task)
