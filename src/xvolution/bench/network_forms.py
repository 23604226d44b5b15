"""The forms of a network that a bench compares, and how each is run: in a runtime, in torch, or as a training step."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import timm
import torch
from torch import Tensor, nn

from xvolution.attention.folded import LayoutError
from xvolution.bench.forms import cost, inference, peak_bytes, timed
from xvolution.bench.operators import BASELINE, DTYPES, MEMORY_FORMATS
from xvolution.bench.results import Record
from xvolution.bench.written import WrittenFiles
from xvolution.conversion.config import ConversionConfig
from xvolution.conversion.convert import convert
from xvolution.deploy.latency import cpu_threads
from xvolution.deploy.reparameterize import layouts_of, reparameterize
from xvolution.deploy.runtimes import RUNTIMES
from xvolution.deploy.shipping import without_zero_scales

#: Not a runtime: forward pass, backward pass and a step of SGD.
TRAINING = "training"


def plain_network(name: str) -> nn.Module:
    """A network of timm, or a detector of Ultralytics such as yolo11n, with random weights."""
    if timm.is_model(name):
        model: nn.Module = timm.create_model(name)
        return model
    from ultralytics.nn.tasks import DetectionModel

    detector: nn.Module = DetectionModel(f"{name}.yaml", verbose=False)
    return detector.eval()


def is_detector(name: str) -> bool:
    """Whether it is the name of a YOLO of the package ultralytics."""
    return name.startswith("yolo") and not timm.is_model(name)


@dataclass(frozen=True)
class NetworkForm:
    """A network with an operator in some of its stages.

    Attributes:
        name: name of the form in the results.
        config: the operator; None for the plain network.
        stages: stages with the operator; None for the default of ``convert``.
        layout: layout of the deployed X-volution, or ``"auto"``.
    """

    name: str
    config: ConversionConfig | None = None
    stages: tuple[int, ...] | None = None
    layout: str = "auto"

    def build(self, network: str) -> nn.Module:
        """The network with random weights and the operator, in training form."""
        torch.manual_seed(0)
        model = without_zero_scales(plain_network(network))
        if self.config is None:
            return model
        converted = convert(model, self.config, stages=self.stages, inplace=True)
        # At its start the attention is off; time does not depend on it, but what is measured should be what is trained.
        with torch.no_grad():
            for name, parameter in converted.named_parameters():
                if "attention_norm.weight" in name:
                    parameter.fill_(0.5)
        return converted


PLAIN = NetworkForm(BASELINE)


def measure_forms(
    settings: Mapping[str, Any], forms: Sequence[NetworkForm], files: WrittenFiles, rounds: int
) -> dict[str, Record]:
    """Cost and time of each form, which take turns with the plain network.

    Args:
        settings: ``network``, ``runtime``, ``batch``, ``image_size``, ``threads``, ``device``, ``dtype``, ``mode`` and
            ``memory_format``.
        forms: the forms beside the plain network.
        files: files that are already written.
        rounds: number of times each form is timed.

    Returns:
        Records by the form's name, with the number of operators in each layout; a reason instead of figures if a form
        has no such layout.
    """
    layouts = _ChosenLayouts()
    figures: dict[str, Record] = {form.name: {} for form in (PLAIN, *forms)}
    calls: dict[str, Callable[[], object]] = {}
    with cpu_threads(settings["threads"]):
        images = _placed(torch.randn(settings["batch"], 3, *(settings["image_size"],) * 2), settings)
        # Layouts that are chosen for the whole network are those of its stages too.
        for form in sorted((PLAIN, *forms), key=lambda form: form.stages is not None):
            try:
                calls[form.name], figures[form.name] = _form(form, settings, images, layouts, files)
            except LayoutError as error:
                figures[form.name] = {"skipped": str(error)}
        ordered = {name: calls[name] for name in figures if name in calls}
        for name, times in timed(ordered, BASELINE, rounds).items():
            figures[name] |= times
            if settings["device"] == "cuda":
                figures[name]["peak_bytes"] = peak_bytes(calls[name], images.device)
    torch.compiler.reset()
    return figures


class _ChosenLayouts:
    """The layouts that ``"auto"`` chose for a network with all possible operators, by operator."""

    def __init__(self) -> None:
        self._found: dict[str, Mapping[str, str]] = {}

    def of(self, form: NetworkForm) -> str | Mapping[str, str]:
        """The layout to ask ``reparameterize`` for."""
        return self._found.get(repr(form.config), form.layout) if form.layout == "auto" else form.layout

    def keep(self, form: NetworkForm, layouts: Mapping[str, str]) -> None:
        if form.layout == "auto" and form.stages is None:
            self._found[repr(form.config)] = layouts


def _form(
    form: NetworkForm, settings: Mapping[str, Any], images: Tensor, layouts: _ChosenLayouts, files: WrittenFiles
) -> tuple[Callable[[], object], Record]:
    """A call of one form, and what it costs."""
    model: nn.Module = _placed(form.build(settings["network"]), settings)
    if settings["runtime"] == TRAINING:
        return training_step(_as_run(model.train(), settings), images, DTYPES[settings["dtype"]]), cost(
            model, images[:1]
        )
    runtime, threads = settings["runtime"], settings["threads"]
    wanted = layouts.of(form)
    model = reparameterize(model.eval(), images, wanted, fold_norms=True, runtime=runtime, threads=threads)
    chosen = layouts_of(model)
    layouts.keep(form, chosen)
    figures = cost(model, images[:1]) | {"layouts": dict(Counter(chosen.values()))}
    if runtime in RUNTIMES:
        content = (settings["network"], repr(form.config), form.stages, tuple(chosen.items()))
        return files.runner(runtime, model, images, content, threads), figures
    dtype = DTYPES[settings["dtype"]]
    return inference(_as_run(model.to(dtype), settings), images.to(dtype)), figures


def _placed(what: Any, settings: Mapping[str, Any]) -> Any:
    """A module or a tensor on the device and in the memory format."""
    return what.to(settings["device"]).to(memory_format=MEMORY_FORMATS[settings["memory_format"]])


def _as_run(model: nn.Module, settings: Mapping[str, Any]) -> Any:
    return torch.compile(model, dynamic=False) if settings["mode"] == "compiled" else model


def training_step(model: nn.Module, images: Tensor, dtype: torch.dtype) -> Callable[[], object]:
    """One step of SGD with momentum; under autocast in a dtype other than float32."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)
    target = torch.zeros(len(images), dtype=torch.long, device=images.device)
    autocast = partial(torch.autocast, images.device.type, dtype=dtype, enabled=dtype != torch.float32)

    def step() -> object:
        optimizer.zero_grad()
        with autocast():
            loss = nn.functional.cross_entropy(model(images), target)
        loss.backward()
        return optimizer.step()

    return step
