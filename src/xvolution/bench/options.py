"""`xvolution bench options`: what each option of X-volution's default branch costs in each runtime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any

from xvolution.attention.pixel_shift import PixelShift
from xvolution.bench.network_forms import NetworkForm, measure_forms
from xvolution.bench.networks import require_networks, ways
from xvolution.bench.operators import MEMORY_FORMATS
from xvolution.bench.results import Case, Record
from xvolution.bench.settings import require_at_least, require_known, thread_count
from xvolution.bench.written import WrittenFiles
from xvolution.conversion.config import ConversionConfig, XVolutionConfig
from xvolution.deploy.runtimes import RUNTIMES

DEFAULT = "default"
#: What is changed. Some of it is the default beside one kind of convolution, which shows the noise of the measurement.
CHANGES: tuple[Mapping[str, Any], ...] = (
    {"pooled_query": True},
    {"pooled_query": False},
    {"pooled_key": False},
    {"pooled_query": False, "pooled_key": False},
    {"attention_ratio": 0.25},
    {"attention_ratio": 0.125},
    {"attention_channels": 8},
    {"attention_channels": 16},
    {"gate": "identity"},
    {"gate": "tanh"},
    {"window": 3},
    {"window": 5},
)


@dataclass(frozen=True)
class OptionBench:
    """Time the plain network against X-volution in all stages, with its defaults and with one option changed.

    Deployed networks have all their norms folded, the plain one as well.

    Args:
        networks: names of networks in timm.
        runtimes: where the networks run: torch, or a runtime that export writes for, by name.
        batches: numbers of images in a batch.
        layout: layout of all deployed operators, or auto.
        memory_formats: memory formats in torch: contiguous, channels_last.
        image_size: side length of the images in pixels.
        threads: number of CPU threads; 0 uses all.
        rounds: number of times each form is timed; the forms take turns.
    """

    networks: Sequence[str] = ("resnet18", "efficientnet_lite0")
    runtimes: Sequence[str] = ("onnxruntime", "openvino", "torch")
    batches: Sequence[int] = (1,)
    layout: str = "split"
    memory_formats: Sequence[str] = tuple(MEMORY_FORMATS)
    image_size: int = 224
    threads: int = 1
    rounds: int = 11

    def __post_init__(self) -> None:
        require_networks(self.networks)
        require_known("runtimes", self.runtimes, ("torch", *RUNTIMES))
        require_known("memory-formats", self.memory_formats, tuple(MEMORY_FORMATS))
        for name, least in (("batches", 1), ("image-size", 32), ("threads", 0), ("rounds", 1)):
            require_at_least(name, getattr(self, name.replace("-", "_")), least)

    def cases(self) -> list[Case]:
        """All combinations, with every option in each."""
        files, found = WrittenFiles(), []
        for network, runtime, batch in product(self.networks, self.runtimes, self.batches):
            for way in ways(runtime, self.memory_formats, ("eager",), ("float32",)):
                settings = {
                    "network": network,
                    "runtime": runtime,
                    "batch": batch,
                    "image_size": self.image_size,
                    "threads": thread_count(self.threads),
                    "device": "cpu",
                    **way,
                    "layout": self.layout,
                }
                key = " ".join(map(str, settings.values()))
                found.append(Case(key, settings, partial(self._measure, settings, files)))
        return found

    def _measure(self, settings: dict[str, Any], files: WrittenFiles) -> dict[str, Record]:
        forms = [NetworkForm(name, config, None, settings["layout"]) for name, config in self.forms().items()]
        return measure_forms(settings, forms, files, self.rounds)

    def forms(self) -> Mapping[str, ConversionConfig]:
        """The forms that are measured beside the plain network, by name."""
        return {name: XVolutionConfig(attention=PixelShift(**changed)) for name, changed in variants().items()}


def variants() -> dict[str, Mapping[str, Any]]:
    """The changed options, by the name of the form."""
    return {DEFAULT: {}} | {_said(changed): changed for changed in CHANGES}


def _said(changed: Mapping[str, Any]) -> str:
    return ", ".join(f"{option}={value}" for option, value in changed.items())
