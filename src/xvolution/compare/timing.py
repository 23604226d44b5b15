"""Latency of the deployed forms, in turns on this machine."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import torch

from xvolution.bench import measure_latency
from xvolution.bench.conditions import device_conditions
from xvolution.compare.config import CompareConfig
from xvolution.compare.grid import Cell, read_json
from xvolution.compare.register import comparison_of
from xvolution.compare.task import Timing
from xvolution.deploy.measure import TORCH
from xvolution.deploy.runtimes import RUNTIMES, ExportError
from xvolution.operator import ReparameterizationError
from xvolution.training.errors import RunError
from xvolution.training.files import write_text
from xvolution.training.progress import counting


def latencies(config: CompareConfig, grid: Sequence[Cell]) -> dict[str, Any] | None:
    """Time the deployed form of one finished cell of each variant; earlier measurements are read from `latency.json`.

    Returns:
        ``forms`` by label (median and quartiles in ms, ratio to the baseline, layouts) and the conditions of the measurement;
        None if nothing is to be measured.

    Raises:
        RunError: a deployed form differs from the trained network, or the runtime cannot run it.
    """
    chosen: dict[str, Cell] = {}
    for cell in grid:
        if cell.result() is not None:
            chosen.setdefault(cell.variant.label, cell)
    if config.latency_rounds == 0 or config.baseline not in chosen:
        return None
    wanted = {
        "cells": {label: cell.digest for label, cell in chosen.items()},
        "batch_size": config.latency_batch,
        "rounds": config.latency_rounds,
        "runtime": config.latency_runtime,
    }
    path = config.folder / "latency.json"
    earlier = {"runtime": TORCH, **(read_json(path) or {})}
    if all(earlier.get(name) == value for name, value in wanted.items()):
        return earlier
    in_torch = config.latency_runtime == TORCH
    on_gpu = in_torch and torch.cuda.is_available() and config.recipe.accelerator != "cpu"
    timing = Timing(config.latency_batch, torch.device("cuda" if on_gpu else "cpu"), config.latency_runtime)
    measured = {
        **wanted,
        "measured_in": "" if in_torch else _named(config.latency_runtime),
        "device": device_conditions(),
        "on": timing.device.type,
        "forms": _measure(config, chosen, timing),
    }
    write_text(path, json.dumps(measured, indent=2) + "\n")
    return measured


def _named(runtime: str) -> str:
    return f"{RUNTIMES[runtime].title} {RUNTIMES[runtime].version()}"


def _measure(config: CompareConfig, chosen: dict[str, Cell], timing: Timing) -> dict[str, dict[str, Any]]:
    checkpoints = {label: cell.checkpoint for label, cell in chosen.items()}
    try:
        timed = comparison_of(config.recipe).forms(config.recipe, checkpoints, timing)
    except (ReparameterizationError, ExportError) as error:
        raise RunError(
            f"no latency was measured: {error}. The report has all other results; give --latency-rounds 0 to "
            "leave latency out."
        ) from error
    calls = {label: form.call for label, form in timed.items()}
    with counting(config.latency_rounds, "timing") as advance:
        comparison = measure_latency(calls, config.latency_rounds, after_round=advance)
    forms = {label: dict(form.facts) for label, form in timed.items()}
    for label, latency in comparison.latencies.items():
        forms[label] |= {
            "median_ms": latency.median * 1e3,
            "quartiles_ms": [quartile * 1e3 for quartile in latency.quartiles],
            "ratio": comparison.ratio(label, config.baseline),
        }
    return forms
