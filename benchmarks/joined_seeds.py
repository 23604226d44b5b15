"""Differences over the seeds of several comparisons with the same recipe.

python -m benchmarks.joined_seeds results/tiny-imagenet/which-default.json results/tiny-imagenet/forms.json \
    --output results/tiny-imagenet/six-seeds.json

Each seed is paired with the same seed of the other network, in the same comparison and on the same machine. Intervals are
Student's, over seeds: the images that each network has right are not in the records.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.record import write_record
from xvolution.compare.statistics import paired_difference

METRICS = ("top1", "loss")
#: Settings that do not decide what comes out of a training.
FREE = ("outside_images",)

#: Label -> seed -> metric -> value.
Figures = dict[str, dict[int, dict[str, float]]]


def joined(records: Sequence[Mapping[str, Any]]) -> Figures:
    """The figures of all finished trainings of variants that every record has.

    Raises:
        ValueError: the recipes differ, or two records have the same seed of a variant.
    """
    first = _fixed(records[0]["recipe"])
    found: Figures = {}
    for record in records:
        changed = sorted(name for name, value in _fixed(record["recipe"]).items() if first.get(name) != value)
        if changed:
            raise ValueError(
                f"the comparisons have different recipes ({', '.join(changed)}); give those of one recipe."
            )
        for cell in record["cells"]:
            seeds = found.setdefault(cell["label"], {})
            if cell["seed"] in seeds:
                raise ValueError(
                    f"two comparisons have the seed {cell['seed']} of {cell['label']}; give each seed once."
                )
            seeds[cell["seed"]] = {metric: cell[metric] for metric in METRICS}
    shared = set.intersection(*({cell["label"] for cell in record["cells"]} for record in records))
    return {label: seeds for label, seeds in found.items() if label in shared}


def differences(figures: Figures) -> list[dict[str, Any]]:
    """Each pair of variants, the later one against the earlier one."""
    rows = []
    for against, label in itertools.combinations(figures, 2):
        row: dict[str, Any] = {"label": label, "against": against}
        for metric in METRICS:
            own, base = ({seed: each[metric] for seed, each in figures[name].items()} for name in (label, against))
            interval = paired_difference(own, base)
            row[metric] = None if interval is None else asdict(interval)
        rows.append(row)
    return rows


def _fixed(recipe: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in recipe.items() if name not in FREE}


def line(row: Mapping[str, Any]) -> str:
    """One pair in words."""
    top1, loss = (row[metric] for metric in METRICS)
    if top1 is None or top1["seeds"] < 2:
        return f"{row['label']} against {row['against']}: fewer than two seeds in common, no interval"
    points = "{:+.2f} points ({:+.2f} to {:+.2f})".format(*(100 * top1[end] for end in ("estimate", "low", "high")))
    losses = "loss {estimate:+.3f} ({low:+.3f} to {high:+.3f})".format(**loss)
    return f"{row['label']} against {row['against']}: {points}, {losses}, {top1['seeds']} seeds"


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.joined_seeds", description=__doc__.split("\n", 1)[0])
    parser.add_argument("records", nargs="+", type=Path, help="results of xvolution compare")
    parser.add_argument("--output", type=Path, help="file for the JSON")
    options = parser.parse_args()
    records = [json.loads(path.read_text(encoding="utf-8")) for path in options.records]
    figures = joined(records)
    rows = differences(figures)
    print("\n".join(map(line, rows)))
    if options.output is not None:
        commits = [record["conditions"]["commit"] for record in records]
        of = dict(zip(map(Path.as_posix, options.records), commits, strict=True))
        write_record(options.output, {"of": of, "differences": rows, "figures": figures})


if __name__ == "__main__":
    main()
