"""One training of the grid (a cell) in its own process: ``python -m xvolution.compare.cell FOLDER [--with-parent]``.

FOLDER holds `cell.json`. The process writes `result.json` and the files of its task, or `error.json`. With ``--with-parent``
the process stops when its standard input is closed, that is, when the parent ends.
"""

from __future__ import annotations

import json
import os
import signal
import statistics
import sys
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from xvolution.compare.grid import Cell, read_json
from xvolution.compare.register import comparison_of
from xvolution.compare.variants import Variant
from xvolution.conversion.attention_share import estimated_shares, largest_shares
from xvolution.signals import ending_politely, status
from xvolution.training.api import evaluate, load_model
from xvolution.training.config import RunConfig
from xvolution.training.errors import Interrupted
from xvolution.training.files import write_text
from xvolution.training.lock import locked
from xvolution.training.memory import peak_memory
from xvolution.training.metadata import provenance
from xvolution.training.once import Trained, train_once
from xvolution.training.tasks import config_from_dict

#: Seconds that a cell waits for another process that runs it, and that a cell without a parent has to end.
PATIENCE = 120.0


def write_task(cell: Cell, threads: int | None, workers: int | None) -> None:
    """Write the `cell.json` that `run_task` reads."""
    (cell.folder / "error.json").unlink(missing_ok=True)
    values: dict[str, Any] = {
        "label": cell.variant.label,
        "variant": cell.variant.to_dict(),
        "train": cell.train.to_dict(),
    }
    values |= {"folds": cell.folds, "threads": threads, "workers": workers}
    write_text(cell.folder / "cell.json", json.dumps(values, indent=2) + "\n")


def run_task(folder: Path) -> int:
    """Run the cell that `cell.json` describes, and write its result or error beside it.

    Returns:
        The exit code: 0 for success, 128 plus the signal's number after a signal, else 1 or the error's own code.
    """
    task = read_json(folder / "cell.json")
    if task is None:
        raise FileNotFoundError(f"{folder} holds no cell.json")
    try:
        # A cell whose comparison was killed takes a while to write its checkpoint.
        with locked(folder, ".cell", patience=PATIENCE):
            if task["threads"] is not None:
                torch.set_num_threads(task["threads"])
            train = config_from_dict(task["train"])
            train.workers = task["workers"]
            cell = Cell(Variant(task["label"], **task["variant"]), train, task["folds"])
            if cell.result() is None:
                write_text(folder / "result.json", json.dumps(run_cell(cell), indent=2) + "\n")
    except (Interrupted, KeyboardInterrupt) as error:
        return status(error)
    except Exception as error:  # whatever it is, the other cells go on and the report says it
        traceback.print_exc()
        return _fail(folder, error)
    return 0


def run_cell(cell: Cell) -> dict[str, Any]:
    """Train its networks, evaluate them on every image with the last epoch's weights, and count parameters and operations.

    Returns:
        The content of `result.json`: accuracy or average precision as fractions, sizes in bytes, times in seconds.
    """
    train, task = cell.train, comparison_of(cell.train)
    trained = [train_once(each) for each in cell.trainings]
    memory, trained_at = peak_memory(), time.perf_counter()
    judged = [_judged(*each) for each in zip(cell.trainings, trained, strict=True)]
    shares = [estimated_shares(load_model(each.checkpoint)[0]) for each in trained]
    return {
        "label": cell.variant.label,
        **cell.variant.to_dict(),
        "seed": train.seed,
        "folds": cell.folds,
        "digest": cell.digest,
        "command": cell.commands[0],
        **task.judge(cell.trainings, judged, cell.folder),
        "images": sum(each.images for each in judged),
        **task.costs(trained[0].checkpoint),
        "attention_shares": largest_shares(shares),
        "seconds_after_training": time.perf_counter() - trained_at,
        "seconds_per_epoch": statistics.median(row["seconds"] for each in trained for row in each.history),
        "peak_memory_bytes": memory.bytes,
        "peak_memory_of": memory.where,
        "device": _device(train),
        "threads": torch.get_num_threads(),
        "history": _mean_history([each.history for each in trained]),
        "provenance": provenance(train.seed),
    }


def _judged(train: RunConfig, trained: Trained) -> Any:
    """The evaluation of one network by the images that judge it."""
    return evaluate(
        trained.checkpoint,
        train.data,
        holdout=train.holdout,
        seed=train.holdout_seed,
        batch_size=train.batch_size,
        workers=train.workers,
        device="cpu" if train.accelerator == "cpu" else "auto",
        on_bad_image=train.on_bad_image,
        limit_batches=train.limit_val_batches,
        max_pixels=train.max_pixels,
        outside_images=train.outside_images,
    )


def _mean_history(histories: Sequence[Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """Of each epoch the mean over the networks of a cell."""
    if len(histories) == 1:
        return [dict(row) for row in histories[0]]
    return [
        {name: statistics.mean(row[name] for row in rows) for name in rows[0]} for rows in zip(*histories, strict=True)
    ]


def _device(train: RunConfig) -> str:
    if train.accelerator != "cpu" and torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return "cpu"


def _fail(folder: Path, error: Exception) -> int:
    text = " ".join(str(error).split()) or type(error).__name__
    code = getattr(error, "exit_code", None)
    sentence = text if code is not None else f"{type(error).__name__}: {text}"
    write_text(folder / "error.json", json.dumps({"error": sentence}) + "\n")
    return 1 if code is None else int(code)


def end_with_parent() -> None:
    """Ask this process to stop when standard input is closed; if it does not, kill it and all processes that it started."""

    def watch() -> None:
        while os.read(0, 1):
            pass
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(PATIENCE)
        os.killpg(os.getpgrp(), signal.SIGKILL)

    threading.Thread(target=watch, name="parent", daemon=True).start()


if __name__ == "__main__":
    with ending_politely():
        if sys.argv[2:] == ["--with-parent"]:
            end_with_parent()
        sys.exit(run_task(Path(sys.argv[1])))
