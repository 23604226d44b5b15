"""The ways a command can end early, each with a sentence the user can act on and an exit code."""

from __future__ import annotations

import signal


class InputError(ValueError):
    """What was given cannot be used: a file, a flag, a data set."""

    exit_code = 2


class RunError(RuntimeError):
    """A run that began well failed: a loss that is no number, a full disk."""

    exit_code = 1


class Interrupted(RunError):
    """The run was asked to end, by Ctrl-C, SIGTERM or SIGHUP, and wrote a checkpoint.

    Args:
        message: where it stopped.
        signum: the signal.
    """

    def __init__(self, message: str, signum: int = signal.SIGINT) -> None:
        super().__init__(message)
        self.signum = signum
        self.exit_code = 128 + signum
