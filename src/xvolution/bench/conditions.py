"""The conditions of a measurement: machine, versions and system."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

#: Beginnings of the names of instruction sets that decide which kernels run.
_DECISIVE = ("avx2", "avx512", "avx_vnni", "amx")


def device_conditions() -> dict[str, Any]:
    """Processor, GPU, cores, threads and system of this machine."""
    gpu = {"gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}
    return {
        "processor": _processor(),
        **gpu,
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}",
    }


def instruction_sets() -> list[str]:
    """The instruction sets of this processor that decide which kernels run (AVX2, AVX-512, AMX); empty if unknown."""
    flags = _processor_lines("flags")
    return sorted(flag for flag in (flags[0].split() if flags else []) if flag.startswith(_DECISIVE))


def versions(packages: Sequence[str]) -> dict[str, str]:
    """Versions of Python and of the installed packages."""
    found = {"python": platform.python_version()}
    for name in packages:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _processor() -> str:
    """The processor's name if the system reports it."""
    names = _processor_lines("model name")
    return names[0] if names else platform.processor() or platform.machine()


def _processor_lines(name: str) -> list[str]:
    """The entries of Linux's /proc/cpuinfo under a name, one for each core; empty on other systems."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    return [line.partition(":")[2].strip() for line in lines if line.startswith(name)]
