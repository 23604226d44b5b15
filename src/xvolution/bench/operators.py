"""`xvolution bench operators`: one operator against one convolution."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from xvolution.bench.forms import cost, inference, peak_bytes, refusal, timed, training
from xvolution.bench.results import Case, Record
from xvolution.bench.settings import require_at_least, require_device, require_known, thread_count
from xvolution.bench.written import WrittenFiles
from xvolution.conversion.config import XVolutionConfig
from xvolution.conversion.register import operator_config, operator_names
from xvolution.deploy.latency import cpu_threads
from xvolution.deploy.runtimes import RUNTIMES
from xvolution.operator import XVolution, fold

RESNET = {"resnet-1": (64, 56, 56), "resnet-2": (128, 28, 28), "resnet-3": (256, 14, 14), "resnet-4": (512, 7, 7)}
FPN = {"fpn-2": (256, 200, 304), "fpn-3": (256, 100, 152), "fpn-4": (256, 50, 76), "fpn-5": (256, 25, 38)}
SHAPES = {**RESNET, **FPN}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
MEMORY_FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
MODES = ("eager", "compiled")
BASELINE = "conv"
WITH_NORM = "conv and norm"
#: What a case in a runtime of files is measured as: other settings are torch's.
_IN_FILES = {"pass": "inference", "dtype": "float32", "mode": "eager", "device": "cpu", "memory_format": "contiguous"}


@dataclass(frozen=True)
class OperatorBench:
    """Time operators for every combination of shapes, batches, dtypes, modes and threads.

    Args:
        operators: registered names of the operators to time beside conv, such as xvolution, se, acmix, involution, sasa,
            global.
        shapes: convolutions to replace: resnet-1 to resnet-4 (3x3, of a ResNet at 224 pixels), fpn-2 to fpn-5 (of an FPN
            at 800x1216).
        batches: numbers of images in a batch.
        dtypes: dtypes of the tensors: float32, bfloat16.
        modes: modes of torch: eager, compiled.
        threads: numbers of CPU threads; 0 uses all.
        passes: what is timed: inference (of the deployed form), training (forward and backward, with peak memory).
        rounds: number of times each form is timed; the forms take turns.
        device: device to measure on: cpu or cuda.
        memory_formats: memory formats in torch: contiguous, channels_last.
        runtimes: where the operators run: torch, or a runtime that export writes for, by name; the latter only for
            inference in float32.
    """

    operators: Sequence[str] = ("xvolution", "se", "global", "sasa", "involution", "acmix")
    shapes: Sequence[str] = tuple(RESNET)
    batches: Sequence[int] = (1, 32)
    dtypes: Sequence[str] = ("float32", "bfloat16")
    modes: Sequence[str] = ("eager",)
    threads: Sequence[int] = (1,)
    passes: Sequence[str] = ("inference", "training")
    rounds: int = 11
    device: str = "cpu"
    memory_formats: Sequence[str] = ("contiguous",)
    runtimes: Sequence[str] = ("torch",)

    def __post_init__(self) -> None:
        allowed: dict[str, Sequence[str]] = {
            "operators": operator_names(),
            "runtimes": ("torch", *RUNTIMES),
            "shapes": tuple(SHAPES),
            "dtypes": tuple(DTYPES),
            "modes": MODES,
            "memory-formats": tuple(MEMORY_FORMATS),
            "passes": ("inference", "training"),
        }
        for name, values in allowed.items():
            require_known(name, getattr(self, name.replace("-", "_")), values)
        for name, least in (("batches", 1), ("threads", 0), ("rounds", 1)):
            require_at_least(name, getattr(self, name), least)
        require_device(self.device)

    def cases(self) -> list[Case]:
        """All possible combinations."""
        files, found = WrittenFiles(), []
        combinations = product(
            self.passes,
            self.runtimes,
            self.dtypes,
            self.modes,
            self.memory_formats,
            self.threads,
            self.batches,
            self.shapes,
        )
        for what, runtime, dtype, mode, memory_format, threads, batch, shape in combinations:
            settings = {
                "pass": what,
                "runtime": runtime,
                "shape": shape,
                "size": list(SHAPES[shape]),
                "batch": batch,
                "dtype": dtype,
                "mode": mode,
                "threads": thread_count(threads),
                "device": self.device,
                "memory_format": memory_format,
            }
            if runtime in RUNTIMES and any(settings[name] != value for name, value in _IN_FILES.items()):
                continue
            key = " ".join(str(value) for name, value in settings.items() if name != "size")
            found.append(Case(key, settings, partial(self._measure, settings, files)))
        return found

    def _measure(self, settings: dict[str, Any], files: WrittenFiles) -> dict[str, Record]:
        channels, height, width = settings["size"]
        shape = (settings["batch"], channels, height, width)
        torch.manual_seed(0)
        forms, figures = self._forms(settings["pass"], shape)
        place: dict[str, Any] = {"dtype": DTYPES[settings["dtype"]], "device": self.device}
        memory_format = MEMORY_FORMATS[settings["memory_format"]]
        x = torch.randn(shape).to(**place).contiguous(memory_format=memory_format)
        with cpu_threads(settings["threads"]):
            calls: dict[str, Callable[[], object]] = {}
            for name, form in forms.items():
                figures[name] |= cost(form, torch.randn(1, *shape[1:]))
                if settings["runtime"] in RUNTIMES:
                    calls[name] = files.runner(settings["runtime"], form, x, (name, channels), settings["threads"])
                    continue
                module = form.to(**place).to(memory_format=memory_format)
                run = torch.compile(module, dynamic=False) if settings["mode"] == "compiled" else module
                calls[name] = _call(settings["pass"], run, x)
            for name, times in timed(calls, BASELINE, self.rounds).items():
                figures[name] |= times
                if settings["mode"] == "eager" and settings["runtime"] not in RUNTIMES:
                    figures[name]["peak_bytes"] = peak_bytes(calls[name], x.device)
        torch.compiler.reset()
        return figures

    def _forms(self, what: str, shape: tuple[int, ...]) -> tuple[dict[str, nn.Module], dict[str, Record]]:
        """The modules to measure, and for every form an empty record or the reason why it is not measured."""
        forms: dict[str, nn.Module] = {}
        figures: dict[str, Record] = {}
        for name, form in self._built(what, shape[1]):
            reason = refusal(form, shape)
            figures[name] = {} if reason is None else {"skipped": reason}
            if reason is None:
                forms[name] = form
        return forms, figures

    def _built(self, what: str, channels: int) -> Iterator[tuple[str, nn.Module]]:
        conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        yield BASELINE, conv.train(what == "training")
        if what == "training":
            yield WITH_NORM, nn.Sequential(deepcopy(conv), nn.BatchNorm2d(channels))
        for name in self.operators:
            if name == BASELINE:
                continue
            # A norm folds into the convolution; only X-volution folds by itself.
            config = operator_config(name)
            keeps_norm = what == "training" or isinstance(config, XVolutionConfig)
            operator = config.replacement(deepcopy(conv), nn.BatchNorm2d(channels) if keeps_norm else None)
            if what == "training":
                yield name, operator.train()
            elif not isinstance(operator, XVolution):
                yield name, operator.eval()
            else:
                for layout, deployed in deployed_layouts(operator.eval()).items():
                    yield f"{name} {layout}", deployed


def deployed_layouts(operator: XVolution) -> dict[str, nn.Module]:
    """The layouts in which an operator can be deployed; an operator that does not merge has one."""
    folded = fold(operator)
    return {layout: folded.deployed(layout, operator.conv.weight) for layout in folded.layouts}


def _call(what: str, module: Any, x: Tensor) -> Any:
    return inference(module, x) if what == "inference" else training(module, x)


def full(bench: OperatorBench) -> OperatorBench:
    """The same over every shape, both modes, and one and all threads."""
    return dataclasses.replace(bench, shapes=tuple(SHAPES), modes=MODES, threads=(1, 0))
