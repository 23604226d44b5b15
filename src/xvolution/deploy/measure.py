"""Which of several equal modules is fastest here."""

from __future__ import annotations

import time
from collections.abc import Sequence
from statistics import median

import torch
from torch import Tensor, nn

_ROUNDS = 7
_chosen: dict[tuple, str] = {}


def fastest(candidates: Sequence[nn.Module], x: Tensor) -> nn.Module:
    """The candidate with the least median time on ``x``, measured interleaved on its device.

    The choice is remembered by the modules' configuration, shape, dtype, memory format, device and number of threads, so a
    network measures each distinct operator once.
    """
    key = (
        repr(candidates),
        tuple(x.shape),
        x.dtype,
        x.stride(),
        str(x.device),
        torch.get_num_threads(),
    )
    layouts = [str(candidate.layout) for candidate in candidates]
    if _chosen.get(key) not in layouts:
        times = interleaved_times(candidates, x)
        _chosen[key] = layouts[min(range(len(candidates)), key=lambda index: median(times[index]))]
    return candidates[layouts.index(_chosen[key])]


def interleaved_times(candidates: Sequence[nn.Module], x: Tensor) -> list[list[float]]:
    """Seconds of each candidate's forward pass, taken in turn so that drift of the machine meets all alike."""
    times: list[list[float]] = [[] for _ in candidates]
    with torch.inference_mode():
        for repetition in range(_ROUNDS + 2):
            for candidate, record in zip(candidates, times, strict=True):
                _synchronize(x.device)
                start = time.perf_counter()
                candidate(x)
                _synchronize(x.device)
                if repetition >= 2:
                    record.append(time.perf_counter() - start)
    return times


def _synchronize(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
