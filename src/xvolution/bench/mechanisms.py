"""`xvolution bench mechanisms`: the rivals and the mechanisms beside each other, where they are run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from xvolution.bench.options import OptionBench
from xvolution.conversion.config import ConversionConfig
from xvolution.conversion.register import operator_config

#: Operators and their options by the names that `experiments/tiny_imagenet/mechanisms.yaml` has for them.
MECHANISMS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "se": ("se", {}),
    "eca": ("eca", {}),
    "gc": ("gc", {}),
    "ca": ("ca", {}),
    "odconv": ("odconv", {}),
    "conv-diverse": ("conv-diverse", {}),
    "xvolution": ("xvolution", {}),
    "xvolution with diverse branches": ("xvolution", {"diverse_branches": True}),
    "xvolution with mixing pooled query": ("xvolution", {"reduction": 16}),
    "channel_gate": ("channel_gate", {}),
    "channel_gate light": ("channel_gate", {"separable": True, "channel_keys": True, "reduction": 16}),
}


@dataclass(frozen=True)
class MechanismBench(OptionBench):
    """The plain network against each rival and each mechanism wherever `convert` puts it.

    Deployed networks have all their norms folded, the plain one as well.

    Args:
        networks: names of timm's networks.
        runtimes: where the networks run: a runtime that ``export`` writes for, by its name; torch.
        batches: images in a batch.
        layout: layout in which X-volution is deployed, or auto.
        memory_formats: memory formats of torch: contiguous, channels_last.
        image_size: side length in pixels.
        threads: threads of the CPU; 0 takes all.
        rounds: samples of each form, taken in turns.
    """

    runtimes: Sequence[str] = ("onnxruntime", "openvino")
    layout: str = "auto"

    def forms(self) -> Mapping[str, ConversionConfig]:
        return {name: operator_config(operator, options) for name, (operator, options) in MECHANISMS.items()}
