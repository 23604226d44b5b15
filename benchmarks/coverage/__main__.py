"""Convert every architecture of timm and torchvision, each in its own process: ``python -m benchmarks.coverage``."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from benchmarks.coverage.networks import Architecture, architectures
from benchmarks.coverage.page import write_page
from benchmarks.coverage.run import Limits, Record, Results, examine_all


def _wanted(only: str | None, retry: bool, records: dict[str, Record]) -> list[Architecture]:
    named = [a for a in architectures() if only is None or fnmatchcase(a.name, only) or fnmatchcase(a.key, only)]
    if not named:
        raise ValueError(
            f"--only {only} matches no architecture of timm or torchvision; give a pattern such as 'resnet*'"
        )
    again = {key for key, record in records.items() if retry and record["status"] == "failed"}
    return _one_of_each_family_first([a for a in named if a.key not in records or a.key in again])


def _one_of_each_family_first(wanted: list[Architecture]) -> list[Architecture]:
    """What fails in a family shows early in a run of hours."""
    seen: Counter[str] = Counter()
    ranked = []
    for architecture in wanted:
        family = f"{architecture.source}/{architecture.family}"
        ranked.append((seen[family], architecture))
        seen[family] += 1
    return [architecture for _, architecture in sorted(ranked, key=lambda pair: pair[0])]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.coverage", description=__doc__)
    parser.add_argument(
        "--output", type=Path, default=Path("results/coverage.json"), help="results; names in it are done"
    )
    parser.add_argument(
        "--page", type=Path, help="also write the results as this Markdown page, as the documentation has it"
    )
    parser.add_argument("--only", help="shell pattern of names, such as 'resnet*' or 'torchvision/*'")
    parser.add_argument("--retry", action="store_true", help="repeat the names that failed")
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time (default: 2)")
    parser.add_argument("--timeout", type=float, default=120, help="seconds for one architecture (default: 120)")
    parser.add_argument("--memory-gib", type=float, default=8, help="memory for one architecture (default: 8)")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status: 1 when an architecture fails, 2 on bad input."""
    values = _parser().parse_args(arguments)
    try:
        results = Results(values.output)
        wanted = _wanted(values.only, values.retry, results.records)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    remaining = len(wanted)

    def finished(architecture: Architecture, record: Record) -> None:
        nonlocal remaining
        remaining -= 1
        results.add(architecture, record)
        said = record.get("reason") or f"{record['replaced']} replaced, {record['deployment_error']:.0e}"
        print(f"{remaining:5d} left  {architecture.key}: {record['status']}: {said}", flush=True)

    examine_all(wanted, finished, Limits(values.timeout, values.memory_gib), values.jobs)
    if values.page:
        write_page(values.output, values.page)
    counts = Counter(record["status"] for record in results.records.values())
    print(", ".join(f"{count} {status}" for status, count in sorted(counts.items())))
    return 1 if counts["failed"] else 0


if __name__ == "__main__":
    raise SystemExit(main())
