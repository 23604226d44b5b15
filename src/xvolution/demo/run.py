"""`run_demo`: train, evaluate, deploy, compare, and write the page."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import nn

from xvolution.bench.conditions import device_conditions, versions
from xvolution.demo.figures import accuracy_curves, latency_bars
from xvolution.demo.measure import (
    Equality,
    Images,
    Twin,
    compare_forms,
    costs,
    deploy_twin,
    in_onnxruntime,
    judging_images,
    latencies,
    latency_table,
    logits_of,
    top1,
)
from xvolution.demo.page import render
from xvolution.demo.recipe import OPERATORS, STAGES, Recipe
from xvolution.deploy.latency import cpu_threads
from xvolution.deploy.reparameterize import reparameterize
from xvolution.explain.figures import as_pictures, attention_picture, finest_operator
from xvolution.training.data.transforms import Preprocessing
from xvolution.training.files import write_text
from xvolution.training.metadata import provenance
from xvolution.training.once import Trained, train_once
from xvolution.training.tasks import CLASSIFY

#: What to do after the demo.
NEXT = """
With images of your own, in a folder for each class:
  xvolution train --data FOLDER --output runs/mine
  xvolution evaluate runs/mine/model.safetensors
  xvolution deploy runs/mine/model.safetensors --output mine.onnx
  xvolution predict mine.onnx PICTURES
  xvolution compare --data FOLDER --operators conv,xvolution --seeds 3"""
PACKAGES = ("xvolution", "torch", "timm", "lightning", "onnx", "onnxruntime")
#: The maps are so small that threads would wait for each other longer than they compute.
TRAINING_THREADS = 1
Trainings = dict[str, dict[int, Trained]]


@dataclass(frozen=True)
class DemoResult:
    """The results of the demo.

    Attributes:
        page: the page, a self-contained file.
        results: the figures as JSON, beside the page.
        figures: the same figures as plain values.
    """

    page: Path
    results: Path
    figures: dict[str, Any]

    def __str__(self) -> str:
        accuracy = self.figures["accuracy"]
        found = {name: ", ".join(f"{value:.2%}" for value in accuracy[name]) for name in OPERATORS}
        return (
            f"top-1 by seed: plain {found['conv']}; X-volution {found['xvolution']}\ndeployed and in ONNX "
            "Runtime: all predictions are the same, largest difference of a logit "
            f"{self.figures['largest_difference']:.1e}\npage {self.page}\nfigures {self.results}\n{NEXT}"
        )


def run_demo(
    output: str | os.PathLike[str] = "demo",
    quick: bool = False,
    *,
    seeds: Sequence[int] | None = None,
    epochs: int | None = None,
) -> DemoResult:
    """Train a convolutional network and its X-volution twin on embedded digits, deploy the twin, compare, write a page.

    Needs no network. Trainings that an earlier call finished in the same folder are reused, and an interrupted one
    continues.

    Args:
        output: folder for the page, the figures, the trainings and the deployed networks.
        quick: one seed, few epochs, few timings.
        seeds: each trains both networks.
        epochs: of every training.

    Raises:
        InputError: seeds or epochs that cannot be used.
        RunError: the deployed network is not the one that was trained, or a file could not be written.
        Interrupted: the user pressed Ctrl-C; the next call continues.
    """
    folder = Path(output).expanduser()
    recipe = Recipe.choose(quick, seeds, epochs)
    print(_plan(recipe, quick, folder), flush=True)
    say = _clocked_print()
    trainings = _train_all(recipe, folder, say)
    plain, metadata = CLASSIFY.load(trainings["conv"][recipe.seeds[0]].checkpoint)
    images = judging_images(metadata)
    accuracy, twins, equalities = _evaluate_all(recipe, trainings, images, folder, say)
    twin = twins[recipe.seeds[0]]
    figures = {
        "accuracy": accuracy,
        "curves": _curves(trainings),
        "seeds": list(recipe.seeds),
        "equality": {name: [asdict(found[name]) for found in equalities] for name in equalities[0]},
        "largest_difference": max(each.largest_difference for found in equalities for each in found.values()),
        "images": len(images.labels),
        "layouts": twin.layouts,
        "layouts_timed": recipe.layout == "auto",
        **_cost_and_time(plain, twin, images, recipe, folder, say),
    }
    figures["conditions"] = _conditions(recipe, images)
    say("drawing the attention maps, writing the page")
    pictures = {
        "curves": accuracy_curves(figures["curves"]),
        "latency": latency_bars(figures["latency"]),
        "attention": _attention(twin.training, images, metadata.preprocessing),
    }
    page, results = folder / "index.html", folder / "results.json"
    write_text(results, json.dumps(figures, indent=2) + "\n")
    write_text(page, render(figures, pictures))
    return DemoResult(page, results, figures)


def _plan(recipe: Recipe, quick: bool, folder: Path) -> str:
    """The steps of the demo, and the time on two idle cores."""
    usual = recipe == Recipe.choose(quick, None, None)
    time_needed = (
        ("less than a minute" if quick else "two to three minutes")
        if usual
        else "as long as the given seeds and epochs need"
    )
    trained = f"{len(OPERATORS)} networks x {len(recipe.seeds)} seed{'s' if len(recipe.seeds) > 1 else ''}"
    return (
        f"The demo takes {time_needed} on two cores, and no network connection:\n"
        f"  1. trains a small ResNet and its X-volution twin on handwritten digits: {trained}, {recipe.epochs} epochs each\n"
        "  2. re-parameterizes the twins, exports them to ONNX, and compares every prediction\n"
        "  3. times the plain network and both forms of the twin in PyTorch and ONNX Runtime\n"
        f"  4. writes the page {folder / 'index.html'}\n"
        "Stopped and started again, it goes on where it was."
    )


def _clocked_print() -> Callable[[str], None]:
    began = time.perf_counter()
    return lambda line: print(f"[{time.perf_counter() - began:4.0f} s] {line}", flush=True)


def _train_all(recipe: Recipe, folder: Path, say: Callable[[str], None]) -> Trainings:
    trainings: Trainings = {operator: {} for operator in OPERATORS}
    for seed in recipe.seeds:
        for operator in OPERATORS:
            say(f"training {'the plain network' if operator == 'conv' else 'its X-volution twin'}, seed {seed}")
            with cpu_threads(TRAINING_THREADS):
                trained = train_once(recipe.training(operator, seed, folder / "runs"))
            found = f"top-1 {trained.history[-1]['val_top1']:.2%} after epoch {recipe.epochs}"
            say(f"  {found}{f'; an earlier call trained it: {trained.checkpoint.parent}' if trained.reused else ''}")
            trainings[operator][seed] = trained
    return trainings


def _evaluate_all(
    recipe: Recipe, trainings: Trainings, images: Images, folder: Path, say: Callable[[str], None]
) -> tuple[dict[str, list[float]], dict[int, Twin], list[dict[str, Equality]]]:
    """Accuracy by operator, the deployed networks by seed, and the differences between their forms."""
    accuracy: dict[str, list[float]] = {
        operator: [
            top1(logits_of(CLASSIFY.load(each.checkpoint)[0], images.pixels), images.labels)
            for each in by_seed.values()
        ]
        for operator, by_seed in trainings.items()
    }
    twins: dict[int, Twin] = {}
    equalities = []
    layout: str | Mapping[str, str] = recipe.layout
    for seed, trained in trainings["xvolution"].items():
        say(f"re-parameterizing and exporting the twin of seed {seed}, comparing every prediction")
        twins[seed] = deploy_twin(trained.checkpoint, folder / "deployed" / f"seed{seed}", layout)
        layout = twins[seed].layouts  # timed once: the other twins are the same network with other weights
        equalities.append(compare_forms(twins[seed], images))
    return accuracy, twins, equalities


def _cost_and_time(
    plain: nn.Module, twin: Twin, images: Images, recipe: Recipe, folder: Path, say: Callable[[str], None]
) -> dict[str, Any]:
    say("counting parameters and operations, timing PyTorch and ONNX Runtime")
    example = images.pixels[:2]
    # The plain network gets its norms folded too: it is what one would deploy.
    forms = {
        "conv": reparameterize(plain, example, fold_norms=True),
        "training": twin.training,
        "deployed": twin.deployed,
    }
    onnx: dict[str, nn.Module] = {
        "conv": in_onnxruntime(forms["conv"], folder / "deployed" / "conv.onnx", example),
        "training": in_onnxruntime(forms["training"], folder / "deployed" / "training.onnx", example),
        "deployed": twin.onnx,
    }
    measured = latencies({"torch": forms, "onnxruntime": onnx}, images.pixels, recipe.rounds)
    return {"cost": costs(forms, example), "latency": latency_table(measured)}


def _curves(trainings: Trainings) -> dict[str, list[list[float]]]:
    """Top-1 after each epoch: operator -> seed -> epoch."""
    return {
        operator: [[row["val_top1"] for row in trained.history] for trained in by_seed.values()]
        for operator, by_seed in trainings.items()
    }


def _attention(model: nn.Module, images: Images, preprocessing: Preprocessing, shown: int = 6) -> str:
    """One image of each of some classes."""
    chosen = [int((images.labels == label).nonzero()[0]) for label in images.labels.unique()[:shown]]
    pixels = images.pixels[chosen]
    return attention_picture(model, pixels, as_pictures(pixels, preprocessing), finest_operator(model, pixels[:1]))


def _conditions(recipe: Recipe, images: Images) -> dict[str, Any]:
    """The conditions of the figures, to reproduce them."""
    config = recipe.training("xvolution", recipe.seeds[0], Path("runs")).to_dict()
    return {
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "commit": provenance(recipe.seeds[0])["commit"],
        "data": {"name": "digits", "training_images": images.training_images, "judging_images": len(images.labels)},
        "stages": list(STAGES),
        "recipe": {name: value for name, value in config.items() if name not in ("operator", "output", "seed")},
        "training_threads": TRAINING_THREADS,
        "timing_rounds": recipe.rounds,
        "device": device_conditions(),
        "versions": versions(PACKAGES),
    }
