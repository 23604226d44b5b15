"""Comparing what two models return: tensors, or any nesting of tuples, lists and dicts of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, is_dataclass
from typing import Any

import torch
from torch import Tensor

from xvolution.numerics import double

#: Relative error that rounding explains, by dtype, for a whole network.
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4, torch.bfloat16: 1e-1, torch.float16: 2e-2}


@dataclass(frozen=True)
class Difference:
    """Largest absolute difference between two outputs, and relative to the largest magnitude of the first."""

    absolute: float
    relative: float


def tensors_in(output: Any) -> list[Tensor]:
    """All tensors of a nested output, in a fixed order."""
    if isinstance(output, Tensor):
        return [output]
    if is_dataclass(output) and not isinstance(output, type):
        output = vars(output)
    if isinstance(output, Mapping):
        return [tensor for value in output.values() for tensor in tensors_in(value)]
    if isinstance(output, tuple | list):
        return [tensor for value in output for tensor in tensors_in(value)]
    return []


def difference(expected: Any, actual: Any) -> Difference:
    """The difference of ``actual`` from ``expected``; infinite if shapes differ or only one of them is finite."""
    pairs = list(zip(tensors_in(expected), tensors_in(actual), strict=False))
    if len(tensors_in(expected)) != len(tensors_in(actual)) or any(a.shape != b.shape for a, b in pairs):
        return Difference(float("inf"), float("inf"))
    absolute = scale = relative = 0.0
    for a, b in pairs:
        if not a.numel():
            continue
        wide_a, wide_b = double(a), double(b)
        same = (wide_a == wide_b) | (wide_a.isnan() & wide_b.isnan())
        error = torch.where(same, 0.0, (wide_a - wide_b).abs()).nan_to_num(nan=float("inf")).max().item()
        scale = wide_a.abs().nan_to_num(posinf=0.0).max().item()
        absolute = max(absolute, error)
        relative = max(relative, error / scale if scale else (0.0 if error == 0 else float("inf")))
    return Difference(absolute, relative)
