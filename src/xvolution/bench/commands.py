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

  networks   whole networks, plain, with squeeze-and-excitation and with X-volution: ONNX Runtime, OpenVINO, PyTorch, training
  operators  an operator in the place of one convolution: inference in the same runtimes, training, memory
  options    what each option of X-volution costs a network in each runtime
  mechanisms the rivals (SE, ECA, GC, CA, ODConv) and the mechanisms of X-volution beside each other
  scaling    time and memory over the number of pixels
  page       a Markdown page from the results

Measured cases stay in the results file: stopped and started again, a bench goes on where it was.
xvolution bench KIND --help tells the options.
"""


def bench_command(arguments: Sequence[str]) -> None:
    """Measure, print, keep."""
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
        raise InputError(f"there is no bench {kind!r}, among {', '.join(kinds)}{did_you_mean(kind, kinds)}")


def _page(arguments: Sequence[str]) -> None:
    parser = Parser("bench page", "Write the page of what was measured.")
    parser.add_flag("data", Flag("results", Path, Path("results"), "the folder with bench-*.json."))
    parser.add_flag("output", Flag("output", Path, Path("performance.md"), "the Markdown file to write."))
    values = parser.parse_args(list(arguments))
    from xvolution.bench.page import records_in, write_page

    if not records_in(values.results):
        raise InputError(
            f"{values.results} has no bench-*.json; run `xvolution bench` first, or give another --results."
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
        full = "measure every shape, both modes, one and all threads."
        parser.add_flag("measurement", Flag("full", bool, False, full))
    output = Flag(
        "output",
        Path,
        Path(f"results/bench-{kind}.json"),
        "the file of the results; what it has is not measured again.",
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
