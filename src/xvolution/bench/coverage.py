"""Convert every architecture of timm and torchvision, each in its own process: ``python -m xvolution.bench.coverage``."""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import os
import platform
import resource
import sys
import time
import warnings
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import timm
import torch
import torchvision

from xvolution import __version__
from xvolution.bench.coverage_check import examine
from xvolution.bench.coverage_networks import Architecture, architectures
from xvolution.bench.coverage_page import write_page

Record = dict[str, Any]


@dataclass(frozen=True)
class Limits:
    """What one architecture may use: seconds, and GiB of memory."""

    timeout: float = 120
    memory_gib: float = 8


class Results:
    """The results file: records by ``source/name``, each written as soon as it is there."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.versions = {
            "xvolution": __version__,
            "torch": str(torch.__version__),
            "timm": timm.__version__,
            "torchvision": str(torchvision.__version__),
            "python": platform.python_version(),
        }
        self.records: dict[str, Record] = {}
        if path.exists():
            self._load()

    def _load(self) -> None:
        stored = json.loads(self.path.read_text())
        for library in ("torch", "timm", "torchvision"):
            if stored["versions"][library] != self.versions[library]:
                raise ValueError(
                    f"{self.path} was measured with {library} {stored['versions'][library]}, and "
                    f"{self.versions[library]} is installed; give another --output, or delete the file to start again"
                )
        self.records = stored["architectures"]

    def add(self, architecture: Architecture, record: Record) -> None:
        """Keep one record, and rename a new file over the old one."""
        self.records[architecture.key] = record
        lines = (f"{json.dumps(key)}: {json.dumps(self.records[key])}" for key in sorted(self.records))
        text = f'{{"versions": {json.dumps(self.versions)},\n"architectures": {{\n' + ",\n".join(lines) + "\n}}\n"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_name(f"{self.path.name}.{os.getpid()}.tmp")
        temporary.write_text(text)
        os.replace(temporary, self.path)


def _child(architecture: Architecture, limits: Limits, examination: Callable[..., Record], sender: Connection) -> None:
    size = int(limits.memory_gib * 2**30)
    resource.setrlimit(resource.RLIMIT_DATA, (size, size))
    warnings.simplefilter("ignore")
    logging.disable()
    try:
        record = examination(architecture)
    except Exception as error:
        if isinstance(error, MemoryError) or "can't allocate memory" in str(error):
            record = _failed(architecture, f"needs more than {limits.memory_gib:g} GiB of memory")
        else:
            record = _failed(architecture, f"{type(error).__name__}: {error}")
    sender.send(record)


def _failed(architecture: Architecture, reason: str) -> Record:
    return {"family": architecture.family, "task": architecture.task, "status": "failed", "reason": reason}


@dataclass
class _Job:
    architecture: Architecture
    process: Any
    started: float

    def ended(self, receiver: Connection, limits: Limits) -> Record | None:
        """The record once there is one; None while the process may go on."""
        if receiver.poll():
            try:
                return receiver.recv()
            except EOFError:
                self.process.join()
                return _failed(self.architecture, f"the process ended with exit code {self.process.exitcode}")
        if time.monotonic() - self.started > limits.timeout:
            return _failed(self.architecture, f"took longer than {limits.timeout:g} s") | {"seconds": limits.timeout}
        return None


def examine_all(
    wanted: Iterable[Architecture],
    finished: Callable[[Architecture, Record], None],
    limits: Limits,
    jobs: int = 1,
    examination: Callable[[Architecture], Record] = examine,
) -> None:
    """Examine architectures, ``jobs`` at a time, each in a fork of this process that is killed at its limit.

    Args:
        wanted: what to examine.
        finished: called with each architecture and its record, in the order in which they end.
        limits: time and memory of one.
        jobs: processes at a time.
        examination: what to do with each.
    """
    # Forks inherit the imports; threads they would not.
    torch.set_num_threads(1)
    context: Any = multiprocessing.get_context("fork")
    pending, running = deque(wanted), dict[Connection, _Job]()
    while pending or running:
        while pending and len(running) < jobs:
            architecture = pending.popleft()
            receiver, sender = context.Pipe(duplex=False)
            process = context.Process(target=_child, args=(architecture, limits, examination, sender))
            process.start()
            sender.close()
            running[receiver] = _Job(architecture, process, time.monotonic())
        wait(list(running), timeout=1)
        for receiver, job in list(running.items()):
            record = job.ended(receiver, limits)
            if record is not None:
                job.process.kill()
                job.process.join()
                receiver.close()
                del running[receiver]
                finished(job.architecture, record)


def _wanted(only: str | None, retry: bool, records: dict[str, Record]) -> list[Architecture]:
    named = [a for a in architectures() if only is None or fnmatchcase(a.name, only) or fnmatchcase(a.key, only)]
    if not named:
        raise ValueError(
            f"--only {only} matches no architecture of timm or torchvision; give a pattern such as 'resnet*'"
        )
    again = {key for key, record in records.items() if retry and record["status"] == "failed"}
    return _one_of_each_family_first([a for a in named if a.key not in records or a.key in again])


def _one_of_each_family_first(wanted: list[Architecture]) -> list[Architecture]:
    """What fails in a family shows early in a run of hours."""
    seen: Counter[str] = Counter()
    ranked = []
    for architecture in wanted:
        family = f"{architecture.source}/{architecture.family}"
        ranked.append((seen[family], architecture))
        seen[family] += 1
    return [architecture for _, architecture in sorted(ranked, key=lambda pair: pair[0])]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m xvolution.bench.coverage", description=__doc__)
    parser.add_argument(
        "--output", type=Path, default=Path("results/coverage.json"), help="results; names in it are done"
    )
    parser.add_argument("--page", type=Path, help="also write the results as this Markdown page")
    parser.add_argument("--only", help="shell pattern of names, such as 'resnet*' or 'torchvision/*'")
    parser.add_argument("--retry", action="store_true", help="repeat the names that failed")
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time (default: 2)")
    parser.add_argument("--timeout", type=float, default=120, help="seconds for one architecture (default: 120)")
    parser.add_argument("--memory-gib", type=float, default=8, help="memory for one architecture (default: 8)")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status: 1 when an architecture fails, 2 on bad input."""
    values = _parser().parse_args(arguments)
    try:
        results = Results(values.output)
        wanted = _wanted(values.only, values.retry, results.records)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    remaining = len(wanted)

    def finished(architecture: Architecture, record: Record) -> None:
        nonlocal remaining
        remaining -= 1
        results.add(architecture, record)
        said = record.get("reason") or f"{record['replaced']} replaced, {record['deployment_error']:.0e}"
        print(f"{remaining:5d} left  {architecture.key}: {record['status']}: {said}", flush=True)

    examine_all(wanted, finished, Limits(values.timeout, values.memory_gib), values.jobs)
    if values.page:
        write_page(values.output, values.page)
    counts = Counter(record["status"] for record in results.records.values())
    print(", ".join(f"{count} {status}" for status, count in sorted(counts.items())))
    return 1 if counts["failed"] else 0


if __name__ == "__main__":
    raise SystemExit(main())
