"""The demo's figures: accuracy, equality of the forms, cost, latency."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from xvolution.bench import LatencyComparison, count_flops, count_parameters, measure_latency
from xvolution.deploy.export import export
from xvolution.deploy.runtimes import OnnxRuntime
from xvolution.training import RunError, deploy, open_data
from xvolution.training.classification.exported_classifier import ExportedClassifier
from xvolution.training.classification.metadata import ClassifierMetadata
from xvolution.training.data.transforms import evaluation_transform
from xvolution.training.tasks import CLASSIFY

FORMS = {"conv": "plain convolution", "training": "X-volution, training form", "deployed": "X-volution, deployed"}
RUNTIMES = {"torch": "PyTorch", "onnxruntime": "ONNX Runtime"}
BATCH_SIZES = (1, 32)


@dataclass(frozen=True)
class Images:
    """The evaluation images: (n, 3, H, W) float32, (n,) int64 labels, and the class names."""

    pixels: Tensor
    labels: Tensor
    class_names: list[str]
    training_images: int


def judging_images(metadata: ClassifierMetadata) -> Images:
    """The evaluation part of the data that a network was trained on, preprocessed for the network."""
    splits = open_data(metadata.data)
    transform = evaluation_transform(metadata.preprocessing)
    pixels = torch.stack([transform(splits.val.image(index)) for index in range(len(splits.val))])
    return Images(pixels, torch.as_tensor(splits.val.labels), splits.val.class_names, len(splits.train))


@torch.inference_mode()
def logits_of(model: nn.Module, images: Tensor, batch_size: int = 64) -> Tensor:
    """(n, classes)."""
    return torch.cat([model(batch) for batch in images.split(batch_size)])


def top1(logits: Tensor, labels: Tensor) -> float:
    """Fraction of images whose most likely class is correct."""
    return (logits.argmax(1) == labels).double().mean().item()


@dataclass(frozen=True)
class Equality:
    """The difference of one form of a network from its training form, over all evaluation images.

    Attributes:
        predictions_that_differ: number of images with another most likely class.
        largest_difference: of any logit, absolute.
        relative_error: the same relative to the largest logit's magnitude.
    """

    predictions_that_differ: int
    largest_difference: float
    relative_error: float

    @classmethod
    def between(cls, expected: Tensor, actual: Tensor) -> Equality:
        difference = (expected - actual).abs().max().item()
        differing = int((expected.argmax(1) != actual.argmax(1)).sum())
        return cls(differing, difference, difference / expected.abs().max().item())


@dataclass(frozen=True)
class Twin:
    """A trained X-volution network in all its forms.

    Attributes:
        training: as it was trained, in evaluation mode.
        deployed: re-parameterized, the other norms folded too.
        onnx: the deployed form in ONNX Runtime.
        layouts: module name to layout of the deployed form.
    """

    training: nn.Module
    deployed: nn.Module
    onnx: ExportedClassifier
    layouts: dict[str, str]


def deploy_twin(checkpoint: Path, folder: Path, layout: str | Mapping[str, str]) -> Twin:
    """Re-parameterize, write deployed.safetensors and deployed.onnx into ``folder``, and run the latter.

    Args:
        checkpoint: of the twin.
        folder: for the files.
        layout: of its operators, or of each by its name, or auto, which times them.
    """
    files = [folder / "deployed.safetensors", folder / "deployed.onnx"]
    result = deploy(checkpoint, files, layout=layout, fold_norms=True, batch_size=BATCH_SIZES[-1])
    training, _ = CLASSIFY.load(checkpoint)
    return Twin(training, result.model, ExportedClassifier(files[1], OnnxRuntime()), result.metadata.layouts)


def compare_forms(twin: Twin, images: Images) -> dict[str, Equality]:
    """The deployed form in PyTorch and in ONNX Runtime, each against the training form.

    Raises:
        RunError: a prediction differs, or a logit by more than 1e-4 of the largest one.
    """
    expected = logits_of(twin.training, images.pixels)
    forms = {"torch": twin.deployed, "onnxruntime": twin.onnx}
    found = {name: Equality.between(expected, logits_of(form, images.pixels)) for name, form in forms.items()}
    for name, equality in found.items():
        if equality.predictions_that_differ or equality.relative_error > 1e-4:
            raise RunError(
                f"the deployed form in {RUNTIMES[name]} does not match the trained network: "
                f"{equality.predictions_that_differ} of {len(expected)} predictions differ, relative error "
                f"{equality.relative_error:.1e}. Please report this with the folder of the run."
            )
    return found


def costs(models: dict[str, nn.Module], example: Tensor) -> dict[str, dict[str, int]]:
    """Parameters, and operations for one image, of each form."""
    return {
        name: {"parameters": count_parameters(model), "flops": count_flops(model, example[:1]) or 0}
        for name, model in models.items()
    }


def in_onnxruntime(model: nn.Module, path: Path, example: Tensor) -> ExportedClassifier:
    """Export ``model`` and run the file."""
    export(model, path, example_inputs=example, layout=None)
    return ExportedClassifier(path, OnnxRuntime())


def latencies(
    models: dict[str, dict[str, nn.Module]], images: Tensor, rounds: int
) -> dict[str, dict[int, LatencyComparison]]:
    """Time of one batch: runtime -> batch size -> comparison of the forms."""
    return {
        runtime: {
            size: measure_latency({name: _call(model, images[:size]) for name, model in forms.items()}, rounds=rounds)
            for size in BATCH_SIZES
        }
        for runtime, forms in models.items()
    }


def _call(model: nn.Module, batch: Tensor) -> Callable[[], Tensor]:
    def call() -> Tensor:
        with torch.inference_mode():
            return model(batch)

    return call


def latency_table(measured: dict[str, dict[int, LatencyComparison]]) -> list[dict[str, object]]:
    """One row for each runtime, batch size and form; times in milliseconds, ratios to the plain convolution."""
    return [
        {
            "runtime": runtime,
            "batch_size": size,
            "form": form,
            "median_ms": latency.median * 1e3,
            "quartiles_ms": [quartile * 1e3 for quartile in latency.quartiles],
            "ratio_to_conv": comparison.ratio(form, "conv"),
        }
        for runtime, by_size in measured.items()
        for size, comparison in by_size.items()
        for form, latency in comparison.latencies.items()
    ]
