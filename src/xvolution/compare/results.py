"""The figures of the report, computed from the finished cells."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import combinations
from typing import Any

from xvolution.compare.config import CompareConfig
from xvolution.compare.grid import Cell, identity, read_json
from xvolution.compare.register import comparison_of
from xvolution.compare.statistics import Interval, mean_interval, paired_difference, pareto_front
from xvolution.compare.task import ComparedTask
from xvolution.compare.verdict import headline, verdict
from xvolution.conversion.attention_share import hardly_begun, largest_shares

MEDIANS = ("parameters", "flops", "deployed_parameters", "deployed_flops", "seconds_per_epoch", "peak_memory_bytes")


def gather(
    config: CompareConfig, grid: Sequence[Cell], conditions: Mapping[str, Any], latency: Mapping[str, Any] | None
) -> dict[str, Any]:
    """All figures of the report as JSON values, the content of `results.json`."""
    task = comparison_of(config.recipe)
    done = {cell.name: result for cell in grid if (result := cell.result()) is not None}
    by_label: dict[str, list[Cell]] = {variant.label: [] for variant in config.variants}
    for cell in grid:
        by_label[cell.variant.label].append(cell)
    rows = [_row(config, task, by_label, label, done, latency) for label in by_label]
    _mark_front(rows)
    for row in rows:
        row["verdict"] = verdict(row, config.baseline, rows)
        row["verdict"] += "" if row["asleep"] is None else "; its attention hardly contributes yet"
    return {
        "asleep": [f"{row['label']}: {row['asleep']}" for row in rows if row["asleep"] is not None],
        "headline": headline(rows, config.baseline, len(config.seeds), task.metric.name),
        "task": config.recipe.task,
        "network": config.recipe.network,
        "metrics": [asdict(metric) for metric in task.metrics],
        "flops_of": next((task.counted(result) for result in done.values()), None),
        "timed_on": task.timed_on,
        "judged_anew": task.judged_anew,
        "baseline": config.baseline,
        "seeds": list(config.seeds),
        "folds": config.folds,
        "images": max((result["images"] for result in done.values()), default=0),
        "variants": rows,
        "pairs": _pairs(config, task, by_label, done),
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
    task: ComparedTask[Any, Any],
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
        "command": first.commands[0],
        "score": None,
        "metrics": {},
        **_difference(task, by_label[label], by_label[config.baseline], done),
        "latency": None,
        "asleep": None,
    }
    row |= {name: _median(own, name) if own else None for name in MEDIANS}
    row |= {f"{name}_ratio": row[name] / _median(base, name) if own and base else None for name in MEDIANS}
    if own:
        row["score"] = _values(mean_interval([result[task.metric.key] for result in own.values()]))
        row["metrics"] = {
            metric.key: statistics.mean(result[metric.key] for result in own.values()) for metric in task.metrics
        }
        # Results of older versions say none.
        row["asleep"] = hardly_begun(largest_shares([result.get("attention_shares", {}) for result in own.values()]))
    if latency is not None:
        row["latency"] = latency["forms"].get(label)
    return row


def _pairs(
    config: CompareConfig,
    task: ComparedTask[Any, Any],
    by_label: Mapping[str, list[Cell]],
    done: Mapping[str, dict[str, Any]],
) -> list[dict[str, Any]]:
    """Differences between every two variants other than the baseline."""
    pairs = []
    for against, label in combinations((label for label in by_label if label != config.baseline), 2):
        found = _difference(task, by_label[label], by_label[against], done)
        if found["difference"] is not None:
            pairs.append({"label": label, "against": against, **found})
    return pairs


def _difference(
    task: ComparedTask[Any, Any], own: Sequence[Cell], base: Sequence[Cell], done: Mapping[str, dict[str, Any]]
) -> dict[str, Any]:
    """The difference ``own`` minus ``base`` over the seeds that both have finished.

    Returns:
        ``differences``: of each metric, by seeds; ``difference``: that of the first; ``bootstrap``: of the first, by seeds and
        images. Empty and None without a common seed, and of a variant with itself.
    """
    results, base_results = _results(own, done), _results(base, done)
    seeds = results.keys() & base_results.keys()
    if not seeds or own is base:
        return {"difference": None, "differences": {}, "bootstrap": None}
    differences = {
        metric.key: _values(
            paired_difference(*({seed: side[seed][metric.key] for seed in seeds} for side in (results, base_results)))
        )
        for metric in task.metrics
    }
    folders = ([cell.folder for cell in side if cell.train.seed in seeds] for side in (own, base))
    return {
        "difference": differences[task.metric.key],
        "differences": differences,
        "bootstrap": _values(task.bootstrap(*folders)),
    }


def _results(cells: Sequence[Cell], done: Mapping[str, dict[str, Any]]) -> dict[int, dict[str, Any]]:
    return {cell.train.seed: done[cell.name] for cell in cells if cell.name in done}


def _median(results: Mapping[int, dict[str, Any]], name: str) -> float:
    """Over seeds; a count stays a whole number between two seeds."""
    values = [each[name] for each in results.values()]
    return round(statistics.median(values)) if isinstance(values[0], int) else statistics.median(values)


def _values(interval: Interval | None) -> dict[str, Any] | None:
    return None if interval is None else {**asdict(interval), "half": interval.half}


def _mark_front(rows: Sequence[dict[str, Any]]) -> None:
    """Mark the rows on the Pareto front of accuracy over FLOPs of the deployed form."""
    done = [row for row in rows if row["score"] is not None]
    front = pareto_front([row["deployed_flops"] for row in done], [row["score"]["estimate"] for row in done])
    best = {done[index]["label"] for index in front}
    for row in rows:
        row["pareto"] = row["label"] in best


def as_csv(figures: Mapping[str, Any]) -> str:
    """One line for each finished cell."""
    text = io.StringIO()
    metrics = [metric["key"] for metric in figures["metrics"]]
    columns = ("label", "operator", "seed", *metrics, "images", *MEDIANS, "device", "threads", "command")
    writer = csv.DictWriter(text, fieldnames=columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows({**cell, "command": " ".join(cell["command"])} for cell in figures["cells"])
    return text.getvalue()
