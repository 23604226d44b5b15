"""A result with everything that is needed to get it again, or to doubt it."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from xvolution.bench.conditions import device_conditions, versions
from xvolution.training.files import write_text

PACKAGES = ("xvolution", "torch", "torchvision", "timm")
#: What makes the same machine compute otherwise.
VARIABLES = ("OMP_NUM_THREADS", "ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")


def write_record(path: Path, result: Mapping[str, Any]) -> None:
    """Write ``result`` as JSON with command, commit, machine and versions beside it.

    Raises:
        RunError: the file cannot be written.
    """
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False
    ).stdout
    record = {
        **result,
        "command": shlex.join(["python", *sys.orig_argv[1:]]),
        "commit": commit.strip(),
        "machine": {
            **device_conditions(),
            "instruction_sets": _instruction_sets(),
            "torch_uses": torch.backends.cpu.get_cpu_capability(),
        },
        "environment": {name: os.environ[name] for name in VARIABLES if name in os.environ},
        "versions": versions(PACKAGES),
    }
    write_text(path, json.dumps(record, indent=1, default=str) + "\n")


def _instruction_sets() -> list[str]:
    """Those that decide which kernels run: AVX2, AVX-512, AMX. Empty where the system does not tell."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    flags = next((line.partition(":")[2].split() for line in lines if line.startswith("flags")), [])
    return sorted(flag for flag in flags if flag.startswith(("avx2", "avx512", "avx_vnni", "amx")))
