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

from xvolution.bench.conditions import device_conditions, instruction_sets, versions
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
            "instruction_sets": instruction_sets(),
            "torch_uses": torch.backends.cpu.get_cpu_capability(),
        },
        "environment": {name: os.environ[name] for name in VARIABLES if name in os.environ},
        "versions": versions(PACKAGES),
    }
    write_text(path, json.dumps(record, indent=1, default=str) + "\n")
