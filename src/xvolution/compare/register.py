"""Comparisons by the name of their task; a task that is not listed here can be trained but not compared."""

from __future__ import annotations

import importlib
from typing import Any

from xvolution.compare.task import ComparedTask
from xvolution.training.config import RunConfig
from xvolution.training.errors import InputError

#: Module and object of each task, imported when it is asked for: classifiers are compared where pycocotools is missing.
COMPARED = {
    "classify": ("xvolution.compare.classify", "CLASSIFIERS"),
    "detect": ("xvolution.compare.detect", "DETECTORS"),
    "segment": ("xvolution.compare.detect", "DETECTORS_WITH_MASKS"),
}


def comparison_of(recipe: RunConfig) -> ComparedTask[Any, Any]:
    """The comparison of a recipe's task.

    Raises:
        InputError: the task cannot be compared.
    """
    if recipe.task not in COMPARED:
        raise InputError(f"--task is {recipe.task}; the tasks that can be compared are {', '.join(COMPARED)}.")
    module, name = COMPARED[recipe.task]
    return getattr(importlib.import_module(module), name)
