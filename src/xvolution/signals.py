"""Signals that ask to stop: SIGTERM and SIGHUP (from schedulers, containers, closed terminals) are handled like Ctrl-C."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import NoReturn

#: The requests that there are on this system, Ctrl-C first.
REQUESTS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


class Ended(KeyboardInterrupt):
    """A request to stop, as an exception. Code that handles Ctrl-C also handles it.

    Args:
        signum: the signal.
    """

    def __init__(self, signum: int = signal.SIGINT) -> None:
        super().__init__(signum)
        self.signum = signum


def status(error: BaseException) -> int:
    """The exit code of a command after a request to stop: 128 plus the signal's number, as in shells."""
    return 128 + getattr(error, "signum", signal.SIGINT)


def heeded() -> list[int]:
    """The signals that this process should handle: in the main thread, those that it was not told to ignore.

    ``nohup`` makes a process ignore SIGHUP. SIGINT is always handled: shells make background processes ignore it, but a
    comparison sends it to its trainings.
    """
    if threading.current_thread() is not threading.main_thread():
        return []
    return [s for s in REQUESTS if s == signal.SIGINT or signal.getsignal(s) != signal.SIG_IGN]


#: Seconds that a process which loads images outlives a request to end, when nobody ends it before.
_OUTLIVED = 60


def end_with_parent(worker: int) -> None:
    """Make a process that loads images ignore requests to stop, which its parent handles.

    Schedulers send them to all processes of a run at once. Without its loaders the training could not finish the step and
    could not write a checkpoint. Passed to ``DataLoader`` as ``worker_init_fn``.
    """

    def wait(signum: int, frame: FrameType | None) -> None:
        signal.alarm(_OUTLIVED)

    if hasattr(signal, "alarm"):
        for signum in REQUESTS:
            if signum != signal.SIGINT:
                signal.signal(signum, wait)


@contextmanager
def ending_politely() -> Iterator[None]:
    """Raise `Ended` when the process is asked to stop; during an import, exit at once."""

    def end(signum: int, frame: FrameType | None) -> None:
        if _is_importing(frame):
            _leave(signum)
        raise Ended(signum)

    # What has Ctrl-C ignored, or handles it itself, keeps that.
    usual = (signal.SIG_DFL, signal.default_int_handler)
    requests = [s for s in heeded() if s != signal.SIGINT or signal.getsignal(s) in usual]
    before = {signum: signal.signal(signum, end) for signum in requests}
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def _leave(signum: int) -> NoReturn:
    """Exit the process. An exception would pass through half-initialized libraries, which drop it or print tracebacks."""
    with suppress(OSError, AttributeError, ValueError):  # closed or full
        sys.stdout.flush()
    with suppress(OSError):
        os.write(2, b"xvolution: interrupted.\n")
    os._exit(128 + signum)
