"""The tables of the performance page, in Markdown, from the cases of a bench."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from xvolution.bench.bars import Bar, fastest_layout, measures_operator
from xvolution.bench.network_forms import TRAINING
from xvolution.bench.networks import SQUEEZE_EXCITATION
from xvolution.bench.operators import BASELINE
from xvolution.bench.results import Record
from xvolution.bench.scaling import exponents
from xvolution.deploy.runtimes import RUNTIMES


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(["| " + " | ".join(row) + " |" for row in lines] + [""])


def bar_table(bars: Sequence[Bar]) -> str:
    """The required speeds, and whether they are met."""
    words = {True: "yes", False: "no", None: ""}
    rows = [(bar.what, bar.allowed, bar.measured, bar.floor, words[bar.met]) for bar in bars]
    return table(("what", "bar", "measured", "floor", "met"), rows)


def network_tables(cases: Sequence[Record]) -> list[str]:
    """Networks and their forms by runtime: a table for each batch."""
    parts = []
    for place in dict.fromkeys(map(_batch_of, sorted(cases, key=lambda case: case["batch"]))):
        chosen = [case for case in cases if _batch_of(case) == place]
        forms = _by_network(chosen)
        columns = list(dict.fromkeys(_way(case) for case in chosen))
        rows = []
        for network, found in forms.items():
            names = list(dict.fromkeys(name for by_way in found.values() for name in by_way))
            # Squeeze-and-excitation beside the others, and not before the network itself.
            for name in sorted(names, key=lambda name: (name != BASELINE, name != SQUEEZE_EXCITATION)):
                cells = [_cell(found.get(way, {}), name) for way in columns]
                rows.append([network if name == BASELINE else "", _called(name), *cells, _flops(found, name)])
        parts += [f"{place}:\n", table(("network", "form", *columns, "FLOPs"), rows)]
    return parts


def option_tables(cases: Sequence[Record]) -> list[str]:
    """The cost of each option: a table for each network and batch."""
    parts = []
    for place in dict.fromkeys(map(_batch_of, sorted(cases, key=lambda case: case["batch"]))):
        chosen = [case for case in cases if _batch_of(case) == place]
        columns = list(dict.fromkeys(_way(case) for case in chosen))
        for network, found in _by_network(chosen).items():
            names = dict.fromkeys(name for by_way in found.values() for name in by_way)
            rows = [
                [_called(name), *(_cell(found.get(way, {}), name) for way in columns), _flops(found, name)]
                for name in names
            ]
            parts += [f"{network}, all stages, {place}:\n", table(("option", *columns, "FLOPs"), rows)]
    return parts


def operator_tables(cases: Sequence[Record]) -> list[str]:
    """One operator against one convolution: deployed, and in training with its memory."""
    parts = []
    for what, title in (("inference", "Inference, deployed form"), ("training", "Training, forward and backward")):
        chosen = [case for case in cases if case["pass"] == what]
        if not chosen:
            continue
        names = list(dict.fromkeys(name for case in chosen for name in case["forms"] if name != BASELINE))
        rows = [
            [_place(case), _milliseconds(case["forms"][BASELINE]), *(_ratio(case["forms"].get(name)) for name in names)]
            for case in chosen
        ]
        parts += [f"### {title}\n", table(("shape", "conv, ms", *names), rows)]
        if what == "inference":
            parts += _where_it_loses([case for case in chosen if measures_operator(case)])
        else:
            rows = [
                [_place(case), _mebibytes(case["forms"][BASELINE]), *(_memory(case["forms"], name) for name in names)]
                for case in chosen
            ]
            parts += ["Peak memory, as a ratio to the convolution's:\n", table(("shape", "conv, MiB", *names), rows)]
    return parts


def scaling_table(cases: Sequence[Record]) -> list[str]:
    """Exponents of time and memory, and what was not run."""
    time, memory = exponents(cases, "median_ms"), exponents(cases, "peak_bytes")
    rows = [(name, f"{time[name]:.2f}", f"{memory[name]:.2f}" if name in memory else "") for name in time]
    skipped = sorted(
        {
            f"{name} at {case['side']}x{case['side']} ({form['skipped']})"
            for case in cases
            for name, form in case["forms"].items()
            if "skipped" in form
        }
    )
    parts = ["Exponents p of (H·W)^p over maps of 28x28 and larger:\n", table(("form", "time", "memory"), rows)]
    return [*parts, f"Not run: {'; '.join(skipped)}.\n"] if skipped else parts


def _where_it_loses(cases: Sequence[Record]) -> list[str]:
    """A paragraph with the most expensive place, and the places where the global branch is cheaper."""
    if not cases:
        return []
    cheaper = []
    for case in cases:
        form = case["forms"].get("global split", {})
        if form.get("ratio", float("inf")) < fastest_layout(case["forms"])["ratio"]:
            cheaper.append(_place(case))
    worst = max(cases, key=lambda case: fastest_layout(case["forms"])["ratio"])
    ratio = fastest_layout(worst["forms"])["ratio"]
    lines = [f"**Highest cost.** The most expensive place is {_place(worst)}, at {ratio:.2f} times the convolution."]
    if cheaper:
        lines.append(
            f"Exact global attention as the second branch costs less than pixel shifts at: {'; '.join(cheaper)}."
        )
    return [" ".join(lines) + "\n"]


def _by_network(cases: Sequence[Record]) -> Mapping[str, Mapping[str, Mapping[str, Record]]]:
    """Records by network, by the way it is run, and by form."""
    found: dict[str, dict[str, dict[str, Record]]] = {}
    for case in cases:
        found.setdefault(case["network"], {}).setdefault(_way(case), {}).update(case["forms"])
    return found


def _way(case: Record) -> str:
    """The runtime and its settings in words; default settings are left out."""
    runtime: str = case.get("runtime", "torch")
    title = RUNTIMES[runtime].title if runtime in RUNTIMES else {TRAINING: "training step"}.get(runtime, "PyTorch")
    usual: dict[str, str] = {"device": "cpu", "dtype": "float32", "mode": "eager", "memory_format": "contiguous"}
    said = [str(case[name]) for name, value in usual.items() if case.get(name, value) != value]
    return ", ".join([title, *said])


def _batch_of(case: Record) -> str:
    images, threads = case["batch"], case["threads"]
    said = f"{images} image{'' if images == 1 else 's'} of {case['image_size']}x{case['image_size']}"
    return f"{said}, {threads} thread{'' if threads == 1 else 's'}"


def _called(form: str) -> str:
    return {BASELINE: "plain", SQUEEZE_EXCITATION: "squeeze-and-excitation"}.get(form, form)


def _cell(forms: Mapping[str, Record], name: str) -> str:
    """The time of the plain network, the ratio of others."""
    form = forms.get(name)
    return f"{_milliseconds(form)} ms" if form is not None and name == BASELINE else _ratio(form)


def _flops(by_way: Mapping[str, Mapping[str, Record]], name: str) -> str:
    """The ratio of operations in the first column that has them."""
    for forms in by_way.values():
        if "flops" in forms.get(name, {}):
            return f"{forms[name]['flops'] / forms[BASELINE]['flops']:.2f}"
    return ""


def _place(case: Record) -> str:
    channels, height, width = case["size"]
    way = "" if _way(case) == "PyTorch" else f", {_way(case)}"
    return f"{channels} x {height}x{width}, batch {case['batch']}{way}, threads {case['threads']}"


def _milliseconds(form: Record) -> str:
    return f"{form['median_ms']:.2f}"


def _mebibytes(form: Record) -> str:
    return f"{form['peak_bytes'] / 2**20:.1f}" if "peak_bytes" in form else ""


def _ratio(form: Record | None) -> str:
    if form is None:
        return ""
    return f"{form['ratio']:.2f}" if "ratio" in form else "not run"


def _memory(forms: Mapping[str, Record], name: str) -> str:
    if "peak_bytes" not in forms.get(name, {}):
        return ""
    return f"{forms[name]['peak_bytes'] / forms[BASELINE]['peak_bytes']:.2f}"
