"""Cells as SLURM jobs, through submitit."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from xvolution.compare.cell import run_task, write_task
from xvolution.compare.config import CompareConfig
from xvolution.compare.grid import Cell
from xvolution.training.errors import InputError

CLUSTER = "slurm"
ALL_AT_ONCE = 10_000


class CellTask:
    """The function of a job. A job that is preempted or times out is submitted again and continues from its checkpoint."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self) -> int:
        return run_task(self.folder)

    def checkpoint(self) -> Any:
        """The task to submit again after an interruption."""
        import submitit

        return submitit.helpers.DelayedSubmission(self)


class ClusterJob:
    """A submitted job."""

    def __init__(self, job: Any) -> None:
        self.job = job

    def running(self) -> bool:
        return not self.job.done()

    def interrupt(self) -> None:
        """Cancel the job; its last checkpoint is that of the last epoch, or of ``checkpoint_every``."""
        self.job.cancel()

    def kill(self) -> None:
        self.job.cancel()


class ClusterLauncher:
    """Submits all cells at once, or ``jobs`` of them; the cluster schedules them."""

    def __init__(self, config: CompareConfig) -> None:
        try:
            import submitit
        except ImportError as error:
            raise InputError(
                "--launcher slurm needs submitit; install it with pip install 'xvolution[cluster]'."
            ) from error
        self.capacity = config.jobs or ALL_AT_ONCE
        self.threads, self.workers = config.threads, config.recipe.workers
        try:
            self.executor = submitit.AutoExecutor(folder=config.folder.absolute() / "jobs", cluster=CLUSTER)
            defaults = {"name": "xvolution-compare", "timeout_min": 24 * 60, "cpus_per_task": config.threads or 4}
            self.executor.update_parameters(**{**defaults, **config.slurm})
        except (RuntimeError, NameError, TypeError, ValueError) as error:
            raise InputError(f"submitit cannot use --slurm {config.slurm} here: {error}") from error

    def start(self, cell: Cell) -> ClusterJob:
        """Submit the cell."""
        write_task(cell, self.threads, self.workers)
        print(f"submitting {cell.name}", file=sys.stderr)
        return ClusterJob(self.executor.submit(CellTask(cell.folder.absolute())))
