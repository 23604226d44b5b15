"""Trainings, detections, comparisons and deployments that are killed at random times, and what the next start makes of them.

    python -m benchmarks.kills --kills 300 --output results/kills.json

A job is run whole once. Then it is started, sent SIGKILL or SIGTERM after a random part of that time, and started again, until it
is done: it must end with the bits of the whole one and leave no temporaries, and after every kill each file that is there must
open. Trainings are tiny, of the digits that scikit-learn brings and of drawn rectangles.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# What the commands import, once for all of them.
import onnx  # noqa: F401
import onnxruntime  # noqa: F401
import onnxscript  # noqa: F401
import sklearn.datasets  # noqa: F401
import torch
import torch.utils.tensorboard
from PIL import Image, ImageDraw

from benchmarks.record import write_record
from xvolution.cli import main as run_command
from xvolution.training.checkpoint import digest_of, read_checkpoint, read_weights

NETWORK = [
    "--model-kwargs",
    '{"layers": [1, 1, 1, 1], "channels": [8, 8, 16, 32]}',
    "--small-images",
    "--image-size",
    "16",
]
CPU = ["--accelerator", "cpu", "--workers", "0"]
SIGNALS = (signal.SIGKILL, signal.SIGTERM)
MOST_KILLS = 5  # of one run, which is then left to end


class Job(ABC):
    """Something that a command does in a folder, and that it goes on with when it is started again."""

    name: str

    def prepare(self, shared: Path) -> None:
        """Make what the command reads, once."""
        self.shared = shared

    @abstractmethod
    def arguments(self, folder: Path) -> list[str]:
        """The command, to begin or to go on."""

    @abstractmethod
    def outcome(self, folder: Path) -> dict[str, Any]:
        """What must be the same however often the job was killed; every file is opened."""

    @abstractmethod
    def open(self, folder: Path) -> None:
        """Open every file that is there."""


class Training(Job):
    """A classifier, with everything that keeps a state of its own."""

    name = "training"
    flags: Sequence[str] = (*NETWORK, *CPU, "--epochs", "3", "--limit-train-batches", "8", "--batch-size", "32")
    own: Sequence[str] = ("--mixup", "0.2", "--auto-augment", "rand-m5", "--ema-decay", "0.9", "--warmup-epochs", "1")

    def arguments(self, folder: Path) -> list[str]:
        resume = ["--resume", "last"] if (folder / "last.ckpt").exists() else []
        return ["train", *self.flags, *self.own, "--checkpoint-every", "2", "--output", str(folder), *resume]

    def outcome(self, folder: Path) -> dict[str, Any]:
        checkpoint = read_checkpoint(folder / "last.ckpt")
        history = [{k: v for k, v in row.items() if k != "seconds"} for row in checkpoint["history"]]
        return {
            "state": digest_of(checkpoint["state_dict"], ""),
            "steps": checkpoint["global_step"],
            "history": history,
            "weights": digest_of(read_weights(folder / "model.safetensors")[0], ""),
        }

    def open(self, folder: Path) -> None:
        for path in (each for each in folder.rglob("*") if not each.parent.name.endswith(".partial")):
            if path.suffix in (".ckpt", ".safetensors"):
                read_weights(path)
            elif path.suffix == ".json":
                json.loads(path.read_text(encoding="utf-8"))


class Detection(Training):
    """A detector on pictures of rectangles."""

    name = "detection"
    own = (
        "--task",
        "detect",
        "--architecture",
        "fcos",
        "--backbone",
        "resnet18",
        "--min-size",
        "64",
        "--max-size",
        "64",
        "--trainable-layers",
        "5",
        "--norm",
        "batch",
        "--epochs",
        "2",
        "--batch-size",
        "2",
        "--limit-train-batches",
        "4",
        "--limit-val-batches",
        "2",
        "--accelerator",
        "cpu",
        "--workers",
        "0",
    )

    def prepare(self, shared: Path) -> None:
        super().prepare(shared)
        draw_rectangles(shared / "rectangles")

    def arguments(self, folder: Path) -> list[str]:
        resume = ["--resume", "last"] if (folder / "last.ckpt").exists() else []
        data = ["--data", str(self.shared / "rectangles")]
        return ["train", *self.own, *data, "--checkpoint-every", "2", "--output", str(folder), *resume]


class Comparison(Training):
    """Two operators with one seed, as processes of their own."""

    name = "comparison"

    def arguments(self, folder: Path) -> list[str]:
        grid = [
            "--operators",
            "conv,xvolution",
            "--seeds",
            "1",
            "--jobs",
            "1",
            "--threads",
            "1",
            "--latency-rounds",
            "0",
        ]
        return ["compare", *grid, *self.flags, "--checkpoint-every", "2", "--output", str(folder)]

    def outcome(self, folder: Path) -> dict[str, Any]:
        cells = sorted(path.parent for path in folder.glob("cells/*/*/result.json"))
        table = json.loads((folder / "results.json").read_text(encoding="utf-8"))
        scores = [row["score"] for row in table["variants"]]
        return {str(cell.relative_to(folder)): super(Comparison, self).outcome(cell) for cell in cells} | {
            "scores": scores
        }


class Deployment(Job):
    """A classifier in all formats."""

    name = "deployment"
    endings = (".safetensors", ".onnx", ".pt2", ".xml")

    def prepare(self, shared: Path) -> None:
        super().prepare(shared)
        training = Training()
        training.prepare(shared)
        run_whole(training, shared / "trained")

    def arguments(self, folder: Path) -> list[str]:
        outputs = [str(folder / f"network{ending}") for ending in self.endings]
        return ["deploy", str(self.shared / "trained" / "model.safetensors"), "--layout", "split", "--output", *outputs]

    def outcome(self, folder: Path) -> dict[str, Any]:
        self.open(folder)
        names = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
        return {"files": names, "weights": digest_of(read_weights(folder / "network.safetensors")[0], "")}

    def open(self, folder: Path) -> None:
        from xvolution import load

        for path in [folder / f"network{ending}" for ending in self.endings]:
            if path.exists():
                load(path).model(torch.zeros(1, 3, 16, 16))


def draw_rectangles(folder: Path, pictures: int = 8) -> None:
    """Write a folder in COCO's format: a rectangle on each picture."""
    rng = random.Random(0)
    for part in ("train", "val"):
        (folder / part).mkdir(parents=True)
        images, annotations = [], []
        for index in range(pictures):
            x, y, side = rng.randrange(30), rng.randrange(30), rng.randrange(12, 30)
            picture = Image.new("RGB", (64, 64), "white")
            ImageDraw.Draw(picture).rectangle((x, y, x + side, y + side), fill="red")
            picture.save(folder / part / f"{index}.png")
            images.append({"id": index + 1, "file_name": f"{index}.png", "width": 64, "height": 64})
            box = {"bbox": [x, y, side, side], "area": side * side, "iscrowd": 0}
            annotations.append({"id": index + 1, "image_id": index + 1, "category_id": 1, **box})
        categories = [{"id": 1, "name": "rectangle"}]
        described = {"images": images, "annotations": annotations, "categories": categories}
        (folder / part / "_annotations.coco.json").write_text(json.dumps(described), encoding="utf-8")


JOBS: dict[str, Callable[[], Job]] = {job.name: job for job in (Training, Detection, Comparison, Deployment)}

# Processes are forked from one that has imported everything: a start takes milliseconds.
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["benchmarks.kills"])


def _command(arguments: list[str], log: str) -> None:
    torch.set_num_threads(1)
    for stream in (1, 2):
        os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
    sys.argv = ["xvolution", *arguments]
    sys.exit(run_command(arguments))


def start(job: Job, folder: Path) -> Any:
    """Start a job's command in a process of its own."""
    log = folder.with_suffix(".log")
    process = _CONTEXT.Process(target=_command, args=(job.arguments(folder), str(log)))
    process.start()
    return process


def run_whole(job: Job, folder: Path) -> float:
    """Run a job without a kill; how many seconds it took.

    Raises:
        RuntimeError: it failed.
    """
    began = time.monotonic()
    process = start(job, folder)
    process.join()
    if process.exitcode != 0:
        raise RuntimeError(f"{job.name} failed: {folder.with_suffix('.log').read_text()[-2000:]}")
    return time.monotonic() - began


@dataclass
class Tally:
    """What happened to one job.

    Attributes:
        seconds: that a whole run took.
        kills: by signal.
        statuses: how the processes that were sent a signal ended, by signal and exit code.
        resumed: runs that were killed at least once and ended.
        differing: of them, those that ended otherwise than the whole one.
        unreadable: files that did not open after a kill.
        temporaries: that were left when a run had ended.
        failures: what was said by runs that ended with an error.
    """

    seconds: float
    kills: Counter[str] = field(default_factory=Counter)
    statuses: Counter[str] = field(default_factory=Counter)
    resumed: int = 0
    differing: int = 0
    unreadable: list[str] = field(default_factory=list)
    temporaries: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    @property
    def holds(self) -> bool:
        """Whether everything was as promised."""
        return not (self.differing or self.unreadable or self.temporaries or self.failures)


def check(
    job: Job, kills: int, rng: random.Random, shared: Path, tell: Callable[[Tally], None] = lambda tally: None
) -> Tally:
    """Kill a job so many times in all, in as many runs as that takes.

    Args:
        job: what is killed.
        kills: in all.
        rng: of times and signals.
        shared: a folder for it.
        tell: is told of the tally after each run.
    """
    job.prepare(shared)
    whole = shared / f"{job.name}-whole"
    run_whole(job, shared / f"{job.name}-first")  # starts the process that the others are forked from
    tally = Tally(run_whole(job, whole))
    expected = job.outcome(whole)
    while tally.kills.total() < kills:
        folder, before = Path(tempfile.mkdtemp(prefix=f"{job.name}-", dir=shared)) / "run", tally.kills.total()
        _run_killed(job, folder, tally, rng, kills)
        try:
            tally.resumed += tally.kills.total() > before
            if job.outcome(folder) != expected:
                tally.differing += 1
        except Exception as error:  # whatever it is, the other runs go on and the record says it
            tally.failures.append(f"{type(error).__name__}: {error}"[:500])
        tally.temporaries += [str(path.relative_to(folder)) for path in folder.rglob("*.partial")]
        shutil.rmtree(folder.parent)
        tell(tally)
    return tally


def _run_killed(job: Job, folder: Path, tally: Tally, rng: random.Random, kills: int) -> None:
    for attempt in range(MOST_KILLS + 1):
        process = start(job, folder)
        if attempt == MOST_KILLS or tally.kills.total() >= kills:
            process.join()
        else:
            process.join(rng.uniform(0, tally.seconds))
        if process.exitcode is None:
            signum = rng.choice(SIGNALS)
            os.kill(process.pid, signum)
            process.join()
            tally.kills[signum.name] += 1
            tally.statuses[f"{signum.name}: {process.exitcode}"] += 1
            try:
                job.open(folder)
            except Exception as error:  # as above
                tally.unreadable.append(f"{type(error).__name__}: {error}"[:500])
        elif process.exitcode != 0:
            tally.failures.append(folder.with_suffix(".log").read_text(errors="replace")[-500:])
            return
        if process.exitcode == 0:
            return


def main(arguments: Iterable[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=300, help="in all; a tenth of them of comparisons (default: 300)")
    parser.add_argument("--jobs", nargs="+", choices=tuple(JOBS), default=list(JOBS), help="by default all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("kills.json"))
    values = parser.parse_args(None if arguments is None else list(arguments))
    weights = {name: 0.1 if name == "comparison" else 0.3 for name in values.jobs}
    tallies: dict[str, Any] = {}
    held = True

    def keep(tally: Tally) -> None:
        tallies[name] = {**vars(tally), "kills": dict(tally.kills), "statuses": dict(tally.statuses)}
        write_record(values.output, {"jobs": tallies})

    for name in values.jobs:
        with tempfile.TemporaryDirectory() as folder:
            kills = max(1, round(values.kills * weights[name] / sum(weights.values())))
            tally = check(JOBS[name](), kills, random.Random(f"{values.seed} {name}"), Path(folder), keep)
        print(f"{name}: {tallies[name]}", flush=True)
        held = held and tally.holds
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
