"""The required speeds, and the figures that benches measured for them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from xvolution.bench.network_forms import TRAINING
from xvolution.bench.networks import ALL, SQUEEZE_EXCITATION, STAGE_3
from xvolution.bench.operators import BASELINE, RESNET
from xvolution.bench.results import Record
from xvolution.deploy.runtimes import RUNTIMES

OPERATOR = "xvolution"
NOT_MEASURED = "not measured here"

#: The runtimes of written files that the bars name.
_FILES = ("onnxruntime", "openvino")
#: What a case is where nothing else is said; records of 0.1.0 say no more than some of it.
_USUAL = {"threads": 1, "device": "cpu", "dtype": "float32", "mode": "eager", "memory_format": "contiguous"}
_RESNETS = (("resnet18", "ResNet-18", 1.08), ("resnet50", "ResNet-50", 1.05))
_DEPTHWISE = (
    ("mobilenetv2_100", "MobileNetV2"),
    ("efficientnet_lite0", "EfficientNet-Lite0"),
    ("convnext_atto", "ConvNeXt-atto"),
)


@dataclass(frozen=True)
class Bar:
    """One line of the table.

    Attributes:
        what: the figure, in words.
        allowed: the required value.
        measured: the measured value, or a text that there is none.
        floor: the same figure for arithmetic alone, if it is meaningful.
        met: whether the requirement holds; None if nothing was measured.
    """

    what: str
    allowed: str
    measured: str
    floor: str
    met: bool | None


def geometric_mean(values: Iterable[float]) -> float:
    """Geometric mean of positive numbers; NaN if there are none."""
    logarithms = [math.log(value) for value in values]
    return math.exp(sum(logarithms) / len(logarithms)) if logarithms else math.nan


def fastest_layout(forms: dict[str, Record]) -> Record:
    """The deployed X-volution in the layout with the smallest ratio, as ``layout="auto"`` chooses."""
    layouts = [form for name, form in forms.items() if name.startswith(f"{OPERATOR} ") and "ratio" in form]
    return min(layouts, key=lambda form: form["ratio"])


def measures_operator(case: Record) -> bool:
    """Whether X-volution was among the forms, and was run."""
    return any(name.split()[0] == OPERATOR and "ratio" in form for name, form in case["forms"].items())


def matches(case: Record, **wanted: Any) -> bool:
    """Whether a case has the wanted settings, and the defaults otherwise: one CPU thread, float32, eager, contiguous."""
    return all(case.get(name, _USUAL.get(name)) == value for name, value in {**_USUAL, **wanted}.items())


def operator_bars(cases: Sequence[Record]) -> list[Bar]:
    """The deployed operator at the four ResNet shapes, one image, in each runtime."""
    bars = []
    ways = [(RUNTIMES[name].title, {"runtime": name}, 1.10, 1.15) for name in _FILES]
    for memory_format in ("contiguous", "channels_last"):
        ways.append((f"PyTorch, {memory_format}", {"runtime": "torch", "memory_format": memory_format}, 1.20, 1.30))
    for title, way, mean_allowed, largest_allowed in ways:
        found = [_with_runtime(case) for case in cases if measures_operator(case) and case["shape"] in RESNET]
        found = [case for case in found if matches(case, batch=1, **{"pass": "inference"}, **way)]
        found = found if {case["shape"] for case in found} == set(RESNET) else []
        ratios = [fastest_layout(case["forms"])["ratio"] for case in found]
        floors = [_floor(case["forms"], fastest_layout(case["forms"])) for case in found]
        what = f"deployed operator / conv, {title}"
        bars.append(_bar(f"{what}: geometric mean", mean_allowed, geometric_mean(ratios), geometric_mean(floors)))
        largest = max(ratios, default=math.nan), max(floors, default=math.nan)
        bars.append(_bar(f"{what}: largest", largest_allowed, *largest))
    return bars


def network_bars(cases: Sequence[Record]) -> list[Bar]:
    """X-volution in all stages of deployed networks, one image, in the runtimes of written files."""
    bars = []
    for network, title, allowed in _RESNETS:
        for runtime in _FILES:
            forms = _forms(cases, network=network, runtime=runtime, batch=1, image_size=224)
            bars.append(_network_bar(f"{title}, all stages, {RUNTIMES[runtime].title}", allowed, forms, ALL))
    for network, title in _DEPTHWISE:
        for runtime in _FILES:
            forms = _forms(cases, network=network, runtime=runtime, batch=1, image_size=224)
            what = f"{title}, all stages, {RUNTIMES[runtime].title}"
            bars.append(_network_bar(what, 1.12, forms, ALL))
            rival, ours = (forms.get(name, {}).get("ratio", math.nan) for name in (SQUEEZE_EXCITATION, ALL))
            bars.append(_bar(f"{what} / with squeeze-and-excitation", 1.0, ours / rival))
    return bars


def training_bars(cases: Sequence[Record]) -> list[Bar]:
    """The training step of ResNets, on the CPU and on a GPU."""
    bars = []
    for device, title in (("cpu", "CPU"), ("cuda", "GPU")):
        for network, name, _ in _RESNETS:
            steps = [case for case in cases if case["runtime"] == TRAINING and case.get("device", "cpu") == device]
            found = [case["forms"] for case in steps if case["network"] == network]
            for form, allowed in ((STAGE_3, 1.05), (ALL, 1.15)):
                # Of several batches, memory formats and precisions, the dearest.
                ratios = [forms[form]["ratio"] for forms in found if "ratio" in forms.get(form, {})]
                what = f"training step, {name}, {form}, {title}"
                bars.append(_bar(what, allowed, max(ratios, default=math.nan)))
    return bars


def all_bars(cases: Mapping[str, Sequence[Record]]) -> list[Bar]:
    """All bars of speed, from the cases of each kind of bench."""
    networks = cases.get("networks", ())
    return [*network_bars(networks), *operator_bars(cases.get("operators", ())), *training_bars(networks)]


def _forms(cases: Sequence[Record], **wanted: Any) -> Mapping[str, Record]:
    """The forms of the last case with the wanted settings; empty if there is none."""
    found = [case["forms"] for case in cases if matches(case, **wanted)]
    return found[-1] if found else {}


def _network_bar(what: str, allowed: float, forms: Mapping[str, Record], form: str) -> Bar:
    if "ratio" not in forms.get(form, {}):
        return _bar(what, allowed, math.nan)
    return _bar(what, allowed, forms[form]["ratio"], _floor(forms, forms[form]))


def _bar(what: str, allowed: float, measured: float, floor: float = math.nan) -> Bar:
    met = None if math.isnan(measured) else round(measured, 2) <= allowed
    return Bar(what, f"{allowed:.2f}", _number(measured) or NOT_MEASURED, _number(floor), met)


def _number(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.2f}"


def _with_runtime(case: Record) -> Record:
    """A case of the operator bench, which in 0.1.0 measured in torch alone."""
    return {"runtime": "torch", **case}


def _floor(forms: Mapping[str, Record], form: Record) -> float:
    return form["flops"] / forms[BASELINE]["flops"]
