"""`xvolution bench networks`: whole ResNets, plain and with X-volution, training and deployed."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from xvolution.bench.forms import cost, inference, timed
from xvolution.bench.operators import BASELINE
from xvolution.bench.results import Case, Record
from xvolution.bench.settings import require_at_least, require_known, thread_count
from xvolution.conversion.convert import convert
from xvolution.deploy.export import export
from xvolution.deploy.latency import cpu_threads
from xvolution.deploy.reparameterize import reparameterize
from xvolution.deploy.runtimes import RUNTIMES
from xvolution.training.errors import InputError

FORMS: dict[str, tuple[int, ...]] = {"stage 3": (3,), "all stages": (1, 2, 3, 4)}
MEASURED_IN = ("training", "torch", "onnxruntime", "openvino")


@dataclass(frozen=True)
class NetworkBench:
    """The plain network against X-volution in its third stage and in all stages.

    Deployed networks have all their norms folded, the plain one as well.

    Args:
        networks: names of timm's ResNets.
        runtimes: training (one step: forward, backward, SGD), and inference in torch or in a runtime that ``export``
            writes for, by its name.
        batches: images in a batch.
        image_size: side length in pixels.
        threads: of the CPU; 0 is all.
        rounds: samples of each form, taken in turns.
    """

    networks: Sequence[str] = ("resnet18", "resnet50")
    runtimes: Sequence[str] = MEASURED_IN
    batches: Sequence[int] = (1, 8)
    image_size: int = 224
    threads: int = 1
    rounds: int = 11

    def __post_init__(self) -> None:
        require_known("runtimes", self.runtimes, ("training", "torch", *RUNTIMES))
        missing = [name for name in self.networks if not timm.is_model(name)]
        if missing:
            raise InputError(f"--networks is {', '.join(missing)}; timm has no such model. Give names like resnet50.")
        for name, least in (("batches", 1), ("image_size", 32), ("threads", 0), ("rounds", 1)):
            require_at_least(name.replace("_", "-"), getattr(self, name), least)

    def cases(self) -> list[Case]:
        """All combinations; one image makes no training step, since batch norms need more."""
        found = []
        for network, runtime, batch in product(self.networks, self.runtimes, self.batches):
            if runtime == "training" and batch == 1:
                continue
            settings = {
                "network": network,
                "runtime": runtime,
                "batch": batch,
                "image_size": self.image_size,
                "threads": thread_count(self.threads),
            }
            key = " ".join(map(str, settings.values()))
            found.append(Case(key, settings, partial(self._measure, settings)))
        return found

    def _measure(self, settings: dict[str, Any]) -> dict[str, Record]:
        images = torch.randn(settings["batch"], 3, self.image_size, self.image_size)
        figures: dict[str, Record] = {}
        calls: dict[str, Callable[[], object]] = {}
        with cpu_threads(settings["threads"]), tempfile.TemporaryDirectory() as folder:
            for name, stages in {BASELINE: (), **FORMS}.items():
                model = _network(settings["network"], stages)
                if settings["runtime"] == "training":
                    calls[name] = _step(model.train(), images)
                else:
                    model = reparameterize(model.eval(), example_inputs=images, fold_norms=True)
                    calls[name] = _runner(model, settings, images, Path(folder, name.replace(" ", "-")))
                figures[name] = cost(model, images[:1])
            for name, times in timed(calls, BASELINE, self.rounds).items():
                figures[name] |= times
        return figures


def _network(name: str, stages: tuple[int, ...]) -> nn.Module:
    torch.manual_seed(0)
    model = timm.create_model(name)
    if not stages:
        return model
    converted = convert(model, stages=stages, inplace=True)
    # At its start the attention is off; time does not depend on it, but what is measured should be what is trained.
    with torch.no_grad():
        for module_name, parameter in converted.named_parameters():
            if "attention_norm.weight" in module_name:
                parameter.fill_(0.5)
    return converted


def _step(model: nn.Module, images: Tensor) -> Callable[[], object]:
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)
    target = torch.zeros(len(images), dtype=torch.long)

    def step() -> object:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), target).backward()
        return optimizer.step()

    return step


def _runner(model: nn.Module, settings: dict[str, Any], images: Tensor, path: Path) -> Callable[[], object]:
    """A call of the deployed network in its runtime."""
    runtime, threads = settings["runtime"], settings["threads"]
    if runtime == "torch":
        return inference(model, images)
    written = RUNTIMES[runtime]
    path = path.with_suffix(written.ending)
    export(model, path, example_inputs=images)
    loaded = written.load(path, threads=threads, input_shapes=[images.shape])
    return lambda: loaded(images)
