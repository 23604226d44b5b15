"""The ways a command can end early, each with a sentence the user can act on and an exit code."""

from __future__ import annotations


class InputError(ValueError):
    """What was given cannot be used: a file, a flag, a data set."""

    exit_code = 2


class RunError(RuntimeError):
    """A run that began well failed: a loss that is no number, a full disk."""

    exit_code = 1


class Interrupted(RunError):
    """The user pressed Ctrl-C and the run wrote a checkpoint."""

    exit_code = 130
