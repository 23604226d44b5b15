"""The bars that speed is held to, and what a bench measured for each."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product

from xvolution.bench.operators import BASELINE, RESNET, WITH_NORM
from xvolution.bench.results import Record
from xvolution.bench.scaling import exponents

OPERATOR = "xvolution"
NOT_MEASURED = "not measured here"


@dataclass(frozen=True)
class Bar:
    """One line of the table.

    Attributes:
        what: the figure, in words.
        allowed: the bar.
        measured: the figure, or that there is none.
        floor: the same figure of the arithmetic alone, where that says something.
        met: None where nothing was measured.
    """

    what: str
    allowed: str
    measured: str
    floor: str
    met: bool | None


def geometric_mean(values: Iterable[float]) -> float:
    """Of positive numbers; not a number where there are none."""
    logarithms = [math.log(value) for value in values]
    return math.exp(sum(logarithms) / len(logarithms)) if logarithms else math.nan


def fastest_layout(forms: dict[str, Record]) -> Record:
    """The deployed X-volution in the layout with the least ratio, which is what ``layout="auto"`` takes."""
    layouts = [form for name, form in forms.items() if name.startswith(f"{OPERATOR} ") and "ratio" in form]
    return min(layouts, key=lambda form: form["ratio"])


def measures_operator(case: Record) -> bool:
    """Whether X-volution was among the forms, and was run."""
    return any(name.split()[0] == OPERATOR and "ratio" in form for name, form in case["forms"].items())


def operator_bars(cases: Sequence[Record]) -> list[Bar]:
    """Deployed inference and training of one operator at the ResNet stages."""
    bars = []
    for dtype, mean_allowed in (("float32", 1.15), ("bfloat16", 1.35)):
        for batch in (1, 32):
            found = _at_resnet(cases, "inference", dtype, batch)
            ratios = [fastest_layout(case["forms"])["ratio"] for case in found]
            floors = [_floor(case["forms"], fastest_layout(case["forms"])) for case in found]
            what = f"deployed operator / conv, {dtype}, batch {batch}"
            bars.append(_bar(f"{what}: geometric mean", mean_allowed, geometric_mean(ratios), geometric_mean(floors)))
            if dtype == "float32":
                largest, floor = max(ratios, default=math.nan), max(floors, default=math.nan)
                bars.append(_bar(f"{what}: largest", 1.3, largest, floor))
    for dtype, batch in product(("float32", "bfloat16"), (1, 32)):
        found = [case["forms"] for case in _at_resnet(cases, "training", dtype, batch)]
        for baseline, allowed in ((BASELINE, 1.5), (WITH_NORM, None)):
            ratios = [forms[OPERATOR]["ratio"] / forms[baseline]["ratio"] for forms in found]
            what = f"forward and backward / {baseline}, {dtype}, batch {batch}: geometric mean"
            bars.append(_bar(what, allowed, geometric_mean(ratios)))
    for dtype, (baseline, allowed) in product(("float32", "bfloat16"), ((BASELINE, 1.3), (WITH_NORM, None))):
        found = [case["forms"] for case in _at_resnet(cases, "training", dtype, 32)]
        memory = [forms[OPERATOR]["peak_bytes"] / forms[baseline]["peak_bytes"] for forms in found]
        bars.append(_bar(f"peak memory of training / {baseline}, {dtype}, batch 32", allowed, geometric_mean(memory)))
    return bars


def network_bars(cases: Sequence[Record]) -> list[Bar]:
    """ResNet-50 with X-volution against the plain one, deployed."""
    bars = []
    runtimes = (("torch", "PyTorch"), ("onnxruntime", "ONNX Runtime"), ("openvino", "OpenVINO"))
    for form, allowed in (("stage 3", 1.05), ("all stages", 1.12)):
        for runtime, name in runtimes:
            found = [c["forms"] for c in cases if c["network"] == "resnet50" and c["runtime"] == runtime]
            measured = geometric_mean(forms[form]["ratio"] for forms in found)
            floor = geometric_mean(_floor(forms, forms[form]) for forms in found)
            bars.append(_bar(f"ResNet-50, {form}, deployed in {name}", allowed, measured, floor))
    return bars


def scaling_bars(cases: Sequence[Record]) -> list[Bar]:
    """Against exact global attention, and linear in the number of pixels."""
    speedups = [
        case["forms"]["global"]["median_ms"] / case["forms"][OPERATOR]["median_ms"]
        for case in cases
        if case["side"] >= 56 and measures_operator(case) and "ratio" in case["forms"].get("global", {})
    ]
    least = min(speedups, default=math.nan)
    measured = NOT_MEASURED if math.isnan(least) else f"{least:.0f} times"
    bars = [
        Bar(
            "faster than the global branch, 56x56 and up (least)",
            "20 times",
            measured,
            "",
            None if math.isnan(least) else least >= 20,
        )
    ]
    for figure, words in (("median_ms", "time"), ("peak_bytes", "memory")):
        value = exponents(cases, figure).get(OPERATOR, math.nan)
        bars.append(_bar(f"{words} ~ (H·W)^p: p of the deployed operator", 1.1, value))
    return bars


def _bar(what: str, allowed: float | None, measured: float, floor: float = math.nan) -> Bar:
    met = None if math.isnan(measured) or allowed is None else measured <= allowed
    said = "" if allowed is None else f"{allowed:.2f}"
    return Bar(what, said, _number(measured) or NOT_MEASURED, _number(floor), met)


def _number(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.2f}"


def _at_resnet(cases: Sequence[Record], what: str, dtype: str, batch: int) -> list[Record]:
    """The eager CPU cases at all four stages; none where one is missing."""
    wanted = {"pass": what, "dtype": dtype, "batch": batch, "mode": "eager", "device": "cpu", "threads": 1}
    wanted["memory_format"] = "contiguous"
    at_stages = [case for case in cases if case["shape"] in RESNET and measures_operator(case)]
    found = [case for case in at_stages if all(case[name] == value for name, value in wanted.items())]
    return found if {case["shape"] for case in found} == set(RESNET) else []


def _floor(forms: dict[str, Record], form: Record) -> float:
    return form["flops"] / forms[BASELINE]["flops"]
