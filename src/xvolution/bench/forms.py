"""The forms of an operator that a bench compares, with their cost and time."""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

from xvolution.bench.results import Record
from xvolution.conversion.summary import count_flops, count_parameters
from xvolution.deploy.latency import LatencyComparison, measure_latency

#: Of one call: what would take more is named in the results, with the reason, and not run.
FLOPS_LIMIT = 1e12
#: A form slower than so many times the convolution is timed in fewer rounds.
SLOW = 6.0
SLOW_ROUNDS = 3


class _OutputBytes(TorchDispatchMode):
    """Adds up the bytes of all results of operations."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        tensors = output if isinstance(output, (tuple, list)) else [output]
        self.total += sum(t.numel() * t.element_size() for t in tensors if isinstance(t, Tensor))
        return output


def refusal(module: nn.Module, shape: tuple[int, ...]) -> str | None:
    """The reason why a call would take too long or too much memory, computed on the meta device; None if it would not.

    Args:
        module: the module to call; a copy on the meta device is called instead.
        shape: shape of its input.
    """
    module = deepcopy(module).to("meta")
    x = torch.empty(shape, device="meta", dtype=next(module.parameters()).dtype)
    flops = count_flops(module, x) or 0
    if flops > FLOPS_LIMIT:
        return f"one call takes {flops / 1e9:,.0f} GFLOPs"
    with torch.no_grad(), _OutputBytes() as outputs:
        module(x)
    allowed = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    if outputs.total > allowed:
        return f"one call writes {outputs.total / 2**30:.0f} GiB"
    return None


def cost(module: nn.Module, x: Tensor) -> Record:
    """Parameters, and FLOPs of one forward pass of ``x``."""
    return {"parameters": count_parameters(module), "flops": count_flops(module, x)}


def inference(module: nn.Module, x: Tensor) -> Callable[[], Tensor]:
    """A forward pass without gradients."""

    def call() -> Tensor:
        with torch.no_grad():
            return module(x)

    return call


def training(module: nn.Module, x: Tensor) -> Callable[[], object]:
    """A forward and backward pass, to the input and to every parameter."""
    x = x.detach().clone().requires_grad_()
    parameters = [x, *module.parameters()]
    with torch.no_grad():
        cotangent = torch.randn_like(module(x))

    def call() -> object:
        return torch.autograd.grad(module(x), parameters, cotangent, allow_unused=True)

    return call


def timed(calls: Mapping[str, Callable[[], object]], baseline: str, rounds: int) -> dict[str, Record]:
    """Median and quartiles in ms, and the ratio to ``baseline``; slow forms take turns with the baseline separately."""
    once = {name: _seconds(call) for name, call in calls.items()}
    slow = {name for name in calls if once[name] > max(SLOW * once[baseline], 0.02)}
    quick = {name: call for name, call in calls.items() if name not in slow}
    figures = _figures(measure_latency(quick, rounds, warmup=2), baseline)
    for name in sorted(slow):
        pair = {baseline: calls[baseline], name: calls[name]}
        figures[name] = _figures(measure_latency(pair, SLOW_ROUNDS, warmup=0), baseline)[name]
    return {name: figures[name] for name in calls}


def _seconds(call: Callable[[], object]) -> float:
    call()
    start = time.perf_counter()
    call()
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
    return time.perf_counter() - start


def _figures(measured: LatencyComparison, baseline: str) -> dict[str, Record]:
    return {
        name: {
            "median_ms": latency.median * 1e3,
            "quartiles_ms": [quartile * 1e3 for quartile in latency.quartiles],
            "ratio": measured.ratio(name, baseline),
            "rounds": len(latency.samples),
        }
        for name, latency in measured.latencies.items()
    }


def peak_bytes(call: Callable[[], object], device: torch.device) -> int:
    """Largest number of bytes that torch's allocator held during one call, beyond what it held before."""
    call()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        call()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "trace.json")
        profiler.export_chrome_trace(str(path))
        events = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
    changes = [event for event in events if event.get("name") == "[memory]" and event["args"]["Device Type"] == 0]
    held = peak = 0
    for event in sorted(changes, key=lambda event: event["ts"]):
        held += event["args"]["Bytes"]
        peak = max(peak, held)
    return peak
