"""Benchmarks: time in turns, operations, parameters.

The names are imported when they are used, so that the command line answers `--help` without torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from xvolution.conversion.summary import count_flops as count_flops
    from xvolution.conversion.summary import count_parameters as count_parameters
    from xvolution.deploy.latency import Latency as Latency
    from xvolution.deploy.latency import LatencyComparison as LatencyComparison
    from xvolution.deploy.latency import measure_latency as measure_latency

_HOMES = {
    "Latency": "deploy.latency",
    "LatencyComparison": "deploy.latency",
    "count_flops": "conversion.summary",
    "count_parameters": "conversion.summary",
    "measure_latency": "deploy.latency",
}

__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"xvolution.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(_HOMES)
