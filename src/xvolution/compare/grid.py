"""The grid of a comparison: its cells in the order of running, and the settings that identify a cell."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from xvolution.compare.config import CompareConfig
from xvolution.compare.variants import PLACEMENT, TRAINING, Variant
from xvolution.training.commands import train_flags
from xvolution.training.config import RunConfig
from xvolution.training.errors import InputError
from xvolution.training.files import write_text
from xvolution.training.fold import Fold

# Where and how a training runs; the rest of its configuration decides what comes out.
CIRCUMSTANCES = (
    "output",
    "resume",
    "progress",
    "workers",
    "checkpoint_every",
    "accelerator",
    "devices",
    "num_nodes",
    "strategy",
)
PER_CELL = ("seed", "operator", "operator_options", *PLACEMENT, *TRAINING)
#: Settings that name a file, in which ``{seed}`` is the seed of the cell.
STARTING_FILES = ("weights", "teacher", "backbone_weights")


@dataclass(frozen=True)
class Cell:
    """One training of the grid.

    Attributes:
        variant: the operator and its options.
        train: the configuration of the training.
        folds: number of networks, each trained without one part of the images and evaluated on it; None for one network that
            is evaluated on the validation part.
    """

    variant: Variant
    train: RunConfig
    folds: int | None = None

    @property
    def name(self) -> str:
        return f"{self.variant.label} seed {self.train.seed}"

    @property
    def folder(self) -> Path:
        return self.train.run_dir

    @cached_property
    def trainings(self) -> list[RunConfig]:
        """The configurations of its networks: one, or one for each fold, in a folder of its own."""
        if self.folds is None:
            return [self.train]
        folds = [Fold(number, self.folds) for number in range(1, self.folds + 1)]
        return [
            replace(self.train, holdout=str(fold), output=str(self.folder / f"fold{fold.number}")) for fold in folds
        ]

    @property
    def epochs(self) -> int:
        """Of all its networks together."""
        return self.train.epochs * len(self.trainings)

    @property
    def checkpoint(self) -> Path:
        """Of its first network, after the last epoch."""
        return self.trainings[0].run_dir / "last.ckpt"

    @cached_property
    def digest(self) -> str:
        """Differs where anything differs that decides the training's result."""
        values = identity(self.train) | ({} if self.folds is None else {"folds": self.folds})
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def commands(self) -> list[list[str]]:
        """The commands that train its networks alone."""
        return [["xvolution", "train", *train_flags(train)] for train in self.trainings]

    def result(self) -> dict[str, Any] | None:
        """The result of this or an earlier call; None if the cell is not finished, or was trained with another recipe."""
        found = read_json(self.folder / "result.json")
        return found if found is not None and found.get("digest") == self.digest else None


def cells(config: CompareConfig) -> list[Cell]:
    """All cells, seed by seed, so that an early stop leaves complete comparisons."""
    recipe = config.recipe
    split = recipe.split_seed if recipe.split_seed is not None else 0  # all seeds are judged by the same images
    grid = []
    for seed in config.seeds:
        for variant in config.variants:
            train = variant.applied(replace(recipe, seed=seed, split_seed=split, resume=None, progress="lines"))
            train = _with_files_of(seed, train)
            folder = config.folder / "cells" / variant.folder / f"seed{seed}"
            grid.append(Cell(variant, replace(train, output=str(folder)), config.folds))
    return grid


def _with_files_of(seed: int, train: RunConfig) -> RunConfig:
    """The settings with the seed's number in the place of ``{seed}`` in the names of files that a training starts from."""
    given = {name: getattr(train, name, None) for name in STARTING_FILES}
    files: dict[str, Any] = {n: value.replace("{seed}", str(seed)) for n, value in given.items() if value is not None}
    return replace(train, **files)


def identity(train: RunConfig) -> dict[str, Any]:
    """The settings that affect a training's result, as JSON values."""
    values = json.loads(json.dumps(train.to_dict()))
    return {name: value for name, value in values.items() if name not in CIRCUMSTANCES}


def claim(config: CompareConfig, grid: list[Cell]) -> None:
    """Store the comparison's settings in its folder, or check that they are the stored ones; variants and seeds may be added.

    Raises:
        InputError: the folder holds a comparison with another recipe.
    """
    path = config.folder / "comparison.json"
    shared = {name: value for name, value in identity(grid[0].train).items() if name not in PER_CELL}
    shared |= {"task": config.recipe.task, "folds": config.folds}
    variants = {
        variant.label: {n: v for n, v in identity(variant.applied(config.recipe)).items() if n in PER_CELL[1:]}
        for variant in config.variants
    }
    earlier = read_json(path) or {"recipe": {}, "variants": {}}
    before = {"folds": None, **earlier["recipe"]} if earlier["recipe"] else {}
    changes = _changes(before, shared)
    for label in [label for label in variants if label in earlier["variants"]]:
        stored = {**earlier["recipe"], **earlier["variants"][label]}  # what a variant may set was the recipe's once
        changes += [f"{label}: {change}" for change in _changes(stored, variants[label])]
    if changes:
        more = f" and {len(changes) - 3} more" if len(changes) > 3 else ""
        raise InputError(
            f"{config.folder} holds a comparison with another recipe ({'; '.join(changes[:3])}{more}); give "
            "another --output, or the recipe of that comparison."
        )
    values = {"recipe": shared, "variants": {**earlier["variants"], **variants}}
    write_text(path, json.dumps(values, indent=2) + "\n")


def _changes(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    changes = [
        f"{name} was {json.dumps(before[name])}, is {json.dumps(now[name])}"
        for name in now.keys() & before.keys()
        if before[name] != now[name]
    ]
    return sorted(changes, key=lambda change: (not change.startswith("task was"), change))  # the task explains the rest


def read_json(path: Path) -> dict[str, Any] | None:
    """The JSON object in a file that this package wrote; None if there is no file."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return values if isinstance(values, dict) else None
