"""The pages of the documentation that are made of results: ``python -m benchmarks.pages --output build/pages``.

``mkdocs.yml`` names ``benchmarks/pages_hook.py``, which runs this and puts the pages into the site.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.coverage.page import write_page as write_coverage
from benchmarks.libraries.page import render as render_libraries
from benchmarks.mechanisms import write_page as write_mechanisms
from benchmarks.records import index_page, read_index, with_notice
from benchmarks.results_page.figures import draw
from xvolution.bench.page import write_page as write_performance
from xvolution.compare import page as comparison
from xvolution.explain import page as explanation
from xvolution.explain.figures import loss_bars
from xvolution.training.files import write_text

#: What the results of a comparison, and of an explanation, are known by.
COMPARISON = {"variants", "cells", "pairs"}
EXPLANATION = {"operators", "drawn", "static"}


def write_pages(results: Path, output: Path) -> None:
    """Write the pages, the pictures, a copy of each record, and a report for each record of a comparison or an explanation.

    The pages are ``performance.md``, ``coverage.md``, ``libraries.md``, ``mechanisms.md`` and ``reports.md``.

    Args:
        results: folder of the JSON records; ``results/a/b.json`` becomes ``records/a/b.json`` and, where it is a comparison or an
            explanation, ``reports/a-b.html``.
        output: folder of the pages.
    """
    write_performance(results, output / "performance.md")
    write_coverage(results / "coverage.json", output / "coverage.md")
    libraries = json.loads((results / "libraries.json").read_text(encoding="utf-8"))
    write_text(output / "libraries.md", render_libraries(libraries))
    write_mechanisms(results, output / "mechanisms.md")
    draw(results, output / "images")
    index = read_index(results)
    by_name = {record.name: record for record in index}
    for path in sorted(results.rglob("*.json")):
        text, place = path.read_text(encoding="utf-8"), path.relative_to(results)
        write_text(output / "records" / place, text)
        report = report_of(json.loads(text))
        if report is not None:
            record = by_name[place.with_suffix("").as_posix()]
            write_text(output / "reports" / record.report, with_notice(report, record))
    write_text(output / "reports.md", index_page(index, output / "reports"))


def report_of(figures: Mapping[str, Any]) -> str | None:
    """The page of one record; None where the record is neither a comparison nor an explanation."""
    if figures.keys() >= COMPARISON:
        return comparison.render(dict(figures))
    if figures.keys() >= EXPLANATION:
        return explanation.render(figures, {"losses": loss_bars(figures["operators"], figures["trained"]["loss"])})
    return None


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pages", description="Write the pages of the results.")
    parser.add_argument("--results", type=Path, default=Path("results"), help="folder of the JSON records")
    parser.add_argument("--output", type=Path, default=Path("build/pages"), help="folder of the pages")
    options = parser.parse_args()
    write_pages(options.results, options.output)


if __name__ == "__main__":
    main()
