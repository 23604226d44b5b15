"""The register of tasks, with one object for each task. To add a task, add its object to `TASKS`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from xvolution.training.config import RunConfig
from xvolution.training.errors import InputError
from xvolution.training.tasks.base import Option, Task
from xvolution.training.tasks.classify import Classify
from xvolution.training.tasks.detect import Detect

__all__ = [
    "CLASSIFY",
    "DETECT",
    "SEGMENT",
    "TASKS",
    "Option",
    "Task",
    "config_from_dict",
    "own_options",
    "owners_of",
    "task_called",
    "task_of",
    "task_of_file",
]

CLASSIFY, DETECT, SEGMENT = Classify(), Detect("detect"), Detect("segment")
TASKS: dict[str, Task[Any, Any]] = {task.name: task for task in (CLASSIFY, DETECT, SEGMENT)}


def task_called(name: str) -> Task[Any, Any]:
    """The task with this name.

    Raises:
        InputError: there is no such task.
    """
    if name not in TASKS:
        raise InputError(f"--task is {name}; the tasks are {', '.join(TASKS)}.")
    return TASKS[name]


def task_of(config: RunConfig) -> Task[Any, Any]:
    """The task of a training's configuration."""
    return task_called(config.task)


def task_of_file(path: str | os.PathLike[str]) -> Task[Any, Any]:
    """The task of the network in a file of this library, of any ending.

    Raises:
        InputError: this library did not write the file, or the type of its network is unknown.
    """
    from xvolution.training.checkpoint import read_header
    from xvolution.training.metadata import type_of

    header = read_header(path)
    found = type_of(header)
    for task in TASKS.values():
        if task.recognizes(header):
            return task
    raise InputError(f"{path} holds a network of the unknown type {found}; the tasks are {', '.join(TASKS)}.")


def config_from_dict(values: dict[str, Any]) -> RunConfig:
    """The configuration of any task from the values of its ``to_dict``."""
    return task_called(values.get("task", CLASSIFY.name)).config(values)


def owners_of(command: str, option: str) -> list[str]:
    """The names of the tasks whose `evaluate`, `deploy` or `predict` takes an option."""
    return [task.name for task in TASKS.values() if option in {each.name for each in task.options.get(command, ())}]


def own_options(task: Task[Any, Any], command: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The given options without those that are None.

    Args:
        task: the task that must have them.
        command: evaluate, deploy or predict.
        given: values of the options by name.

    Raises:
        InputError: an option belongs to another task, or to none.
    """
    own = {option.name for option in task.options.get(command, ())}
    options = {name: value for name, value in given.items() if value is not None}
    for name in [name for name in options if name not in own]:
        owners = owners_of(command, name)
        belongs = f"it is an option of {', '.join(owners)}; leave it out" if owners else "no task has such an option"
        raise InputError(f"--{name.replace('_', '-')} cannot be used for {task.metadata.noun}: {belongs}.")
    return options
