"""Architectures examined each in a process of its own, with its limits; records written as soon as they are there."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import platform
import resource
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import timm
import torch
import torchvision

from benchmarks.coverage.check import examine
from benchmarks.coverage.networks import Architecture
from xvolution import __version__

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
