"""Running the cells, several at once, in local processes or as jobs of a cluster, until all are finished or Ctrl-C."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

import torch

from xvolution.compare.cell import write_task
from xvolution.compare.config import CompareConfig
from xvolution.compare.grid import Cell
from xvolution.signals import status
from xvolution.training.errors import Interrupted

POLL = 0.25  # seconds


class Job(Protocol):
    """A cell that was started."""

    def running(self) -> bool:
        """Whether it has not ended yet."""

    def interrupt(self) -> None:
        """Ask it to write a checkpoint and end."""

    def kill(self) -> None:
        """End it at once."""


class Launcher(Protocol):
    """Starts cells on this machine or a cluster."""

    capacity: int

    def start(self, cell: Cell) -> Job:
        """Start one; never more than ``capacity`` at once."""


class Watcher(Protocol):
    """Is notified of starts, progress and ends."""

    def started(self, cell: Cell) -> None: ...
    def progress(self, cell: Cell) -> None: ...
    def ended(self, cell: Cell) -> None: ...


def run_cells(cells: Sequence[Cell], launcher: Launcher, watcher: Watcher) -> None:
    """Run all cells in their order.

    Raises:
        Interrupted: Ctrl-C or another request to end; the cells that ran have written checkpoints. A second one ends them at
            once.
    """
    waiting, running = deque(cells), dict[str, tuple[Cell, Job]]()
    try:
        while waiting or running:
            while waiting and len(running) < launcher.capacity:
                cell = waiting.popleft()
                running[cell.name] = (cell, launcher.start(cell))
                watcher.started(cell)
            for cell, job in list(running.values()):
                ended = not job.running()
                watcher.progress(cell)
                if ended:
                    del running[cell.name]
                    watcher.ended(cell)
            time.sleep(POLL if running else 0)
    except KeyboardInterrupt as request:
        _leave([job for _, job in running.values()])
        raise Interrupted(
            f"interrupted with {len(running)} trainings running and {len(waiting)} waiting; run the same "
            "command again to continue.",
            status(request) - 128,
        ) from None


def _leave(jobs: list[Job]) -> None:
    with suppress(OSError):  # the terminal may be what has gone
        print(
            "The running trainings write checkpoints; press Ctrl-C again to stop without them.",
            file=sys.stderr,
            flush=True,
        )
    for job in jobs:
        job.interrupt()
    try:
        while any(job.running() for job in jobs):
            time.sleep(POLL)
    except KeyboardInterrupt:
        for job in jobs:
            job.kill()


@dataclass
class LocalJob:
    """A process in its own process group, so that Ctrl-C reaches it only through its parent.

    It stops when its parent ends for any reason, because the parent holds the other end of its standard input.
    """

    process: subprocess.Popen[bytes]

    def running(self) -> bool:
        if self.process.poll() is None:
            return True
        assert self.process.stdin is not None
        self.process.stdin.close()
        return False

    def interrupt(self) -> None:
        if self.running():
            self.process.send_signal(signal.SIGINT)

    def kill(self) -> None:
        if self.running():
            os.killpg(self.process.pid, signal.SIGKILL)


class LocalLauncher:
    """Processes on this machine; with GPUs each sees one of them, in turn."""

    def __init__(self, config: CompareConfig) -> None:
        self.devices = _gpus() if config.recipe.accelerator != "cpu" else []
        by_default = max(1, len(self.devices)) * config.jobs_per_device
        self.capacity = by_default if config.jobs is None else config.jobs
        self.threads = config.threads or max(1, torch.get_num_threads() // self.capacity)
        self.workers = config.recipe.workers
        if self.workers is None and config.recipe.data != "digits":
            self.workers = max(0, min(8, (os.cpu_count() or 1) // self.capacity - 1))
        self._slots: list[LocalJob | None] = [None] * self.capacity

    def start(self, cell: Cell) -> LocalJob:
        """Start a process for the cell in the first free slot; what it prints goes to `log.txt` in the cell's folder."""
        write_task(cell, self.threads, self.workers)
        slot = next(i for i, job in enumerate(self._slots) if job is None or not job.running())
        environment = {**os.environ, "OMP_NUM_THREADS": str(self.threads), "MKL_NUM_THREADS": str(self.threads)}
        if self.devices:
            environment["CUDA_VISIBLE_DEVICES"] = self.devices[slot % len(self.devices)]
        with open(cell.folder / "log.txt", "ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "xvolution.compare.cell", str(cell.folder), "--with-parent"],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )
        job = LocalJob(process)
        self._slots[slot] = job
        return job


def _gpus() -> list[str]:
    """The GPUs that this process may use, as `CUDA_VISIBLE_DEVICES` names them; found without initializing them."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name for name in visible.split(",") if name.strip()]
    return [str(index) for index in range(torch.cuda.device_count())]


def launcher_for(config: CompareConfig) -> Launcher:
    """The launcher that the configuration names."""
    if config.launcher == "slurm":
        from xvolution.compare.cluster import ClusterLauncher

        return ClusterLauncher(config)
    return LocalLauncher(config)
