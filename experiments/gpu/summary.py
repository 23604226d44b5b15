"""The tables of what items wrote, with intervals over pictures and seeds."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from experiments.gpu.classify import unpacked
from experiments.gpu.precision import Matches, average_precision, from_json
from xvolution.compare.statistics import Interval, bootstrap_difference, resampled_difference

#: What the others are compared with.
_BASELINES = ("conv", "se")
_DRAWS = 200
_TRAINING = re.compile(r"(?P<label>.+) seed (?P<seed>\d+)")

#: Of one label: the record by seed.
Runs = Mapping[int, Mapping[str, Any]]


def summary(paths: Sequence[Path]) -> str:
    """Markdown: a table of the trainings and one of the times of each file."""
    parts = []
    for path in paths:
        records = json.loads(path.read_text(encoding="utf-8"))["records"]
        tables = [table for table in (trainings(records), times(records)) if table]
        parts.append("\n\n".join([f"## {path.stem}", *tables]))
    return "\n\n".join(parts)


def trainings(records: Mapping[str, Any]) -> str:
    """One line for each operator; empty where nothing was trained. Differences are in points, over the seeds that both have."""
    by_label: dict[str, dict[int, Any]] = {}
    for key, record in records.items():
        if found := _TRAINING.fullmatch(key):
            by_label.setdefault(found["label"], {})[int(found["seed"])] = record
    if not by_label:
        return ""
    figures = (
        ("mask_ap", "mask_ap50") if "mask_ap" in next(iter(by_label["conv"].values())) else ("top1", "top5", "loss")
    )
    against = [label for label in _BASELINES if label in by_label]
    rows = [["operator", "seeds", *figures, "parameters (M)", *(f"minus {label}" for label in against)]]
    for label, runs in by_label.items():
        means = [float(np.mean([_figure(record, name) for record in runs.values()])) for name in figures]
        shown = [
            f"{mean:.3f}" if name == "loss" else f"{100 * mean:.2f}" for name, mean in zip(figures, means, strict=True)
        ]
        size = f"{next(iter(runs.values()))['parameters'] / 1e6:.2f}"
        differences = ["" if label == other else _shown(difference(runs, by_label[other])) for other in against]
        rows.append([label, str(len(runs)), *shown, size, *differences])
    return _table(rows)


def times(records: Mapping[str, Any]) -> str:
    """One line for each comparison of latency: milliseconds of the baseline, and the other forms as ratios to it."""
    timed = {key: record["forms"] for key, record in records.items() if "forms" in record}
    if not timed:
        return ""
    names = list(dict.fromkeys(name for forms in timed.values() for name in forms if name != "conv"))
    rows = [["measured", "conv (ms)", *(f"{name} (ratio)" for name in names)]]
    for key, forms in timed.items():
        ratios = [f"{forms[name]['ratio']:.2f}" if name in forms else "" for name in names]
        rows.append([key, f"{forms['conv']['median_ms']:.3f}", *ratios])
    return _table(rows)


def difference(runs: Runs, baseline: Runs) -> Interval | None:
    """Top-1, or mask AP, minus the baseline's, paired by seed and picture; None without a common seed."""
    seeds = sorted(runs.keys() & baseline.keys())
    if not seeds:
        return None
    ours, theirs = [runs[seed] for seed in seeds], [baseline[seed] for seed in seeds]
    if "correct" in ours[0]:
        return bootstrap_difference(_correct(ours), _correct(theirs))
    found, others = ([from_json(run["images"]) for run in side] for side in (ours, theirs))
    images = len(found[0])
    drawn = np.random.default_rng(0).integers(0, images, (_DRAWS, images))
    return resampled_difference(_ap(found), _ap(others), _redrawn(found, drawn), _redrawn(others, drawn), images)


def _correct(runs: Sequence[Mapping[str, Any]]) -> NDArray[np.bool_]:
    """(seeds, pictures)."""
    return np.stack([unpacked(run["correct"], run["pictures"]) for run in runs])


def _ap(runs: Sequence[Sequence[Matches]]) -> NDArray[np.float64]:
    """(seeds,)."""
    return np.array([average_precision(images)[0] for images in runs])


def _redrawn(runs: Sequence[Sequence[Matches]], drawn: NDArray[np.int64]) -> NDArray[np.float64]:
    """(seeds, draws)."""
    return np.array([[average_precision([images[i] for i in draw])[0] for draw in drawn] for images in runs])


def _figure(record: Mapping[str, Any], name: str) -> float:
    return record[name] if name in record else record["epochs"][-1][name]


def _shown(interval: Interval | None) -> str:
    if interval is None:
        return ""
    if interval.low is None or interval.high is None:
        return f"{100 * interval.estimate:+.2f}"
    return f"{100 * interval.estimate:+.2f} ({100 * interval.low:+.2f} to {100 * interval.high:+.2f})"


def _table(rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    lines.insert(1, "|" + " --- |" * len(rows[0]))
    return "\n".join(lines)
