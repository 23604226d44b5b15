"""The index of the records: the table in `results/README.md`, and the page that is made of it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from xvolution.bench.tables import table

_TITLE = """# Records and reports

Every record under `results/`: what it answers, when it was measured, and at which commit. A later record supersedes an
earlier one where both ask the same question. [Results](results.md) says what holds today.
"""


@dataclass(frozen=True)
class Record:
    """One row of the index.

    Attributes:
        name: of the file under ``results/``, without its ending.
        question: what it answers.
        date: of the commit that was measured.
        commits: that were measured, abbreviated; none where the record does not say.
        superseded_by: name of a later record that answers the same question, if there is one.
    """

    name: str
    question: str
    date: str
    commits: tuple[str, ...]
    superseded_by: str | None

    @property
    def report(self) -> str:
        """Name of its report, where it has one."""
        return f"{self.name.replace('/', '-')}.html"


def read_index(results: Path) -> list[Record]:
    """The rows of the table in ``README.md`` in the folder of the results."""
    text = (results / "README.md").read_text(encoding="utf-8")
    found = re.search(r"<!-- records -->\n(.*?)<!-- end -->", text, flags=re.DOTALL)
    lines = found[1].splitlines()[2:] if found else []
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [
        Record(name.strip("`"), question, date, tuple(re.findall(r"\w+", commits)), superseded_by.strip("`") or None)
        for name, question, date, commits, superseded_by in rows
    ]


def index_page(records: Sequence[Record], reports: Path) -> str:
    """The index as a page in Markdown.

    Args:
        records: its rows.
        reports: folder of the reports that were made.
    """
    rows = []
    for record in records:
        report = f"[report](reports/{record.report})" if (reports / record.report).is_file() else ""
        later = record.superseded_by
        rows.append(
            (
                f"[{record.name}](records/{record.name}.json)",
                record.question,
                report,
                record.date.replace("-", "\N{NON-BREAKING HYPHEN}"),
                ", ".join(record.commits),
                f"[{later}](records/{later}.json)" if later else "",
            )
        )
    return f"{_TITLE}\n{table(('record', 'question', 'report', 'measured', 'commit', 'superseded by'), rows)}\n"


def with_notice(report: str, record: Record) -> str:
    """A report that says at its top that a later record supersedes it."""
    if record.superseded_by is None:
        return report
    later = record.superseded_by
    target = f"{later.replace('/', '-')}.html"
    notice = (
        f'<p class="answer">Superseded: the same question has a later answer in <a href="{target}">{later}</a>.</p>'
    )
    return report.replace("<main>\n", f"<main>\n{notice}\n", 1)
