"""Everything a comparison is decided by."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from xvolution.compare.variants import Variant, with_baseline
from xvolution.training.config import RunConfig
from xvolution.training.errors import InputError


@dataclass
class CompareConfig:
    """A grid of trainings: every variant with every seed, all by one recipe.

    Args:
        recipe: of every training, of any task; its operator, seed, output and resume are the grid's to say.
        variants: what is compared; the baseline is put first, and added when it is missing.
        seeds: each trains every variant. Runs of one seed see the same images in the same order.
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
    """

    recipe: RunConfig
    variants: tuple[Variant, ...]
    seeds: tuple[int, ...] = (0, 1, 2)
    baseline: str = "conv"
    output: str | None = None
    jobs: int | None = None
    jobs_per_device: int = 1
    threads: int | None = None
    launcher: Literal["local", "slurm"] = "local"
    slurm: dict[str, Any] = field(default_factory=dict)
    latency_batch: int = 1
    latency_rounds: int = 20

    def __post_init__(self) -> None:
        self.variants = with_baseline(self.variants, self.baseline)
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise InputError(f"the seeds are {list(self.seeds)}; give at least one, and each once.")
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
        if str(self.recipe.devices) not in ("auto", "1") or self.recipe.num_nodes != 1:
            raise InputError("a comparison trains each cell on one device; leave --devices and --num-nodes out.")

    @property
    def folder(self) -> Path:
        """The folder that the comparison writes to."""
        if self.output is not None:
            return Path(self.output).expanduser()
        return Path("runs") / f"compare-{self.recipe.trained}"
