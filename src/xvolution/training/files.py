"""Writing files whole or not at all."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from xvolution.training.errors import RunError


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary path in the same folder to write to; it takes the name `path` when the block ends well.

    The temporary file keeps the path's ending and is removed when the block fails.

    Raises:
        RunError: the disk is full, or the folder cannot be written to.
    """
    path = Path(path)
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.stem}-", suffix=path.suffix, dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        yield temporary
        _flush(temporary)
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException as error:
        if temporary is not None:
            with suppress(OSError):
                temporary.unlink()
        if is_write_error(error):
            raise RunError(
                f"{path} could not be written ({_reason(error)}); free some space or take another folder."
            ) from error
        raise


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a text file, whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextmanager
def write_errors(folder: str | os.PathLike[str]) -> Iterator[None]:
    """Turn a full disk under a block that writes into `folder` by other libraries into a sentence.

    Raises:
        RunError: the disk is full or its limit is reached.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT, errno.EROFS):
            raise
        raise RunError(
            f"{folder} could not be written to ({error.strerror}); free some space or take another folder."
        ) from error


def is_write_error(error: BaseException) -> bool:
    """Whether an error says that a file could not be written: an OSError, or what torch and safetensors make of one."""
    if isinstance(error, OSError):
        return True
    # torch's archive writer and safetensors report a short write in exceptions of their own.
    text = str(error)
    kinds = ("PytorchStreamWriter failed", "unexpected pos", "No space left", "File too large", "I/O error", "IoError")
    return type(error).__name__ in ("RuntimeError", "SafetensorError") and any(kind in text for kind in kinds)


def _reason(error: BaseException) -> str:
    return error.strerror or str(error) if isinstance(error, OSError) else "the disk took only a part of it"


def _flush(path: Path) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
