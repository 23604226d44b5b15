"""Writing files whole or not at all."""

from __future__ import annotations

import errno
import functools
import os
import re
import shutil
import socket
import stat
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

#: Endings of folders that are one file to those who use them, and are replaced as one.
_FOLDERS = (".mlpackage",)
#: Temporaries on another machine are swept when nothing has touched them for so many seconds.
_FORGOTTEN = 24 * 3600
#: A temporary's name: what is written, then machine, process and something random.
_TEMPORARY = re.compile(r"\..*\.(?P<host>[^.]*)\.(?P<process>\d+)\.[^.]*\.partial")

# Folders that this process writes to now: another one may have had its number before.
_open: set[Path] = set()


@contextmanager
def written_whole(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a path of the same name in a temporary folder; the file moves to its place if the block succeeds.

    Further files of the folder, such as the weights beside a graph, move beside the file. If the block fails, nothing
    changes. Links are followed. Pipes and devices such as ``/dev/null`` are written to and not replaced. Temporary files
    of killed processes in the folder are removed first.

    Raises:
        OSError: something could not be written.
    """
    special = _is_special(path)
    target = Path(path) if special else _target(path)
    if not special:
        target.parent.mkdir(parents=True, exist_ok=True)
        _sweep_once(target.parent)
    prefix = f".{target.name[:64]}.{_host()}.{os.getpid()}."
    folder = Path(tempfile.mkdtemp(".partial", prefix, None if special else target.parent))
    _open.add(folder)
    try:
        yield folder / target.name
        if special:
            _copy_into(folder / target.name, target)
        else:
            _move(folder, target)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        _open.discard(folder)


def sweep(folder: Path) -> None:
    """Remove the temporaries that killed processes have left in a folder."""
    with suppress(OSError):  # a folder that cannot be listed has nothing that could be removed
        for entry in os.scandir(folder):
            found = _TEMPORARY.fullmatch(entry.name)
            if found and _is_left(Path(entry.path), found["host"], int(found["process"])):
                shutil.rmtree(entry.path, ignore_errors=True)


@functools.cache
def _sweep_once(folder: Path) -> None:
    sweep(folder)


def _is_left(path: Path, host: str, process: int) -> bool:
    """Whether the process that was writing a temporary has ended."""
    if path in _open:
        return False
    if os.name == "posix" and host == _host():
        return process == os.getpid() or not _is_alive(process)
    newest = max(entry.stat().st_mtime for entry in (path, *path.iterdir()))
    return time.time() - newest > _FORGOTTEN


@functools.cache
def _host() -> str:
    return re.sub(r"[^\w-]", "_", socket.gethostname())[:64]


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it is another user's
        return True
    return True


def _target(path: str | os.PathLike[str]) -> Path:
    """The file itself, where a path is a link to it."""
    path = Path(path)
    # Links in a circle have no end; the first attempt to write says so.
    return Path(os.path.realpath(path)) if path.is_symlink() else path


def _is_special(path: str | os.PathLike[str]) -> bool:
    """Whether a path is written to instead of replaced: a device, a pipe, or this process's output."""
    try:
        found = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    if stat.S_ISDIR(found.st_mode):
        if Path(path).suffix in _FOLDERS:
            return False
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    return not stat.S_ISREG(found.st_mode) or any(os.path.samestat(found, other) for other in _outputs())


def _outputs() -> Iterator[os.stat_result]:
    for number in (1, 2):
        with suppress(OSError):  # closed
            yield os.fstat(number)


def _copy_into(source: Path, target: Path) -> None:
    if sys.stdout is not None:
        sys.stdout.flush()
    # Appending: a file that this process prints to keeps what it has.
    with open(source, "rb") as file, os.fdopen(os.open(target, os.O_WRONLY | os.O_APPEND), "wb") as sink:
        shutil.copyfileobj(file, sink)


def _move(folder: Path, target: Path) -> None:
    """Move the files to their places, the requested file last.

    It is missing while the others change, so that a kill never leaves it beside files of another version.
    """
    written = sorted(folder.iterdir(), key=lambda file: (file.name == target.name, file.name))
    for file in written:
        _flush(file)
    places = [target.with_name(file.name) for file in written]
    for place in places:
        if place.is_dir() and place.suffix not in _FOLDERS:
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(place))
    if len(written) > 1:
        _target(target).unlink(missing_ok=True)
    if target.is_dir():
        os.replace(target, folder / "replaced")
    for file, place in zip(written, places, strict=True):
        os.replace(file, _target(place))


def _flush(path: Path) -> None:
    if path.is_dir():
        for inner in path.iterdir():
            _flush(inner)
        return
    with open(path, "rb") as file:
        os.fsync(file.fileno())
