"""One process at a time writes to a folder."""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from xvolution.training.errors import RunError
from xvolution.training.files import why_unwritten


@contextmanager
def locked(folder: Path, name: str = ".lock", *, patience: float = 0.0) -> Iterator[None]:
    """Lock a folder against other processes while the block runs; the folder is created if it does not exist.

    The lock ends when the process ends, for any reason.

    Args:
        folder: the folder to lock.
        name: name of the lock's file in it; locks with different names are independent.
        patience: seconds to wait for another process.

    Raises:
        RunError: another process holds the lock, which the message names; or the folder cannot be written to.
    """
    lock, owner, made = folder / name, folder / f"{name}-owner", not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        held = FileLock(lock)
        held.acquire(timeout=patience)
    except Timeout:
        raise RunError(
            f"another process is writing to {folder}{_named(owner)}; wait for it, stop it, or give another --output."
        ) from None
    except OSError as error:
        raise RunError(f"{folder} could not be written to ({why_unwritten(error)}).") from error
    try:
        with suppress(OSError):  # who cannot be named still holds the lock
            owner.write_text(json.dumps({"process": os.getpid(), "host": socket.gethostname(), "command": sys.argv}))
        yield
    finally:
        with suppress(OSError):
            owner.unlink()
        held.release()
        with suppress(OSError):  # somebody may have moved the folder
            if made and all(path == lock for path in folder.iterdir()):  # the run ended before it wrote anything
                lock.unlink(missing_ok=True)
                folder.rmdir()


def _named(owner: Path) -> str:
    try:
        said = json.loads(owner.read_text())
        command = " ".join([Path(said["command"][0]).name, *said["command"][1:]])
        return f" (process {said['process']} on {said['host']}: {command})"
    except (OSError, ValueError, KeyError, IndexError, TypeError):
        return ""
