"""Writing files completely or not at all, and error messages if that fails."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from xvolution.files import written_whole
from xvolution.training.errors import RunError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_ADVICE = {
    **dict.fromkeys((*_FULL, errno.EIO), "free some space or give another folder"),
    errno.EROFS: "the disk is read-only; give another folder",
    errno.EACCES: "you may not write there; give another folder, or get write permission",
    errno.EPERM: "you may not write there; give another folder, or get write permission",
    errno.EEXIST: "a file has the name of a folder that is needed; move it, or give another folder",
    errno.ENOTDIR: "a file has the name of a folder that is needed; move it, or give another folder",
    errno.EISDIR: "a folder has this name; give another name",
    errno.ENAMETOOLONG: "give a shorter name",
    errno.ELOOP: "its symbolic links form a loop; give another path",
    errno.ENOENT: "its folder has been deleted; give another one",
}
# torch's archive writer and safetensors report a short write in exceptions of their own.
_SHORT_WRITE = (
    "PytorchStreamWriter failed",
    "unexpected pos",
    "No space left",
    "File too large",
    "I/O error",
    "IoError",
)


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """`xvolution.files.written_whole`, with an error message if a file cannot be written.

    Raises:
        RunError: the disk is full, or the file cannot be written where it should be.
    """
    try:
        with written_whole(path) as temporary:
            yield temporary
    except BaseException as error:
        if is_write_error(error):
            raise RunError(f"{path} could not be written ({why_unwritten(error)}).") from error
        raise


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a text file, whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextmanager
def write_errors(folder: str | os.PathLike[str]) -> Iterator[None]:
    """Turn the error of a full disk into a RunError, in a block in which other libraries write into `folder`.

    Raises:
        RunError: the disk is full or its limit is reached.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in (*_FULL, errno.EROFS):
            raise
        raise RunError(f"{folder} could not be written to ({why_unwritten(error)}).") from error


def is_write_error(error: BaseException) -> bool:
    """Whether an error means that a file could not be written: an OSError, or an error that torch or safetensors made of one."""
    if isinstance(error, OSError):
        return True
    text = str(error)
    return type(error).__name__ in ("RuntimeError", "SafetensorError") and any(kind in text for kind in _SHORT_WRITE)


def why_unwritten(error: BaseException) -> str:
    """The cause, and what to do about it."""
    if not isinstance(error, OSError):
        return f"only a part of it was written to the disk: {_ADVICE[errno.EIO]}"
    cause, advice = error.strerror or str(error), _ADVICE.get(error.errno or 0)
    return cause if advice is None else f"{cause}: {advice}"
