"""Flags of options that only some tasks have."""

from __future__ import annotations

from xvolution.training.flags.flag import Flag
from xvolution.training.flags.parser import Parser
from xvolution.training.tasks import TASKS, owners_of


def add_task_options(parser: Parser, command: str) -> None:
    """Add the options of tasks that a command has, in a group for each set of tasks."""
    options = {option.name: option for task in TASKS.values() for option in task.options.get(command, ())}
    for option in options.values():
        kind = bool if option.type is bool else option.type | None
        owners = ", ".join(owners_of(command, option.name))
        parser.add_flag(f"of {owners}", Flag(option.name, kind, None, option.help))
