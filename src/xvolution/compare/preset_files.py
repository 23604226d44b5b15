"""Presets: recipes, variants, seeds and folds in YAML, those of the paper's ablations among them."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from xvolution.training.errors import InputError

KEYS = ("recipe", "variants", "seeds", "folds", "baseline")


def preset_names() -> tuple[str, ...]:
    """The presets that come with the package."""
    folder = files("xvolution.compare") / "presets"
    return tuple(sorted(Path(entry.name).stem for entry in folder.iterdir() if entry.name.endswith(".yaml")))


def preset(name: str) -> dict[str, Any]:
    """A preset by its name, or a YAML file: ``recipe``, ``variants``, ``seeds``, ``folds``, ``baseline``.

    The recipe holds fields of TrainConfig, or of DetectionConfig with its ``task``.

    Raises:
        InputError: there is no such preset or file, or its content is not a preset.
    """
    if name in preset_names():
        text = (files("xvolution.compare") / "presets" / f"{name}.yaml").read_text(encoding="utf-8")
    else:
        try:
            text = Path(name).expanduser().read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(
                f"there is no preset {name!r}; the presets are {', '.join(preset_names())}, or give a YAML file."
            ) from error
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"the preset {name} is not valid YAML: {str(error).splitlines()[0]}.") from error
    unknown = sorted(set(values) - set(KEYS)) if isinstance(values, dict) else [str(type(values).__name__)]
    if unknown:
        raise InputError(f"the preset {name} has {', '.join(unknown)}; allowed are {', '.join(KEYS)}.")
    if not isinstance(values.get("recipe") or {}, dict):
        raise InputError(
            f"the recipe of the preset {name} is {values['recipe']!r}; it must be a mapping of settings, "
            "such as lr: 0.1."
        )
    return values
