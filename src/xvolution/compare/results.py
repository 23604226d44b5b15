"""From the cells that are done to the figures of the report."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from xvolution.compare.config import CompareConfig
from xvolution.compare.grid import Cell, identity, read_json
from xvolution.compare.statistics import Interval, bootstrap_difference, mean_interval, paired_difference, pareto_front
from xvolution.compare.verdict import headline, verdict

MEDIANS = ("parameters", "flops", "deployed_parameters", "deployed_flops", "seconds_per_epoch", "peak_memory_bytes")
CSV_COLUMNS = ("label", "operator", "seed", "top1", "top5", "loss", "images", *MEDIANS, "device", "threads", "command")


def gather(
    config: CompareConfig, grid: Sequence[Cell], conditions: Mapping[str, Any], latency: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Everything that the report says, as JSON values: what `results.json` holds."""
    done = {cell.name: result for cell in grid if (result := cell.result()) is not None}
    by_label: dict[str, list[Cell]] = {variant.label: [] for variant in config.variants}
    for cell in grid:
        by_label[cell.variant.label].append(cell)
    rows = [_row(config, by_label, label, done, latency) for label in by_label]
    _mark_front(rows)
    for row in rows:
        row["verdict"] = verdict(row, config.baseline, rows)
    return {
        "headline": headline(rows, config.baseline, len(config.seeds)),
        "baseline": config.baseline,
        "seeds": list(config.seeds),
        "images": max((result["images"] for result in done.values()), default=0),
        "variants": rows,
        "cells": list(done.values()),
        "planned_cells": len(grid),
        "failures": [
            {"cell": cell.name, "error": error["error"], "log": str(cell.folder / "log.txt")}
            for cell in grid
            if cell.name not in done and (error := read_json(cell.folder / "error.json")) is not None
        ],
        "latency": latency,
        "recipe": {
            name: value
            for name, value in identity(config.recipe).items()
            if name not in ("seed", "operator", "operator_options")
        },
        "conditions": dict(conditions),
    }


def _row(
    config: CompareConfig,
    by_label: Mapping[str, list[Cell]],
    label: str,
    done: Mapping[str, dict[str, Any]],
    latency: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """One variant: means over its finished seeds, differences from the baseline, costs and ratios."""
    own = _results(by_label[label], done)
    base = _results(by_label[config.baseline], done)
    first = by_label[label][0]
    row: dict[str, Any] = {
        "label": label,
        **first.variant.to_dict(),
        "seeds": sorted(own),
        "command": first.command,
        "top1": None,
        "top5": None,
        "difference": None,
        "bootstrap": None,
        "latency": None,
    }
    row |= {name: statistics.median(each[name] for each in own.values()) if own else None for name in MEDIANS}
    row |= {
        f"{name}_ratio": row[name] / statistics.median(each[name] for each in base.values()) if own and base else None
        for name in MEDIANS
    }
    if own:
        row["top1"] = _values(mean_interval([result["top1"] for result in own.values()]))
        row["top5"] = statistics.mean(result["top5"] for result in own.values())
    if own and base and label != config.baseline:
        top1 = [{seed: result["top1"] for seed, result in results.items()} for results in (own, base)]
        row["difference"] = _values(paired_difference(*top1))
        row["bootstrap"] = _values(_bootstrap(by_label[label], by_label[config.baseline], own.keys() & base.keys()))
    if latency is not None:
        row["latency"] = latency["forms"].get(label)
    return row


def _results(cells: Sequence[Cell], done: Mapping[str, dict[str, Any]]) -> dict[int, dict[str, Any]]:
    return {cell.train.seed: done[cell.name] for cell in cells if cell.name in done}


def _bootstrap(own: Sequence[Cell], base: Sequence[Cell], seeds: set[int]) -> Interval | None:
    """None where no seed is common, or the seeds were not judged by the same images."""
    if not seeds:
        return None
    judged = [[_correct(cell) for cell in cells if cell.train.seed in seeds] for cells in (own, base)]
    indices = [index for side in judged for index, _ in side]
    if any(not np.array_equal(index, indices[0]) for index in indices):
        return None
    correct, baseline = (np.stack([each for _, each in side]) for side in judged)
    return bootstrap_difference(correct, baseline)


def _correct(cell: Cell) -> tuple[Any, Any]:
    with np.load(cell.folder / "correct.npz") as file:
        return file["index"], file["correct"]


def _values(interval: Interval | None) -> dict[str, Any] | None:
    return None if interval is None else {**asdict(interval), "half": interval.half}


def _mark_front(rows: Sequence[dict[str, Any]]) -> None:
    """Say which rows no other beats in accuracy over FLOPs of the deployed form."""
    done = [row for row in rows if row["top1"] is not None]
    front = pareto_front([row["deployed_flops"] for row in done], [row["top1"]["estimate"] for row in done])
    best = {done[index]["label"] for index in front}
    for row in rows:
        row["pareto"] = row["label"] in best


def as_csv(figures: Mapping[str, Any]) -> str:
    """One line for each finished cell."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=CSV_COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows({**cell, "command": " ".join(cell["command"])} for cell in figures["cells"])
    return text.getvalue()
