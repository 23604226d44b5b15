"""The parser of `xvolution bench`."""

from __future__ import annotations

import dataclasses
import os
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import docstring_parser
from jsonargparse import ActionYesNo, ArgumentParser
from rich.console import Console
from rich.table import Table

from xvolution.training.errors import InputError

KINDS = ("networks", "operators", "options", "mechanisms", "scaling")
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
    if kind in ("-h", "--help"):
        print(USAGE)
        return
    if kind == "page":
        _page(rest)
    elif kind in KINDS:
        _bench(kind, rest)
    else:
        raise InputError(f"there is no bench {kind!r}; allowed are {', '.join((*KINDS, 'page'))}.")


def _page(arguments: Sequence[str]) -> None:
    parser = ArgumentParser(prog="xvolution bench page", description="Write the page of what was measured.")
    parser.add_argument("--results", type=Path, default=Path("results"), help="folder with bench-*.json.")
    parser.add_argument("--output", type=Path, default=Path("performance.md"), help="Markdown file.")
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
    bench_class = _classes()[kind]
    values = _parser(kind, bench_class).parse_args(list(arguments)).as_dict()
    output, everything = values.pop("output"), values.pop("full", False)
    bench = bench_class(**values)
    from xvolution.bench.operators import full
    from xvolution.bench.results import Results, measure_all

    results = Results(output, kind)
    console = Console()
    cases = (full(bench) if everything else bench).cases()
    measure_all(cases, results, console)
    for case in cases:
        console.print(_table(case.key, results.cases[case.key]["forms"]))
    console.print(f"wrote {output}")


def _classes() -> dict[str, Any]:
    from xvolution.bench.mechanisms import MechanismBench
    from xvolution.bench.networks import NetworkBench
    from xvolution.bench.operators import OperatorBench
    from xvolution.bench.options import OptionBench
    from xvolution.bench.scaling import ScalingBench

    return {
        "networks": NetworkBench,
        "operators": OperatorBench,
        "options": OptionBench,
        "mechanisms": MechanismBench,
        "scaling": ScalingBench,
    }


def _parser(kind: str, bench_class: Any) -> ArgumentParser:
    documentation = docstring_parser.parse(bench_class.__doc__)
    parser = ArgumentParser(prog=f"xvolution bench {kind}", description=documentation.short_description)
    helps = {parameter.arg_name: parameter.description for parameter in documentation.params}
    for field in dataclasses.fields(bench_class):
        default: Any = field.default
        flag, hint = f"--{field.name.replace('_', '-')}", typing.get_type_hints(bench_class)[field.name]
        options: dict[str, Any] = {"default": default, "help": helps[field.name]}
        if hint is bool:
            options["action"] = ActionYesNo(no_prefix="no-")
        elif typing.get_origin(hint) is not None:
            options |= {"nargs": "+", "type": typing.get_args(hint)[0], "default": list(default)}
        else:
            options["type"] = hint
        parser.add_argument(flag, **options)
    if kind == "operators":
        parser.add_argument(
            "--full",
            action=ActionYesNo(no_prefix="no-"),
            default=False,
            help="every shape, both modes, one and all threads.",
        )
    parser.add_argument("--output", type=Path, default=Path(f"results/bench-{kind}.json"), help="results file.")
    return parser


def _table(title: str, forms: dict[str, Any]) -> Table:
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
