"""`xvolution bench mechanisms`: other operators and the attention branches of X-volution in each runtime."""

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
    """Time the plain network against each other operator and each attention branch, wherever `convert` puts it.

    Deployed networks have all their norms folded, the plain one as well.

    Args:
        networks: names of networks in timm.
        runtimes: where the networks run: torch, or a runtime that export writes for, by name.
        batches: numbers of images in a batch.
        layout: layout of the deployed X-volution, or auto.
        memory_formats: memory formats in torch: contiguous, channels_last.
        image_size: side length of the images in pixels.
        threads: number of CPU threads; 0 uses all.
        rounds: number of times each form is timed; the forms take turns.
    """

    runtimes: Sequence[str] = ("onnxruntime", "openvino")
    layout: str = "auto"

    def forms(self) -> Mapping[str, ConversionConfig]:
        return {name: operator_config(operator, options) for name, (operator, options) in MECHANISMS.items()}
