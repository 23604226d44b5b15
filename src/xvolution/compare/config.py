"""The configuration of a comparison."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from xvolution.compare.variants import Variant, with_baseline
from xvolution.training.config import RunConfig
from xvolution.training.errors import InputError
from xvolution.training.fold import Fold
from xvolution.training.tasks import CLASSIFY


@dataclass
class CompareConfig:
    """A grid of trainings: every variant with every seed, all with one recipe.

    Args:
        recipe: of every training, of any task; its operator, seed, output and resume are the grid's to say.
        variants: what is compared; the baseline is put first, and added when it is missing.
        seeds: each trains every variant. Runs of one seed see the same images in the same order.
        folds: cross-validation: each cell trains so many networks, each without one part of the images of training and
            validation part together, and every image is judged once, by the network that did not see it. For classifiers. None
            trains one network a cell, which the validation part judges.
        baseline: label of the variant that the others are measured against.
        output: folder of the comparison; by default runs/compare-<data>-<model>, where a detector's model is architecture and
            backbone.
        jobs: trainings at once; by default one for each device (times ``jobs_per_device``), one on a CPU.
        jobs_per_device: trainings that share a GPU.
        threads: of each training; by default the cores are dealt out evenly.
        launcher: "local" starts processes here, "slurm" submits jobs.
        slurm: parameters of ``submitit``'s executor, such as ``{"slurm_partition": "gpu", "gpus_per_node": 1}``.
        latency_batch: images in the batch whose latency is measured.
        latency_rounds: samples of each latency; 0 measures none.
        latency_runtime: where latency is measured: torch, or a runtime that networks are exported for, on the CPU; for a
            detector one that takes it as a whole.
    """

    recipe: RunConfig
    variants: tuple[Variant, ...]
    seeds: tuple[int, ...] = (0, 1, 2)
    folds: int | None = None
    baseline: str = "conv"
    output: str | None = None
    jobs: int | None = None
    jobs_per_device: int = 1
    threads: int | None = None
    launcher: Literal["local", "slurm"] = "local"
    slurm: dict[str, Any] = field(default_factory=dict)
    latency_batch: int = 1
    latency_rounds: int = 20
    latency_runtime: str = "torch"

    def __post_init__(self) -> None:
        self.variants = with_baseline(self.variants, self.baseline)
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise InputError(f"the seeds are {list(self.seeds)}; give at least one seed, and each seed only once.")
        for name, least in (
            ("jobs", 1),
            ("jobs_per_device", 1),
            ("threads", 1),
            ("latency_batch", 1),
            ("latency_rounds", 0),
        ):
            value = getattr(self, name)
            if value is not None and value < least:
                raise InputError(f"--{name.replace('_', '-')} is {value}; it must be at least {least}.")
        self._require_runtime()
        if self.folds is not None:
            self._require_folds()
        if str(self.recipe.devices) not in ("auto", "1") or self.recipe.num_nodes != 1:
            raise InputError("a comparison runs each training on one device; leave --devices and --num-nodes out.")

    def _require_runtime(self) -> None:
        """Before the trainings: afterwards it would be found out hours later."""
        from xvolution.deploy.measure import TORCH
        from xvolution.deploy.runtimes import RUNTIMES, ExportError, detector_runtimes

        name = self.latency_runtime
        if name == TORCH:
            return
        if name not in RUNTIMES:
            raise InputError(f"--latency-runtime is {name}; allowed are {TORCH}, {', '.join(RUNTIMES)}.")
        runtime = RUNTIMES[name]
        detects = self.recipe.task != CLASSIFY.name
        if detects and name not in detector_runtimes():
            raise InputError(
                f"--latency-runtime is {name}, which does not take whole detectors; allowed with --task {self.recipe.task} are "
                f"{TORCH}, {', '.join(detector_runtimes())}."
            )
        if self.latency_batch > 1 and (detects or not runtime.batched):
            taker = "an exported detector" if detects else runtime.title
            raise InputError(f"--latency-batch is {self.latency_batch}, and {taker} takes one image at a time; give 1.")
        try:
            runtime.require_writer()
        except ExportError as error:
            raise InputError(f"--latency-runtime is {name}, but {error}.") from error
        if runtime.unrunnable():
            raise InputError(f"--latency-runtime is {name}, but it does not run here: {runtime.unrunnable()}.")

    def _require_folds(self) -> None:
        assert self.folds is not None
        Fold(1, self.folds)
        if self.recipe.task != CLASSIFY.name:
            raise InputError(f"--folds is {self.folds}; it is for classifiers, and the task is {self.recipe.task}.")
        if self.recipe.holdout is not None:
            raise InputError(
                f"--folds is {self.folds} and --holdout {self.recipe.holdout}; both say what judges: give one."
            )
        if any(variant.applied(self.recipe).to_dict().get("teacher") for variant in self.variants):
            raise InputError(
                f"--folds is {self.folds}, and a network has a teacher, which may have learned from the images that judge; leave "
                "one of them out."
            )

    @property
    def folder(self) -> Path:
        """The folder that the comparison writes to."""
        if self.output is not None:
            return Path(self.output).expanduser()
        return Path("runs") / f"compare-{self.recipe.trained}"
