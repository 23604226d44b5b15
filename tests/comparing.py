"""What tests of comparisons share: cells that run in the process of the test, and what a page shows."""

from __future__ import annotations

from html.parser import HTMLParser

from xvolution.compare.cell import run_task, write_task
from xvolution.compare.config import CompareConfig
from xvolution.compare.grid import Cell


class Done:
    """A job that has ended."""

    def running(self) -> bool:
        return False

    def interrupt(self) -> None: ...

    kill = interrupt


class Inline:
    """Runs each cell in this process, which spares the tests the start of another."""

    capacity = 1

    def __init__(self, config: CompareConfig) -> None:
        self.started: list[str] = []

    def start(self, cell: Cell) -> Done:
        self.started.append(cell.name)
        write_task(cell, None, 0)
        run_task(cell.folder)
        return Done()


class Text(HTMLParser):
    """What a page shows, and what it would load."""

    def __init__(self) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.shown: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.loads += [
            value for name, value in attrs if name in ("src", "href", "xlink:href") and value and value[0] != "#"
        ]

    def handle_data(self, data: str) -> None:
        self.shown.append(data)
