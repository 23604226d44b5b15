"""The page of the networks of other libraries: counts for each library, what was not converted, and every network."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from html import escape
from typing import Any

from benchmarks.coverage.page import table

Record = Mapping[str, Any]

_INTRODUCTION = """\
# Other libraries

Networks of libraries beside timm and torchvision, with random weights, converted with the default configuration. The page is
made from `results/libraries.json`, which `python -m benchmarks.libraries` writes. Names, sizes and options of the networks are in
`benchmarks/libraries/networks.py`.

For each network, scales and batch norm statistics are drawn at random. Then

1. the converted network's outputs are compared with the original's (*after conversion*);
2. the attention is switched on at random scales, the network is re-parameterized, and its outputs are compared (*deployed*);
3. `reparameterize` must accept the network in float32 with its own tolerance.

Errors are the largest difference relative to the largest output, in float64 where the network can be run in it.
"""


def render(stored: Mapping[str, Any]) -> str:
    """The page as Markdown, from what `results/libraries.json` holds."""
    records: dict[str, Record] = dict(sorted(stored["records"].items()))
    parts = [
        _INTRODUCTION,
        "## By library\n\n" + _libraries(records, stored["libraries"]),
        _not_converted(records),
        "## Every network\n\n" + _networks(records),
        f"Measured with torch {stored['versions']['torch']}.",
    ]
    return "\n\n".join(part.strip() for part in parts if part) + "\n"


def _library(key: str) -> str:
    return key.partition("/")[0]


def _libraries(records: Mapping[str, Record], versions: Mapping[str, str]) -> str:
    rows = []
    for library in [*versions, ""]:
        own = [record for key, record in records.items() if library in ("", _library(key))]
        converted = [record for record in own if record["status"] == "converted"]
        rows.append(
            (
                f"{library} {versions[library]}" if library else "all",
                str(len(own)),
                str(len(converted)),
                f"{sum(record['replaced'] for record in converted):,}",
                _largest(converted, "conversion_error"),
                _largest(converted, "deployment_error"),
                f"{sum(record['float32'] == 'accepted' for record in converted)} of {len(converted)}",
            )
        )
    heads = ("", "networks", "converted", "convolutions", "after conversion", "deployed", "accepted in float32")
    return table(heads, rows, len(heads) - 1)


def _largest(records: list[Record], error: str) -> str:
    largest = max((record[error] for record in records), default=None)
    return "" if largest is None else "0" if largest == 0 else f"{largest:.0e}"


def _not_converted(records: Mapping[str, Record]) -> str:
    rows = [
        (f"`{key}`", record["status"], record["reason"].replace("|", "\\|"))
        for key, record in records.items()
        if record["status"] != "converted"
    ]
    return "## Not converted\n\n" + table(("network", "", "why"), rows) if rows else ""


def _networks(records: Mapping[str, Record]) -> str:
    """One folded table for each library. HTML, since not every Markdown reader looks inside ``<details>``."""
    folded = []
    for library in dict.fromkeys(map(_library, records)):
        members = {key: record for key, record in records.items() if _library(key) == library}
        counts = Counter(record["status"] for record in members.values())
        said = ", ".join(f"{count} {status}" for status, count in counts.items())
        heads = ("network", "replaced", "left", "after conversion", "deployed", "computed in")
        header = "".join(f"<th>{cell}</th>" for cell in heads)
        rows = "\n".join(_row(key, record) for key, record in members.items())
        tables = f"<table>\n<tr>{header}</tr>\n{rows}\n</table>"
        folded.append(f"<details><summary>{library} ({said})</summary>\n{tables}\n</details>")
    return "\n\n".join(folded)


def _row(key: str, record: Record) -> str:
    left = ", ".join(f"{count} {reason}" for reason, count in record.get("left", {}).items())
    errors = [f"{record[error]:.0e}" if error in record else "" for error in ("conversion_error", "deployment_error")]
    random = " (random in eval mode)" if record.get("random") else ""
    cells = (key.partition("/")[2], str(record.get("replaced", "")), left, *errors, record.get("dtype", "") + random)
    return "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>"
