"""`xvolution bench networks`: whole networks, plain, with squeeze-and-excitation and with X-volution, in each runtime."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from itertools import product
from typing import Any

import timm

from xvolution.bench.network_forms import TRAINING, NetworkForm, is_detector, measure_forms, plain_network
from xvolution.bench.operators import DTYPES, MEMORY_FORMATS, MODES
from xvolution.bench.results import Case, Record
from xvolution.bench.settings import require_at_least, require_device, require_known, thread_count
from xvolution.bench.written import WrittenFiles
from xvolution.conversion.register import operator_config
from xvolution.conversion.selection import stages_of
from xvolution.deploy.runtimes import RUNTIMES
from xvolution.training.errors import InputError

NETWORKS = (
    "resnet18",
    "resnet50",
    "mobilenetv2_100",
    "mobilenetv3_large_100",
    "convnext_atto",
    "efficientnet_lite0",
    "efficientnet_b0",
)
#: The rival, on the convolutions that X-volution would replace; of a depthwise one and its projection, on the depthwise one.
SQUEEZE_EXCITATION = "se"
STAGE_3, LAST_TWO, ALL = "stage 3", "last two stages", "all stages"


@dataclass(frozen=True)
class NetworkBench:
    """Time the plain network against squeeze-and-excitation and X-volution in stage 3, in the last two and in all stages.

    Deployed networks have all their norms folded, the plain one as well.

    Args:
        networks: names of networks in timm, or of Ultralytics' YOLOs such as yolo11n if the package ultralytics is
            installed.
        runtimes: where the networks run: torch, a runtime that export writes for, by name, or training for one training
            step of a classifier (forward, backward, SGD).
        batches: numbers of images in a batch.
        layouts: layouts of the deployed X-volution: auto, or names such as split and single.
        memory_formats: memory formats in torch and training: contiguous, channels_last.
        modes: modes of torch and training: eager, compiled.
        dtypes: dtypes in torch, or of autocast in training: float32, bfloat16.
        image_size: side length of the images in pixels.
        threads: number of CPU threads; 0 uses all.
        rounds: number of times each form is timed; the forms take turns.
        device: device to measure on: cpu or cuda.
    """

    networks: Sequence[str] = NETWORKS
    runtimes: Sequence[str] = ("onnxruntime", "openvino", "torch")
    batches: Sequence[int] = (1,)
    layouts: Sequence[str] = ("auto",)
    memory_formats: Sequence[str] = tuple(MEMORY_FORMATS)
    modes: Sequence[str] = ("eager",)
    dtypes: Sequence[str] = ("float32",)
    image_size: int = 224
    threads: int = 1
    rounds: int = 11
    device: str = "cpu"

    def __post_init__(self) -> None:
        require_networks(self.networks)
        require_known("runtimes", self.runtimes, (TRAINING, "torch", *RUNTIMES))
        for name, allowed in (("memory-formats", MEMORY_FORMATS), ("modes", MODES), ("dtypes", DTYPES)):
            require_known(name, getattr(self, name.replace("-", "_")), tuple(allowed))
        for name, least in (("batches", 1), ("image-size", 32), ("threads", 0), ("rounds", 1)):
            require_at_least(name, getattr(self, name.replace("-", "_")), least)
        require_device(self.device)
        on_cpu = [name for name in self.runtimes if name in RUNTIMES]
        if on_cpu and self.device != "cpu":
            raise InputError(
                f"--runtimes has {', '.join(on_cpu)}, which runs on the CPU only; with --device "
                f"{self.device}, give torch or training."
            )
        if TRAINING in self.runtimes and any(map(is_detector, self.networks)):
            raise InputError(
                "--runtimes has training, which measures classifiers only; leave the YOLOs or training out."
            )
        if TRAINING in self.runtimes and max(self.batches) < 2:
            raise InputError(
                "--runtimes has training, where batch norms need at least 2 images; give --batches 2 or more."
            )

    def cases(self) -> list[Case]:
        """All combinations, without training steps on one image, because batch norms need more."""
        files, found = WrittenFiles(), []
        for network, runtime, batch in product(self.networks, self.runtimes, self.batches):
            if runtime == TRAINING and batch == 1:
                continue
            for way in ways(runtime, self.memory_formats, self.modes, self.dtypes):
                settings = {
                    "network": network,
                    "runtime": runtime,
                    "batch": batch,
                    "image_size": self.image_size,
                    "threads": thread_count(self.threads),
                    "device": self.device,
                    **way,
                    "layouts": [] if runtime == TRAINING else list(self.layouts),
                }
                key = " ".join(
                    " ".join(value) if isinstance(value, list) else str(value) for value in settings.values()
                )
                found.append(Case(key, settings, partial(self._measure, settings, files)))
        return found

    def _measure(self, settings: dict[str, Any], files: WrittenFiles) -> dict[str, Record]:
        forms = forms_of(settings["network"], settings["layouts"] or ["auto"])
        return measure_forms(settings, forms, files, self.rounds)


def require_networks(names: Sequence[str]) -> None:
    """Raise ``InputError`` unless timm has networks of these names."""
    if any(map(is_detector, names)) and find_spec("ultralytics") is None:
        raise InputError(
            "--networks has a YOLO, which needs the package ultralytics (AGPL); install the package, or "
            "leave the YOLO out."
        )
    missing = [name for name in names if not (timm.is_model(name) or is_detector(name))]
    if missing or not names:
        said = ", ".join(missing) or "empty"
        raise InputError(f"--networks is {said}; timm has no such model. Give names like resnet50 or yolo11n.")


def ways(
    runtime: str, memory_formats: Sequence[str], modes: Sequence[str], dtypes: Sequence[str]
) -> Iterator[dict[str, str]]:
    """The settings in which torch runs a network; a runtime has a single setting."""
    chosen = [("contiguous",), ("eager",), ("float32",)] if runtime in RUNTIMES else [memory_formats, modes, dtypes]
    for memory_format, mode, dtype in product(*chosen):
        yield {"dtype": dtype, "mode": mode, "memory_format": memory_format}


def forms_of(network: str, layouts: Sequence[str]) -> list[NetworkForm]:
    """The forms beside the plain network; a layout that is given by name is part of the form's name."""
    last = len(stages_of(plain_network(network)))
    # YOLOs have no stages.
    places = ({STAGE_3: (3,), LAST_TWO: (last - 1, last)} if last else {}) | {ALL: None}
    forms = [NetworkForm(SQUEEZE_EXCITATION, operator_config(SQUEEZE_EXCITATION))]
    for layout, (name, stages) in product(layouts, places.items()):
        forms.append(NetworkForm(name if layout == "auto" else f"{name} {layout}", operator_config(), stages, layout))
    return forms
