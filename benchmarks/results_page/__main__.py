"""Write the tables of `docs/results.md`, `docs/runtimes.md` and `README.md` anew: ``python -m benchmarks.results_page``."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping
from pathlib import Path

from benchmarks.results_page.rows import (
    RUNTIMES,
    TRAINED_ON,
    Cost,
    Gain,
    Shipped,
    centroids,
    costs,
    gains,
    resnet18,
    shipped,
)
from xvolution.bench.tables import table
from xvolution.training.files import write_text

#: The pages whose tables are written.
PAGES = (Path("docs/results.md"), Path("docs/runtimes.md"), Path("README.md"))


def tables(results: Path) -> dict[str, str]:
    """The tables by name, in Markdown."""
    return {
        "gains": gain_table(list(gains(results)), "recipe", top1_alone=True),
        "readme": short_table(list(gains(results))[:3] + list(gains(results))[4:5]),
        "costs": cost_table(list(costs(results))),
        "trained_on": gain_table(
            [*gains(results, TRAINED_ON), *centroids(results), resnet18(results)], "network and data", top1_alone=False
        ),
        "shipped": shipped_table(list(shipped(results))),
    }


def gain_table(rows: list[Gain], first: str, top1_alone: bool) -> str:
    """Gains in top-1, or in the figure that each row names; ``first`` heads the column of the recipes."""
    lines, before = [], ""
    for row in rows:
        recipe, before = ("" if row.recipe == before else row.recipe), row.recipe
        figure = () if top1_alone else (row.figure,)
        figures = (_loss(row), str(row.seeds), f"{row.flops:.2f}", _ratio(row.latency), _link(row.record))
        lines.append((recipe, row.operator, *figure, _gain(row), *figures))
    points = ("top-1, points",) if top1_alone else ("figure", "points")
    return table((first, "operator", *points, "loss", "seeds", "FLOPs", "latency", "record"), lines)


def short_table(rows: list[Gain]) -> str:
    """Gains and costs of a few rows."""
    lines = [(row.operator, _gain(row), f"{row.flops:.2f}", _ratio(row.latency)) for row in rows]
    return table(("operator", "top-1, points, 95 % interval over three seeds and images", "FLOPs", "latency"), lines)


def _loss(row: Gain) -> str:
    return "" if row.loss is None else f"{row.loss:+.3f}"


def _ratio(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _gain(row: Gain) -> str:
    if row.points is None:
        return f"{row.mean:+.2f}, no claim"
    return f"{row.points[0]:+.2f} ({row.points[1]:+.2f} to {row.points[2]:+.2f})"


def cost_table(rows: list[Cost]) -> str:
    """Latencies of deployed networks."""
    header = ("network", *RUNTIMES.values(), *(f"SE, {title}" for title in RUNTIMES.values()), "FLOPs")
    lines = [
        (
            row.network,
            *(f"{row.ours[runtime]:.2f}" for runtime in RUNTIMES),
            *(f"{row.theirs[runtime]:.2f}" for runtime in RUNTIMES),
            f"{row.flops:.2f}",
        )
        for row in rows
    ]
    return table(header, lines)


def shipped_table(rows: list[Shipped]) -> str:
    """The files of trained networks in each runtime."""
    header = ("network", "runtime", "", "MB", "layouts", "same prediction", "ms", "plain, ms", "ratio", "record")
    lines, before = [], ""
    for row in rows:
        network, before = ("" if row.network == before else row.network), row.network
        figures = (
            f"{row.agreement:.1%}",
            f"{row.milliseconds:.2f}",
            f"{row.plain_milliseconds:.2f}",
            f"{row.ratio:.2f}",
        )
        lines.append(
            (network, row.runtime, row.precision, f"{row.megabytes:.1f}", row.layouts, *figures, _link(row.record))
        )
    return table(header, lines)


def _link(record: str) -> str:
    return f"[{Path(record).stem}](records/{record})"


def filled(text: str, found: Mapping[str, str]) -> str:
    """A page with each table between its comments, ``<!-- table: NAME -->`` and ``<!-- end -->``.

    Raises:
        KeyError: the page asks for a table that there is not.
    """

    def between(match: re.Match[str]) -> str:
        return f"{match[1]}\n{found[match[2]]}\n{match[3]}"

    return re.sub(r"(<!-- table: (\w+) -->).*?(<!-- end -->)", between, text, flags=re.DOTALL)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.results_page", description=__doc__)
    parser.add_argument("--results", type=Path, default=Path("results"), help="folder of the JSON records")
    options = parser.parse_args()
    for page in PAGES:
        write_text(page, filled(page.read_text(encoding="utf-8"), tables(options.results)))


if __name__ == "__main__":
    main()
