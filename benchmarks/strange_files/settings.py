"""Files of settings: a recipe of a training and a preset of a comparison."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any, ClassVar

import yaml

from benchmarks.strange_files.damage import crafted
from benchmarks.strange_files.subject import Read, Subject
from xvolution.compare.commands import parse_compare
from xvolution.training.commands import parse_run


class Recipe(Subject):
    name = "recipe"
    flag = "--config"
    content: ClassVar[dict[str, Any]] = {
        "model": "resnet18",
        "stages": [2, 3],
        "operator": "xvolution",
        "operator_options": {"window": 3, "attention_ratio": 0.25},
        "epochs": 3,
        "lr": 0.1,
        "decay_milestones": [1, 2],
        "auto_augment": "rand-m5",
        "pretrained": False,
    }

    def originals(self, folder: Path) -> list[Path]:
        (folder / f"{self.name}.yaml").write_text(yaml.safe_dump(self.content), encoding="utf-8")
        return [folder / f"{self.name}.yaml"]

    def craft(self, path: Path, rng: random.Random) -> bool:
        content = crafted(yaml.safe_load(path.read_text(encoding="utf-8")), rng)
        path.write_text(yaml.safe_dump(content), encoding="utf-8")
        return True

    def read(self, path: Path) -> Read:
        return Read(repr(parse_run([self.flag, str(path)])))


class Preset(Recipe):
    name = "preset"
    flag = "--preset"
    content: ClassVar[dict[str, Any]] = {
        "recipe": {"model": "resnet18", "epochs": 2, "batch_size": 64},
        "variants": {"conv": "conv", "wide": {"operator": "xvolution", "window": 5}},
        "seeds": 2,
        "baseline": "conv",
    }

    def read(self, path: Path) -> Read:
        return Read(repr(parse_compare([self.flag, str(path), "--output", str(path.parent / "comparison")])))
