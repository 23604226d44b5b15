"""The parser of `xvolution bench`."""

from __future__ import annotations

import dataclasses
import os
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xvolution.bench.flags import KINDS, bench_of, stored
from xvolution.training.errors import InputError
from xvolution.training.flags.flag import Flag
from xvolution.training.flags.mistakes import did_you_mean
from xvolution.training.flags.parser import Parser

if TYPE_CHECKING:
    from rich.table import Table

USAGE = """usage: xvolution bench {networks,operators,options,mechanisms,scaling,page} [options]

  networks   time whole networks: plain, with squeeze-and-excitation and with X-volution; inference and training
  operators  time one operator against one convolution: inference, training, memory
  options    time a network with each option of X-volution, in each runtime
  mechanisms time other operators (SE, ECA, GC, CA, ODConv) and the attention branches of X-volution
  scaling    measure time and memory over the number of pixels
  page       write a Markdown page from the results

Each measured case is kept in the results file. A bench that was stopped continues where it was.
xvolution bench KIND --help lists the options.
"""


def bench_command(arguments: Sequence[str]) -> None:
    """Measure, print the results and store them."""
    kind, *rest = arguments or ["--help"]
    if kind in ("-h", "--help", "--help-all"):
        print(USAGE)
        return
    if kind == "page":
        _page(rest)
    elif kind in KINDS:
        _bench(kind, rest)
    else:
        kinds = (*KINDS, "page")
        raise InputError(f"there is no bench {kind!r}; the benches are {', '.join(kinds)}{did_you_mean(kind, kinds)}")


def _page(arguments: Sequence[str]) -> None:
    parser = Parser("bench page", "Write a Markdown page with the measured results.")
    parser.add_flag("data", Flag("results", Path, Path("results"), "folder with bench-*.json."))
    parser.add_flag("output", Flag("output", Path, Path("performance.md"), "Markdown file to write."))
    values = parser.parse_args(list(arguments))
    from xvolution.bench.page import records_in, write_page

    if not records_in(values.results):
        raise InputError(
            f"{values.results} has no bench-*.json; run `xvolution bench` first, or give another folder with --results."
        )
    write_page(values.results, values.output)
    print(f"wrote {values.output}")


def _bench(kind: str, arguments: Sequence[str]) -> None:
    # The profiler, which measures memory, would tell of each start and stop.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    values = _parser(kind).parse_args(list(arguments)).as_dict()
    output, everything = values.pop("output"), values.pop("full", False)
    bench = bench_of(kind)(**values)
    from rich.console import Console

    from xvolution.bench.operators import full
    from xvolution.bench.results import Results, measure_all

    results = Results(output, kind)
    console = Console()
    cases = (full(bench) if everything else bench).cases()
    measure_all(cases, results, console)
    for case in cases:
        console.print(_table(case.key, results.cases[case.key]["forms"]))
    console.print(f"wrote {output}")


def _parser(kind: str) -> Parser:
    bench = stored()[kind]
    parser = Parser(f"bench {kind}", bench.summary)
    for flag in bench.flags:
        group = "machine" if flag.name in ("device", "threads") else "measurement"
        elements = typing.get_args(flag.type)
        if elements:
            options: dict[str, Any] = {"nargs": "+", "type": elements[0]}
            parser.add_flag(group, dataclasses.replace(flag, default=list(flag.default)), **options)
        else:
            parser.add_flag(group, flag)
    if kind == "operators":
        full = "measure every shape in eager and compiled mode, with one thread and with all."
        parser.add_flag("measurement", Flag("full", bool, False, full))
    output = Flag(
        "output",
        Path,
        Path(f"results/bench-{kind}.json"),
        "JSON file for the results; cases that are in it are not measured again.",
    )
    parser.add_flag("output", output)
    return parser


def _table(title: str, forms: dict[str, Any]) -> Table:
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    table.add_column("")
    for column in ("median ms", "ratio", "peak MiB", "MFLOPs", "parameters"):
        table.add_column(column, justify="right")
    for name, form in forms.items():
        if "skipped" in form:
            table.add_row(name, "not run:", form["skipped"])
            continue
        peak = f"{form['peak_bytes'] / 2**20:.1f}" if "peak_bytes" in form else ""
        figures = (f"{form['median_ms']:.3f}", f"{form['ratio']:.2f}", peak, f"{form['flops'] / 1e6:,.0f}")
        table.add_row(name, *figures, f"{form['parameters']:,}")
    return table
