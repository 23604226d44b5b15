"""The architectures of timm and torchvision: their names, how one is built small, and what it takes as input."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import timm
import torch
import torchvision
from torch import Tensor, nn

_SIDES = (64, 96, 128, 160, 192, 224, 256, 299)


@dataclass(frozen=True)
class Architecture:
    """One name of one library."""

    source: str
    name: str

    @property
    def key(self) -> str:
        """``source/name``."""
        return f"{self.source}/{self.name}"

    @property
    def family(self) -> str:
        """The module that defines it, without the package: ``resnet``, ``detection.faster_rcnn``."""
        if self.source == "timm":
            return timm.model_entrypoint(self.name).__module__.rpartition(".")[2]
        return torchvision.models.get_model_builder(self.name).__module__.removeprefix("torchvision.models.")

    @property
    def task(self) -> str:
        """``classification``, ``segmentation``, ``detection``, ``video`` or ``optical_flow``."""
        task, dot, _ = self.family.partition(".")
        return task if self.source == "torchvision" and dot else "classification"

    def build(self, **options: Any) -> nn.Module:
        """The network with random weights."""
        if self.source == "timm":
            return timm.create_model(self.name, **options)
        if self.task in ("detection", "segmentation"):
            options["weights_backbone"] = None
        if self.task == "detection":
            options |= _detector_options(self.family)
        return torchvision.models.get_model(self.name, weights=None, **options)


def architectures() -> list[Architecture]:
    """Every name of timm, and of torchvision all but the quantizable ones."""
    theirs = [Architecture("timm", name) for name in timm.list_models()]
    others = [Architecture("torchvision", name) for name in torchvision.models.list_models()]
    return sorted(theirs + [a for a in others if a.task != "quantization"], key=lambda a: a.key)


@dataclass(frozen=True)
class Example:
    """Positional arguments for both modes, and their size in words."""

    evaluation: tuple[Any, ...]
    training: tuple[Any, ...]
    label: str

    @classmethod
    def of(cls, *arguments: Any) -> Example:
        """The same arguments in both modes."""
        shape = next(argument.shape for argument in arguments if isinstance(argument, Tensor))
        return cls(arguments, arguments, "x".join(map(str, shape)))


def candidates(architecture: Architecture, dtype: torch.dtype) -> Iterator[tuple[nn.Module, Example]]:
    """Networks with inputs to try, the cheapest first; not every network takes every size."""
    if architecture.task == "detection":
        yield architecture.build().to(dtype), _detection(128, dtype)
        return
    if architecture.task == "optical_flow":
        yield architecture.build().to(dtype), Example.of(*(_image(2, 3, 128, 128, dtype=dtype) for _ in range(2)), 2)
        return
    for option in _size_options(architecture):
        for side in (64, 96, 128, 192, 224):
            try:
                network = architecture.build(**{option: (side, side)})
            except Exception:  # a network of fixed size refuses sizes in its own words
                continue
            yield network.to(dtype), Example.of(_image(2, _channels(network), side, side, dtype=dtype))
    network = architecture.build().to(dtype)
    if architecture.task == "video":
        for frames, side in ((8, 64), (16, 64), (16, 112), (16, 224)):
            yield network, Example.of(_image(2, 3, frames, side, side, dtype=dtype))
        return
    for side in sorted({*_SIDES, _settings(network).get("input_size", (3, 224, 224))[-1]}):
        yield network, Example.of(_image(2, _channels(network), side, side, dtype=dtype))


def _settings(network: Any) -> Any:
    return getattr(network, "pretrained_cfg", None) or {}


def _channels(network: nn.Module) -> int:
    return _settings(network).get("input_size", (3,))[0]


def _size_options(architecture: Architecture) -> tuple[str, ...]:
    """The name of the option that sets the size, for networks that are built for one size."""
    if architecture.source == "timm":
        settings = timm.get_pretrained_cfg(architecture.name, allow_unregistered=True)
        return ("img_size",) if settings is not None and settings.fixed_input_size else ()
    return ("input_size",) if architecture.family == "maxvit" else ()


def _image(*shape: int, dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.rand(shape, generator=generator, dtype=dtype) * 2 - 1


def _detector_options(family: str) -> dict[str, Any]:
    """Few classes, small images, and no score threshold: a random detector would return no box at all."""
    kind = family.partition(".")[2]
    if kind in ("ssd", "ssdlite"):
        return {"num_classes": 5, "score_thresh": 0.0}
    sizes = {"num_classes": 5, "min_size": 128, "max_size": 128}
    return sizes | ({"score_thresh": 0.0} if kind in ("retinanet", "fcos") else {"box_score_thresh": 0.0})


def _detection(side: int, dtype: torch.dtype) -> Example:
    images = [(_image(3, side, side, dtype=dtype) + 1) / 2, (_image(3, side, side + 1, dtype=dtype)[..., :-1] + 1) / 2]
    boxes = torch.tensor([[0.1, 0.1, 0.6, 0.7], [0.3, 0.2, 0.9, 0.9]], dtype=dtype) * side
    masks = torch.zeros(2, side, side, dtype=torch.uint8)
    masks[:, side // 4 : side // 2, side // 4 : side // 2] = 1
    keypoints = torch.ones(2, 17, 3)
    keypoints[..., :2] = side / 2
    target = {"boxes": boxes, "labels": torch.tensor([1, 1]), "masks": masks, "keypoints": keypoints}
    return Example((images,), (images, [dict(target) for _ in images]), f"2 images 3x{side}x{side}")
