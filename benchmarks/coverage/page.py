"""The page of the coverage results: counts, worst errors, and a table for every family."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape
from itertools import groupby
from pathlib import Path
from typing import Any

Record = Mapping[str, Any]

STATUSES = ("equal", "nothing to convert", "left", "failed")
_HEADINGS = ("replaced and equal", "nothing to convert", "left, with a reason", "failing")

_ERRORS = {
    "conversion_error": "after conversion",
    "deployment_error": "after re-parameterization",
    "operator_error": "one operator",
}

_INTRODUCTION = """\
# Coverage

Every architecture name of timm and torchvision (classification, segmentation, detection, video, optical flow) with random
weights, converted with the default configuration. Made from `results/coverage.json`, which `make coverage` writes; names that
it has not reached yet are missing.

For each one: scales, biases and batch norm statistics are drawn at random, then

1. the converted network's outputs are compared with the original's (*after conversion*);
2. the attention is switched on at random scales, and one backward pass in train mode must give every parameter of every
   attention branch a finite gradient;
3. the network is re-parameterized and compared again, in eval mode (*after re-parameterization*).

Errors are the largest difference relative to the largest output. Outputs count as equal up to 1e-4 in float32, what rounding
explains for a whole network. Where it grows beyond that through a deep random network, the comparison is repeated in float64,
and the row says so: then every single operator, on the input that the network gives it, must agree with its deployed form up to
1e-12, and the whole network up to 1e-7. Detectors are compared in float64 at once: rounding may reorder boxes of nearly equal
score.
"""


def write_page(results: Path, page: Path) -> None:
    """Write the page of a results file; the same results give the same page."""
    text = render(json.loads(results.read_text()))
    page.parent.mkdir(parents=True, exist_ok=True)
    temporary = page.with_name(f"{page.name}.{os.getpid()}.tmp")
    temporary.write_text(text)
    os.replace(temporary, page)


def render(stored: Mapping[str, Any]) -> str:
    """The page as Markdown."""
    records: dict[str, Record] = dict(sorted(stored["architectures"].items()))
    versions = ", ".join(f"{library} {version}" for library, version in stored["versions"].items())
    parts = [
        _INTRODUCTION,
        "## Counts\n\n" + _counts(records),
        "## Worst errors\n\n" + _worst(records),
        "## Convolutions left in place\n\n" + _left(records),
        _failing(records),
        "## By family\n\n" + "\n\n".join(_families(records)),
        f"Measured with {versions}.",
    ]
    return "\n\n".join(part.strip() for part in parts if part) + "\n"


def table(header: tuple[str, ...], rows: Sequence[tuple[str, ...]], numbers: int = 0) -> str:
    """A Markdown table; the last ``numbers`` columns are right-aligned."""
    rules = ["---"] * (len(header) - numbers) + ["---:"] * numbers
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, tuple(rules), *rows))


def _counts(records: Mapping[str, Record]) -> str:
    counts: dict[str, Counter[str]] = {}
    for key, record in records.items():
        group = f"{key.partition('/')[0]}, {record['task'].replace('_', ' ')}"
        counts.setdefault(group, Counter())[record["status"]] += 1
    counts["all"] = sum((counts[group] for group in list(counts)), Counter())
    rows = [
        (group, *(f"{count[status]:,}" for status in STATUSES), f"{count.total():,}") for group, count in counts.items()
    ]
    replaced = sum(record.get("replaced", 0) for record in records.values() if record["status"] == "equal")
    return (
        table(("", *_HEADINGS, "names"), rows, len(_HEADINGS) + 1)
        + f"\n\n{replaced:,} convolutions were replaced in the networks that are equal. *Nothing to convert*: no spatial "
        "convolution behind the stem. *Left*: only convolutions that are no plain ones, which stay as they are."
    )


def _worst(records: Mapping[str, Record]) -> str:
    rows = []
    equal = {key: record for key, record in records.items() if record["status"] == "equal"}
    for dtype in ("float32", "float64"):
        for error, heading in _ERRORS.items():
            measured = {key: record for key, record in equal.items() if record["dtype"] == dtype and error in record}
            if not measured:
                continue
            exact = sum(record[error] == 0 for record in measured.values())
            worst = max(measured, key=lambda key: (measured[key][error], key))
            shown = (f"`{worst}`", f"{measured[worst][error]:.1e}") if exact < len(measured) else ("none", "0")
            rows.append((dtype, heading, *shown, f"{exact} of {len(measured)}"))
    return table(("dtype", "", "worst architecture", "error", "exactly 0"), rows, 2)


def _left(records: Mapping[str, Record]) -> str:
    convolutions: Counter[str] = Counter()
    networks: Counter[str] = Counter()
    for record in records.values():
        for reason, count in record.get("left", {}).items():
            convolutions[reason] += count
            networks[reason] += 1
    rows = [(reason, f"{convolutions[reason]:,}", f"{networks[reason]:,}") for reason in sorted(convolutions)]
    return table(("why", "convolutions", "architectures"), rows, 2)


def _failing(records: Mapping[str, Record]) -> str:
    rows = [
        (f"`{key}`", record["reason"].replace("|", "\\|"))
        for key, record in records.items()
        if record["status"] == "failed"
    ]
    return "## Failing\n\n" + table(("architecture", "why"), rows) if rows else ""


def _families(records: Mapping[str, Record]) -> list[str]:
    """One folded table for each family. HTML, since not every Markdown reader looks inside ``<details>``."""

    def family(key: str) -> tuple[str, str]:
        return key.partition("/")[0], records[key]["family"]

    folded = []
    for (source, name), keys in groupby(sorted(records, key=lambda key: (*family(key), key)), key=family):
        members = list(keys)
        counts = Counter(records[key]["status"] for key in members)
        said = ", ".join(f"{counts[status]} {status}" for status in STATUSES if counts[status])
        rows = "\n".join(_row(key.partition("/")[2], records[key]) for key in members)
        header = "".join(
            f"<th>{cell}</th>"
            for cell in ("architecture", "replaced", "left", "after conversion", "after re-parameterization", "")
        )
        table = f"<table>\n<tr>{header}</tr>\n{rows}\n</table>"
        folded.append(f"<details><summary>{source}: {escape(name)} ({said})</summary>\n{table}\n</details>")
    return folded


def _row(name: str, record: Record) -> str:
    left = ", ".join(f"{count} {reason}" for reason, count in record.get("left", {}).items())
    errors = [f"{record[error]:.1e}" if error in record else "" for error in ("conversion_error", "deployment_error")]
    cells = (name, str(record.get("replaced", "")), left, *errors, _remark(record))
    return "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>"


def _remark(record: Record) -> str:
    if record["status"] == "failed":
        return f"failed: {record['reason']}"
    if "reason" in record:
        return record["reason"]
    remarks = []
    if record["dtype"] == "float64":
        single = record.get("float32_error")
        remarks.append("float64" if single is None else f"float64; {single:.0e} in float32")
        if "operator_error" in record:
            remarks.append(f"one operator at most {record['operator_error']:.0e}")
    if record["unreached"]:
        remarks.append(f"{record['unreached']} without effect on the loss")
    return "; ".join(remarks)
