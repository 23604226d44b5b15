"""`xvolution bench operators`: an operator in the place of one convolution."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from xvolution.bench.forms import cost, inference, peak_bytes, refusal, timed, training
from xvolution.bench.results import Case, Record
from xvolution.bench.settings import require_at_least, require_known, thread_count
from xvolution.conversion.register import operator_config, operator_names
from xvolution.deploy.latency import cpu_threads
from xvolution.operator import XVolution, fold
from xvolution.training.errors import InputError

RESNET = {"resnet-1": (64, 56, 56), "resnet-2": (128, 28, 28), "resnet-3": (256, 14, 14), "resnet-4": (512, 7, 7)}
FPN = {"fpn-2": (256, 200, 304), "fpn-3": (256, 100, 152), "fpn-4": (256, 50, 76), "fpn-5": (256, 25, 38)}
SHAPES = {**RESNET, **FPN}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
BASELINE = "conv"
WITH_NORM = "conv and norm"


@dataclass(frozen=True)
class OperatorBench:
    """What to measure: every combination of shapes, batches, dtypes, modes and threads.

    Args:
        operators: names of the register beside conv, such as xvolution, acmix, involution, sasa, global.
        shapes: resnet-1 to resnet-4 (the 3x3 convolutions of a ResNet at 224), fpn-2 to fpn-5 (an FPN at 800x1216).
        batches: images in a batch.
        dtypes: float32, bfloat16.
        modes: eager, compiled.
        threads: of the CPU; 0 is all.
        passes: inference (of the deployed form), training (forward and backward, with peak memory).
        rounds: samples of each form, taken in turns.
        device: cpu or cuda.
        channels_last: the memory format.
    """

    operators: Sequence[str] = ("xvolution", "global", "sasa", "involution", "acmix")
    shapes: Sequence[str] = tuple(RESNET)
    batches: Sequence[int] = (1, 32)
    dtypes: Sequence[str] = ("float32", "bfloat16")
    modes: Sequence[str] = ("eager",)
    threads: Sequence[int] = (1,)
    passes: Sequence[str] = ("inference", "training")
    rounds: int = 11
    device: str = "cpu"
    channels_last: bool = False

    def __post_init__(self) -> None:
        allowed: dict[str, Sequence[str]] = {
            "operators": operator_names(),
            "shapes": tuple(SHAPES),
            "dtypes": tuple(DTYPES),
            "modes": ("eager", "compiled"),
            "passes": ("inference", "training"),
        }
        for name, values in allowed.items():
            require_known(name, getattr(self, name), values)
        for name, least in (("batches", 1), ("threads", 0), ("rounds", 1)):
            require_at_least(name, getattr(self, name), least)
        require_known("device", [self.device], ("cpu", "cuda"))
        if self.device == "cuda" and not torch.cuda.is_available():
            raise InputError("--device is cuda, and there is none here; take cpu.")

    def cases(self) -> list[Case]:
        """All combinations."""
        found = []
        combinations = product(self.passes, self.dtypes, self.modes, self.threads, self.batches, self.shapes)
        for what, dtype, mode, threads, batch, shape in combinations:
            settings = {
                "pass": what,
                "shape": shape,
                "size": list(SHAPES[shape]),
                "batch": batch,
                "dtype": dtype,
                "mode": mode,
                "threads": thread_count(threads),
                "device": self.device,
                "memory_format": "channels_last" if self.channels_last else "contiguous",
            }
            names = ("pass", "shape", "batch", "dtype", "mode", "threads", "device", "memory_format")
            key = " ".join(str(settings[name]) for name in names)
            found.append(Case(key, settings, partial(self._measure, settings)))
        return found

    def _measure(self, settings: dict[str, Any]) -> dict[str, Record]:
        channels, height, width = settings["size"]
        shape = (settings["batch"], channels, height, width)
        torch.manual_seed(0)
        forms, figures = self._forms(settings["pass"], shape)
        dtype, device = DTYPES[settings["dtype"]], torch.device(self.device)
        place: dict[str, Any] = {"dtype": dtype, "device": device}
        format = torch.channels_last if self.channels_last else torch.contiguous_format
        x = torch.randn(shape).to(**place).contiguous(memory_format=format)
        with cpu_threads(settings["threads"]):
            calls = {}
            for name, form in forms.items():
                figures[name] |= cost(form, torch.randn(1, *shape[1:]))
                module = form.to(**place).to(memory_format=format)
                run = torch.compile(module, dynamic=False) if settings["mode"] == "compiled" else module
                calls[name] = _call(settings["pass"], run, x)
            for name, times in timed(calls, BASELINE, self.rounds).items():
                figures[name] |= times
                if settings["mode"] == "eager":
                    figures[name]["peak_bytes"] = peak_bytes(calls[name], device)
        torch.compiler.reset()
        return figures

    def _forms(self, what: str, shape: tuple[int, ...]) -> tuple[dict[str, nn.Module], dict[str, Record]]:
        """The modules that are worth measuring, and for every form an empty record or why it is not measured."""
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
            operator = operator_config(name).replacement(deepcopy(conv), nn.BatchNorm2d(channels))
            if what == "training":
                yield name, operator.train()
            elif not isinstance(operator, XVolution):
                yield name, operator.eval()
            else:
                for layout, deployed in deployed_layouts(operator.eval()).items():
                    yield f"{name} {layout}", deployed


def deployed_layouts(operator: XVolution) -> dict[str, nn.Module]:
    """Each layout in which an operator deploys; those that cannot merge have one."""
    folded = fold(operator)
    return {layout: folded.deployed(layout, operator.conv.weight) for layout in folded.layouts}


def _call(what: str, module: Any, x: Tensor) -> Any:
    return inference(module, x) if what == "inference" else training(module, x)


def full(bench: OperatorBench) -> OperatorBench:
    """The same over every shape, both modes, and one and all threads."""
    return dataclasses.replace(bench, shapes=tuple(SHAPES), modes=("eager", "compiled"), threads=(1, 0))
