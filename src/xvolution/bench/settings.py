"""Checks of flag values and the number of threads, shared by all benches."""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch

from xvolution.training.errors import InputError


def require_known(flag: str, given: Sequence[str], allowed: Sequence[str]) -> None:
    """Raise ``InputError`` unless at least one value is given and all values are allowed."""
    unknown = [name for name in given if name not in allowed]
    if unknown or not given:
        raise InputError(f"--{flag} is {', '.join(unknown) or 'empty'}; allowed are {', '.join(allowed)}.")


def require_at_least(flag: str, given: int | Sequence[int], least: int) -> None:
    """Raise ``InputError`` unless at least one number is given and none is below ``least``."""
    numbers = [given] if isinstance(given, int) else list(given)
    if not numbers or min(numbers) < least:
        said = ", ".join(map(str, numbers)) or "empty"
        raise InputError(f"--{flag} is {said}; it must be at least {least}.")


def require_device(device: str) -> None:
    """Raise ``InputError`` unless this machine has ``device``."""
    require_known("device", [device], ("cpu", "cuda"))
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("--device is cuda, but this machine has no CUDA device; give --device cpu.")


def thread_count(threads: int) -> int:
    """The number of threads; all cores for 0."""
    return threads or os.cpu_count() or 1
