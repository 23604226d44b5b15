"""The trainings of the demo."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from xvolution import __version__
from xvolution.training import InputError, TrainConfig

Operator = Literal["conv", "xvolution"]
OPERATORS: tuple[Operator, ...] = ("conv", "xvolution")
# A ResNet small enough for two cores. At 16 pixels stages 2 and 3 have maps of 8x8 and 4x4.
MODEL = {"channels": [16, 32, 64, 128], "layers": [1, 1, 1, 1]}
STAGES = (2, 3)
IMAGE_SIZE = 16


@dataclass(frozen=True)
class Recipe:
    """The extent of the demo.

    Attributes:
        seeds: each trains both networks.
        epochs: of every training.
        rounds: samples of every latency.
        layout: in which the twins are deployed; auto times each layout.
    """

    seeds: tuple[int, ...]
    epochs: int
    rounds: int
    layout: str = "auto"

    @classmethod
    def choose(cls, quick: bool, seeds: Sequence[int] | None, epochs: int | None) -> Recipe:
        """The full or the quick recipe, with the given values.

        Raises:
            InputError: no seeds, or a seed twice.
        """
        recipe = cls((0,), epochs=3, rounds=15, layout="split") if quick else cls(seeds=(0, 1, 2), epochs=6, rounds=40)
        if seeds is not None:
            if not seeds or len(set(seeds)) != len(seeds):
                raise InputError(f"the seeds are {list(seeds)}; give at least one seed, and each seed only once.")
            recipe = replace(recipe, seeds=tuple(seeds))
        return recipe if epochs is None else replace(recipe, epochs=epochs)

    def training(self, operator: Operator, seed: int, folder: Path) -> TrainConfig:
        """One training; its folder's name depends on all settings that affect its result."""
        config = TrainConfig(
            model="resnet18",
            model_kwargs=MODEL,
            small_images=True,
            operator=operator,
            stages=list(STAGES),
            data="digits",
            image_size=IMAGE_SIZE,
            epochs=self.epochs,
            batch_size=32,
            optimizer="adamw",
            lr=3e-3,
            weight_decay=0.05,
            accelerator="cpu",
            devices=1,
            seed=seed,
            in_memory=True,
            progress="off",
        )
        description = json.dumps([__version__, config.to_dict()], sort_keys=True)
        digest = hashlib.sha256(description.encode()).hexdigest()[:8]
        return replace(config, output=str(folder / f"{operator}-seed{seed}-{digest}"))
