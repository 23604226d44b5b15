"""`explain`: measure the attention in a trained network, draw figures, and write the page."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from xvolution.analysis import attending_operators, half_radius
from xvolution.bench.conditions import device_conditions, versions
from xvolution.conversion.attention_share import hardly_begun
from xvolution.explain.figures import (
    as_pictures,
    attention_picture,
    finest_operator,
    loss_bars,
    receptive_field_picture,
)
from xvolution.explain.measure import JudgedImages, Measurements, measure, receptive_fields
from xvolution.explain.page import render
from xvolution.training import InputError
from xvolution.training.classification.evaluate import labelled_images
from xvolution.training.classification.metadata import ClassifierMetadata
from xvolution.training.data import ImageSource, evaluation_loader, open_data
from xvolution.training.evaluation import pick_device
from xvolution.training.exported_file import runtime_that_runs
from xvolution.training.files import write_text
from xvolution.training.held_out import JUDGE_BY_OTHERS, require_unseen, seed_of
from xvolution.training.metadata import provenance
from xvolution.training.tasks import CLASSIFY

PACKAGES = ("xvolution", "torch", "timm")
#: Images in the picture of what attention weighs.
SHOWN = 6


@dataclass(frozen=True)
class Explanation:
    """The results of an explanation.

    Attributes:
        page: the page, a self-contained file.
        results: the figures as JSON, beside the page.
        figures: the same figures as plain values.
    """

    page: Path
    results: Path
    figures: dict[str, Any]

    def __str__(self) -> str:
        forms = {"as trained": "trained", "attention at its average": "silent", "nearest plain convolutions": "static"}
        lines = [
            f"{words:<26}  top-1 {self.figures[form]['top1']:.2%}  loss {self.figures[form]['loss']:.4f}"
            for words, form in forms.items()
        ]
        asleep = [self.figures["asleep"]] if self.figures["asleep"] else []
        return "\n".join([*lines, *asleep, f"page {self.page}", f"figures {self.results}"])


def print_at_once(line: str) -> None:
    """Print without buffering, so that progress is visible if the output is a pipe."""
    print(line, flush=True)


def explain(
    checkpoint: str | os.PathLike[str],
    data: str | os.PathLike[str] | None = None,
    *,
    split: str = "val",
    holdout: float | str | None = None,
    seed: int | None = None,
    images: int = 512,
    operator: str | None = None,
    batch_size: int = 64,
    device: str = "auto",
    max_pixels: int | None = None,
    outside_images: bool = False,
    output: str | os.PathLike[str] = "explain",
    checksum: bool = True,
    say: Callable[[str], None] = print_at_once,
) -> Explanation:
    """Measure and draw what the attention in a trained classifier does.

    Args:
        checkpoint: a .ckpt or .safetensors file of this library, in training form.
        data: as `open_data` takes it; by default what the network was trained on.
        split: train, val or test.
        holdout: hold out this fraction of the training part as `val`, or a fold such as ``2/5``, as in training.
        seed: seed that chooses the held-out images; by default that of the network's training if it held out images of these
            data.
        images: how many to look at, evenly spread over the part; held in memory.
        operator: which one to draw, by its name in the network; by default the last of those with the largest maps.
        batch_size: images in a batch.
        device: cpu, cuda, cuda:1, mps, or auto for a GPU if there is one.
        max_pixels: largest number of pixels in an image; Pillow's own limit if None.
        outside_images: also read images outside the data folder that tables name.
        output: folder for the page and the figures.
        checksum: check the checkpoint against the checksum stored in it, if it has one.
        say: called with a line before each step.

    Raises:
        InputError: the checkpoint, the data or a number cannot be used, or the network has no attention to explain.
        RunError: a file cannot be written.
    """
    for name, value in (("number of images", images), ("batch size", batch_size)):
        if value < 1:
            raise InputError(f"the {name} is {value}; it must be at least 1.")
    if runtime_that_runs(checkpoint) is not None:
        raise InputError(_deployed(checkpoint))
    model, metadata = CLASSIFY.load(checkpoint, pick_device(device), checksum)
    if metadata.form == "deployed":
        raise InputError(_deployed(checkpoint))
    _require_operator(model, operator)
    data = metadata.data if data is None else data
    splits = open_data(data, holdout, seed_of(metadata, data, seed), max_pixels, outside_images)
    if split == "val":
        require_unseen("the network", metadata, data, splits.held_out, JUDGE_BY_OTHERS)
    chosen = labelled_images(splits, split, metadata).spread(images)
    judged = _prepared(chosen, metadata, batch_size, next(model.parameters()).device)
    found = measure(model, judged, say)
    drawn = operator if operator is not None else finest_operator(model, judged.pixels[:1])
    say(f"drawing the attention and the receptive field of {drawn}")
    fields = receptive_fields(model, judged, drawn, {name: each.mean for name, each in found.statistics.items()})
    figures: dict[str, Any] = {
        "network": metadata.model.name,
        "checkpoint": os.fspath(checkpoint),
        "data": {"name": splits.name, "split": split, "images": len(judged.labels), "of": len(splits.part(split))},
        **{form: asdict(getattr(found, form)) for form in ("trained", "silent", "static")},
        "operators": _rows(model, found),
        "asleep": hardly_begun(
            {name: each.share for name, each in found.statistics.items()}, f"on {len(judged.labels)} images"
        ),
        "drawn": {"operator": drawn, "radius": {key: half_radius(field) for key, field in fields.items()}},
        "conditions": _conditions(metadata),
    }
    shown = judged.some(SHOWN)
    pictures = {
        "losses": loss_bars(figures["operators"], figures["trained"]["loss"]),
        "attention": attention_picture(model, shown, as_pictures(shown, metadata.preprocessing), drawn),
        "field": receptive_field_picture(fields),
    }
    page, results = Path(output) / "index.html", Path(output) / "results.json"
    write_text(results, json.dumps(figures, indent=2) + "\n")
    write_text(page, render(figures, pictures))
    return Explanation(page, results, figures)


def _deployed(checkpoint: str | os.PathLike[str]) -> str:
    return (
        f"{checkpoint} is in deployed form, where attention is merged into convolutions; give the .ckpt or "
        ".safetensors file of its training form."
    )


def _conditions(metadata: ClassifierMetadata) -> dict[str, Any]:
    """How these figures, and the network, were made."""
    return {
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "commit": provenance(0)["commit"],
        "trained": metadata.provenance,
        "device": device_conditions(),
        "versions": versions(PACKAGES),
    }


def _require_operator(model: nn.Module, name: str | None) -> None:
    operators = attending_operators(model)
    if not operators:
        raise InputError("this network has no X-volution with attention; give a network that has.")
    if name is not None and name not in operators:
        raise InputError(
            f"there is no operator {name!r} with attention in this network; it has {', '.join(operators)}."
        )


def _prepared(source: ImageSource, metadata: ClassifierMetadata, batch_size: int, device: torch.device) -> JudgedImages:
    batches = list(evaluation_loader(source, metadata.preprocessing, batch_size))
    pixels, labels = (torch.cat([batch[key] for batch in batches]).to(device) for key in ("image", "target"))
    return JudgedImages(pixels, labels, batch_size)


def _rows(model: nn.Module, found: Measurements) -> list[dict[str, Any]]:
    """The table of operators, in the order of the network."""
    operators = attending_operators(model)
    return [
        {
            "operator": name,
            "attention": type(operators[name].attention).__name__,
            "channels": operators[name].out_channels,
            "size": list(each.size),
            "share": each.share,
            "context": each.context,
            "kurtosis": each.kurtosis,
            "static_error": found.static_errors[name],
            **asdict(found.without[name]),
        }
        for name, each in found.statistics.items()
    ]
