"""The figures of an explanation: evaluations of the network with attention, without it, and with plain convolutions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xvolution.analysis import BranchStatistics, branch_statistics, receptive_field, silenced
from xvolution.deploy.collapse import collapse

#: Images whose gradients the receptive field is a mean of.
RECEPTIVE_FIELD_IMAGES = 64


@dataclass(frozen=True)
class JudgedImages:
    """Preprocessed evaluation images: pixels (n, C, H, W) and labels (n,), both on its device."""

    pixels: Tensor
    labels: Tensor
    batch_size: int

    @property
    def batches(self) -> tuple[Tensor, ...]:
        """Of pixels, each (batch_size, C, H, W) or fewer."""
        return self.pixels.split(self.batch_size)

    def some(self, count: int) -> Tensor:
        """Pixels of so many images, or of all where there are fewer, evenly spread."""
        return self.pixels[:: max(1, len(self.pixels) // count)][:count]

    @torch.inference_mode()
    def logits(self, model: nn.Module) -> Tensor:
        """(n, classes)."""
        return torch.cat([model(batch) for batch in self.batches])


@dataclass(frozen=True)
class Judgement:
    """The evaluation of a network.

    Attributes:
        top1: fraction of images whose most likely class is correct.
        loss: mean cross-entropy, in nats.
        changed: number of images with another prediction than that of the trained network.
    """

    top1: float
    loss: float
    changed: int

    @classmethod
    def of(cls, logits: Tensor, labels: Tensor, trained: Tensor) -> Judgement:
        """From logits (n, classes), labels (n,) and the trained network's logits."""
        prediction = logits.argmax(1)
        return cls(
            (prediction == labels).double().mean().item(),
            F.cross_entropy(logits.double(), labels).item(),
            int((prediction != trained.argmax(1)).sum()),
        )


@dataclass(frozen=True)
class Measurements:
    """The measurements of one network.

    Attributes:
        trained: as it was trained.
        silent: all attention branches replaced by their average.
        static: each operator replaced by the closest plain convolution.
        statistics: operator -> statistics of its attention branch.
        without: operator -> its attention alone replaced by its average.
        static_errors: operator -> relative error of the nearest plain convolution.
    """

    trained: Judgement
    silent: Judgement
    static: Judgement
    statistics: dict[str, BranchStatistics]
    without: dict[str, Judgement]
    static_errors: dict[str, float]


def measure(model: nn.Module, images: JudgedImages, say: Callable[[str], None]) -> Measurements:
    """Evaluate a network with attention, without it, and with plain convolutions.

    Args:
        model: in evaluation mode and training form.
        images: evaluation images.
        say: called with a line before each step.
    """
    say("running the network, measuring both branches of each operator")
    trained = images.logits(model)
    statistics = branch_statistics(model, images.batches)
    averages = {name: found.mean for name, found in statistics.items()}
    without = {}
    for place, name in enumerate(averages, 1):
        say(f"setting the attention of {name} to its average ({place} of {len(averages)})")
        without[name] = _silent(model, images, {name: averages[name]}, trained)
    silent = _silent(model, images, averages, trained)
    say("fitting the closest plain convolutions")
    plain, report = collapse(model, images.batches)
    return Measurements(
        Judgement.of(trained, images.labels, trained),
        silent,
        Judgement.of(images.logits(plain), images.labels, trained),
        statistics,
        without,
        report.layers,
    )


def _silent(model: nn.Module, images: JudgedImages, averages: Mapping[str, Tensor], trained: Tensor) -> Judgement:
    with silenced(model, averages):
        return Judgement.of(images.logits(model), images.labels, trained)


def receptive_fields(
    model: nn.Module, images: JudgedImages, name: str, averages: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The receptive field (H, W) of an operator's central pixel, with all attention up to it and with none."""
    pixels = images.some(RECEPTIVE_FIELD_IMAGES)
    attentive = receptive_field(model, pixels, name)
    with silenced(model, averages):
        silent = receptive_field(model, pixels, name)
    return {"with": attentive.cpu(), "without": silent.cpu()}
