"""The peak memory of a process."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass(frozen=True)
class Memory:
    """Bytes, and what they measure: the GPU's allocator or the whole process."""

    bytes: int
    where: str


def peak_memory() -> Memory:
    """The largest memory of this process so far: on the GPU if it used one, else in RAM."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated() > 0:
        return Memory(torch.cuda.max_memory_allocated(), "GPU")
    try:
        # Not getrusage: on Linux it begins with what the process held that started this one.
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        return Memory(1024 * int(status.partition("VmHWM:")[2].split()[0]), "process")
    except (OSError, IndexError):
        import resource

        return Memory(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, "process")  # bytes on macOS
