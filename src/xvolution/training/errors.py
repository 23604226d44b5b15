"""Errors that end a command early, each with a message for the user and an exit code."""

from __future__ import annotations

import signal


class InputError(ValueError):
    """A given file, flag or data set cannot be used."""

    exit_code = 2


class RunError(RuntimeError):
    """A run failed after it had started: for example, the loss became NaN, or the disk is full."""

    exit_code = 1


class Interrupted(RunError):
    """Ctrl-C, SIGTERM or SIGHUP stopped the run, which wrote a checkpoint.

    Args:
        message: where it stopped.
        signum: the signal.
    """

    def __init__(self, message: str, signum: int = signal.SIGINT) -> None:
        super().__init__(message)
        self.signum = signum
        self.exit_code = 128 + signum
