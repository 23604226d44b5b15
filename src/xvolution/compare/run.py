"""`compare`: runs the grid and updates the report after each training."""

from __future__ import annotations

import csv
import json
import shlex
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xvolution.bench.conditions import device_conditions, versions
from xvolution.compare.config import CompareConfig
from xvolution.compare.grid import Cell, cells, claim, read_json
from xvolution.compare.launch import launcher_for, run_cells
from xvolution.compare.page import render
from xvolution.compare.register import comparison_of
from xvolution.compare.results import as_csv, gather
from xvolution.compare.timing import latencies
from xvolution.training.announcement import duration
from xvolution.training.errors import InputError, RunError
from xvolution.training.files import write_text
from xvolution.training.lock import locked
from xvolution.training.metadata import provenance

PACKAGES = ("xvolution", "torch", "torchvision", "timm", "lightning", "pycocotools", "numpy", "scipy")


@dataclass(frozen=True)
class Comparison:
    """The results of a comparison.

    Attributes:
        page: the report, one file that needs nothing else.
        results: the figures as JSON, beside the page.
        table: one line for each cell, as CSV.
        figures: the content of the JSON file.
    """

    page: Path
    results: Path
    table: Path
    figures: dict[str, Any]

    def __str__(self) -> str:
        width = max(len(row["label"]) for row in self.figures["variants"])
        lines = [f"{row['label']:<{width}}  {_percent(row)}  {row['verdict']}" for row in self.figures["variants"]]
        said = [self.figures["headline"], *self.figures["asleep"]]
        return "\n".join([*lines, *said, f"page {self.page}\nfigures {self.results}"])


def compare(config: CompareConfig) -> Comparison:
    """Train every variant with every seed, and report after each training.

    Trainings that an earlier call finished in the same folder are skipped, and interrupted ones continue.

    Raises:
        InputError: something in the configuration or the data cannot be used, or the folder holds another comparison.
        RunError: a training failed, after all others were finished and reported; or another process writes to the folder.
        Interrupted: Ctrl-C, SIGTERM or SIGHUP; the running trainings have written checkpoints and the next call continues.
    """
    grid = cells(config)
    _check(grid)
    with locked(config.folder):
        claim(config, grid)
        reporter = Reporter(config, grid)
        reporter.run()
    return reporter.comparison


class Reporter:
    """Runs the remaining cells of a grid, prints progress and updates the report."""

    def __init__(self, config: CompareConfig, grid: Sequence[Cell]) -> None:
        self.config, self.grid = config, grid
        self.metric = comparison_of(config.recipe).metric
        self.left = [cell for cell in grid if cell.result() is None]
        self._began = time.perf_counter()
        self._epochs: dict[str, int] = {}
        self._conditions = {
            "command": ["xvolution", *sys.argv[1:]],
            "commit": provenance(0)["commit"],
            "device": device_conditions(),
            "versions": versions(PACKAGES),
            "folder": str(config.folder),
        }
        self.comparison: Comparison

    def run(self) -> None:
        """Run the cells that are left, measure latencies, report.

        Raises:
            RunError: a cell failed.
        """
        done = len(self.grid) - len(self.left)
        self._say(f"{len(self.grid)} trainings, {done} already finished; report {self.config.folder / 'report.html'}")
        if self.left:
            launcher = launcher_for(self.config)
            self._jobs = min(launcher.capacity, len(self.left))
            run_cells(self.left, launcher, self)
            self._say(
                f"deploying one network of each of the {len(self.config.variants)} variants and measuring "
                "latency in turns"
            )
        self.report(latencies(self.config, self.grid))
        failures = self.comparison.figures["failures"]
        if failures:
            first = failures[0]
            raise RunError(
                f"{len(failures)} of {len(self.grid)} trainings failed ({first['cell']}: {first['error']}); "
                f"{self.comparison.page} has the others. Run the same command again to retry."
            )

    def report(self, latency: dict[str, Any] | None = None) -> None:
        """Write the report on the finished cells."""
        figures = gather(self.config, self.grid, self._conditions, latency)
        folder = self.config.folder
        self.comparison = Comparison(folder / "report.html", folder / "results.json", folder / "results.csv", figures)
        write_text(self.comparison.results, json.dumps(figures, indent=2) + "\n")
        write_text(self.comparison.table, as_csv(figures))
        write_text(self.comparison.page, render(figures))

    def started(self, cell: Cell) -> None:
        self._epochs[cell.name] = len(_history(cell))
        going_on = f", continuing after epoch {self._epochs[cell.name]}" if self._epochs[cell.name] else ""
        self._say(f"{cell.name}: started{going_on}")

    def progress(self, cell: Cell) -> None:
        """Print the epochs that the cell has finished since the last call."""
        history = _history(cell)
        for place, row in list(enumerate(history))[self._epochs[cell.name] :]:
            fold = "" if cell.folds is None else f"fold {place // cell.train.epochs + 1}/{cell.folds}, "
            self._say(
                f"{cell.name}: {fold}epoch {int(row['epoch'])}/{cell.train.epochs}  loss {row['train_loss']:.3f}  "
                f"{self.metric.name} {row[f'val_{self.metric.key}']:.2%}  {row['seconds']:.1f} s"
            )
        if len(history) == cell.epochs > self._epochs[cell.name]:
            self._say(f"{cell.name}: evaluating, counting operations")
        self._epochs[cell.name] = max(len(history), self._epochs[cell.name])

    def ended(self, cell: Cell) -> None:
        result, failed = cell.result(), read_json(cell.folder / "error.json")
        if result is None and failed is None:
            failed = {"error": f"it ended without a result; see {cell.folder / 'log.txt'}"}
            write_text(cell.folder / "error.json", json.dumps(failed) + "\n")
        said = f"failed: {failed['error']}" if failed else ""
        if result is not None:
            said = f"{self.metric.name} {result[self.metric.key]:.2%}"
        self._say(f"{cell.name}: {said}{self._remaining()}")
        self.report()

    def _remaining(self) -> str:
        """The number of finished cells and the estimated time left, from the median epoch and evaluation so far."""
        done = [result for cell in self.grid if (result := cell.result()) is not None]
        text = f"  [{len(done)} of {len(self.grid)} trainings"
        seconds = [result["seconds_per_epoch"] for result in done]
        missing = [cell for cell in self.grid if cell.result() is None]
        if not seconds or not missing:
            return f"{text}]"
        epochs = sum(cell.epochs - self._epochs.get(cell.name, 0) for cell in missing)
        afterwards = statistics.median(result.get("seconds_after_training", 0.0) for result in done)
        # Each variant is deployed once more to be timed, which takes about as long as to judge it and to count its work.
        timing = afterwards * len(self.config.variants) if self.config.latency_rounds else 0.0
        left = (epochs * statistics.median(seconds) + len(missing) * afterwards) / self._jobs + timing
        return f"{text}, {duration(left)} left, including evaluation and latency]"

    def _say(self, line: str) -> None:
        print(f"[{time.perf_counter() - self._began:5.0f} s] {line}", flush=True)


def dry_run(config: CompareConfig) -> str:
    """The grid and the commands that train its cells one by one."""
    grid = cells(config)
    _check(grid)
    folds = "" if config.folds is None else f", each of {config.folds} folds"
    lines = [
        f"{len(grid)} trainings: {len(config.variants)} variants x {len(config.seeds)} seeds{folds}, in this order"
    ]
    for cell in grid:
        state = "done" if cell.result() is not None else "interrupted" if cell.checkpoint.exists() else "new"
        lines += [f"# {cell.name} ({state})", *map(shlex.join, cell.commands)]
    return "\n".join(lines)


def _check(grid: Sequence[Cell]) -> None:
    """Open the data and build every network once, so that a mistake is reported before hours of training."""
    build = comparison_of(grid[0].train).builder(grid[0].trainings[0])
    for cell in {cell.variant.label: cell for cell in grid}.values():
        try:
            build(cell.trainings[0])
        except InputError:
            raise
        except ValueError as error:
            raise InputError(f"the variant {cell.variant.label!r} cannot be built: {error}") from error


def _history(cell: Cell) -> list[dict[str, float]]:
    """The epochs that its networks have finished, one network after the other."""
    rows: list[dict[str, float]] = []
    for training in cell.trainings:
        try:
            with open(training.run_dir / "history.csv", newline="", encoding="utf-8") as file:
                rows += [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
        except FileNotFoundError:
            break
    return rows


def _percent(row: dict[str, Any]) -> str:
    return "   -   " if row["score"] is None else f"{row['score']['estimate']:7.2%}"
