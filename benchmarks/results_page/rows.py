"""What the tables and the pictures show: rows of the records."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xvolution.bench.networks import ALL, SQUEEZE_EXCITATION
from xvolution.deploy.runtimes import RUNTIMES as DEPLOYED_IN

Comparisons = Sequence[tuple[str, str, Mapping[str, str]]]

#: Recipe, record, and the rows that are shown of it: what they are called here, and what they are called there.
COMPARISONS: Comparisons = (
    (
        "random crops",
        "tiny-imagenet/crops-default",
        {
            "**pixel shift attention, the default**": "xvolution",
            "the default in stages 3 and 4 alone": "xvolution in stages 3 and 4",
            "two convolutions without attention, its control": "conv-conv",
            "exact global attention in stages 3 and 4": "global in stages 3 and 4",
        },
    ),
    (
        "random crops",
        "tiny-imagenet/small-crops",
        {"`gated_depthwise`": "xvolution-shared", "its window alone, the control": "conv-window"},
    ),
    (
        "shifts",
        "tiny-imagenet/small-gpu",
        {
            "the default": "xvolution",
            "`channel_gate`": "xvolution-image",
            "`linear`": "xvolution-linear",
            "two convolutions without attention": "conv-conv",
            "`involution`": "involution",
        },
    ),
    (
        "shifts",
        "tiny-imagenet/shift-distances",
        {"the default with dilations 1, 2 and 4": "shift distances 1 and 2 and 4"},
    ),
)

#: The same for trainings that start from trained weights.
TRAINED_ON: Comparisons = (
    (
        "EfficientNet-Lite0 from ImageNet weights, 3,409 photographs",
        "clothing",
        {"X-volution, last two stages": "xvolution:new_lr_factor=5", "squeeze-and-excitation": "se:zero_init=true"},
    ),
    (
        "the same, 20,480 pictures of Tiny-ImageNet",
        "tiny-imagenet/fine-tuning",
        {"X-volution, last two stages": "xvolution:new_lr_factor=5", "squeeze-and-excitation": "se:zero_init=true"},
    ),
    (
        "Mask R-CNN over Lite0 with ImageNet weights, 120 photographs of people",
        "penn-fudan-lite0",
        {
            "X-volution, last two stages and pyramid": "xvolution:new_lr_factor=5",
            "squeeze-and-excitation": "se:zero_init=true",
        },
    ),
    (
        "the small network, three epochs more",
        "tiny-imagenet/annealing",
        {"X-volution, its gates annealed to plain convolutions": "annealed to conv"},
    ),
)

#: The record of the time of a comparison's networks in ONNX Runtime, where it is not that of the small network.
TIMED_IN = dict.fromkeys(("clothing", "tiny-imagenet/fine-tuning"), "clothing-latency")
#: What a row of a comparison is called there, where it has another name.
TIMED_AS = {
    ("tiny-imagenet/small-crops", "xvolution-shared"): "gated_depthwise",
    ("tiny-imagenet/small-gpu", "xvolution-image"): "channel_gate",
    ("tiny-imagenet/small-gpu", "xvolution-linear"): "linear",
    ("tiny-imagenet/shift-distances", "shift distances 1 and 2 and 4"): "dilations 1, 2 and 4",
}

#: The necks of CellCentroidFormer that have attention.
NECKS = {
    "mobilevit": "two MobileViT blocks, the paper's neck",
    "xvolution": "X-volution in four convolutions of the neck",
    "se": "squeeze-and-excitation there",
}

#: The networks whose cost is shown, by their names in the record.
NETWORKS = {
    "resnet18": "ResNet-18",
    "resnet50": "ResNet-50",
    "mobilenetv2_100": "MobileNetV2",
    "efficientnet_lite0": "EfficientNet-Lite0",
    "convnext_atto": "ConvNeXt-atto",
}
RUNTIMES = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}


@dataclass(frozen=True)
class Gain:
    """One variant of a comparison against the plain convolution.

    Attributes:
        recipe: of the augmentation.
        operator: what it is called on the page.
        record: file under ``results/``.
        figure: that ranks the networks.
        points: difference in it, and its 95 % interval over seeds and images; None where a seed is missing to say one.
        mean: difference in it.
        loss: difference in validation loss, mean over seeds; None where it was not judged.
        seeds: that both have.
        flops, latency: of the deployed network, as ratios, the latency in ONNX Runtime; None where it was not timed.
    """

    recipe: str
    operator: str
    record: str
    points: tuple[float, float, float] | None
    mean: float
    loss: float | None
    seeds: int
    flops: float
    latency: float | None
    figure: str = "top-1"


def gains(results: Path, comparisons: Comparisons = COMPARISONS) -> Iterator[Gain]:
    """The rows of `COMPARISONS` or `TRAINED_ON`."""
    for recipe, name, shown in comparisons:
        record = f"{name}.json"
        compared = _read(results / record)
        by_label = {row["label"]: row for row in compared["variants"]}
        for operator, label in shown.items():
            row = by_label[label]
            interval = row["bootstrap"] if row["difference"]["seeds"] >= 3 else None
            yield Gain(
                recipe,
                operator,
                record,
                interval and (100 * interval["estimate"], 100 * interval["low"], 100 * interval["high"]),
                100 * row["difference"]["estimate"],
                row["differences"]["loss"]["estimate"] if "loss" in row["differences"] else None,
                row["difference"]["seeds"],
                row["deployed_flops_ratio"],
                _latency(results, name, label),
                compared["metrics"][0]["name"],
            )


def centroids(results: Path) -> Iterator[Gain]:
    """The necks of CellCentroidFormer against the one without attention, by the F1 of centroids."""
    record = _read(results / "centroids.json")
    costs = record["costs"]
    for row in record["summary"]:
        gain = row["centroids"]["difference"]
        if row["neck"] in NECKS and gain is not None:
            own, base = costs[row["neck"]], costs["conv"]
            yield Gain(
                "CellCentroidFormer on cell nuclei, the plain neck has no attention",
                NECKS[row["neck"]],
                "centroids.json",
                (100 * gain["estimate"], 100 * gain["low"], 100 * gain["high"]),
                100 * gain["estimate"],
                None,
                row["seeds"],
                own["flops"] / base["flops"],
                own.get("ratio"),
                "F1",
            )


def _latency(results: Path, record: str, label: str) -> float | None:
    forms = _read(results / f"{TIMED_IN.get(record, 'tiny-imagenet/latency')}.json")["latency"]["forms"]
    ratio: float | None = forms.get(TIMED_AS.get((record, label), label), {}).get("ratio")
    return ratio


@dataclass(frozen=True)
class Cost:
    """The time of a deployed network, as ratios to the plain one's.

    Attributes:
        network: its name.
        ours: X-volution in all stages, by runtime.
        theirs: squeeze-and-excitation behind the same convolutions, by runtime.
        flops: of ours, as a ratio.
    """

    network: str
    ours: dict[str, float]
    theirs: dict[str, float]
    flops: float


def costs(results: Path) -> Iterator[Cost]:
    """The networks of `NETWORKS`: one image, one thread, fp32."""
    cases = _read(results / "bench-networks.json")["cases"].values()
    for network, title in NETWORKS.items():
        found = {
            runtime: case["forms"]
            for case in cases
            for runtime in RUNTIMES
            if (case["network"], case["runtime"], case["batch"], case["dtype"]) == (network, runtime, 1, "float32")
        }
        forms = next(iter(found.values()))
        yield Cost(
            title,
            {runtime: forms[ALL]["ratio"] for runtime, forms in found.items()},
            {runtime: forms[SQUEEZE_EXCITATION]["ratio"] for runtime, forms in found.items()},
            forms[ALL]["flops"] / forms["conv"]["flops"],
        )


def resnet18(results: Path) -> Gain:
    """A ResNet-18 with one seed."""
    record = "tiny-imagenet/resnet18.json"
    runs = _read(results / record)["runs"]
    plain, ours = runs["conv"], runs["xvolution, stage 3"]
    before, after = plain["val"], ours["val deployed form"]
    return Gain(
        "ResNet-18 from scratch, Tiny-ImageNet at 64 pixels, three epochs",
        "X-volution, stage 3",
        record,
        None,
        100 * (after["top1"] - before["top1"]),
        after["loss"] - before["loss"],
        1,
        ours["flops"] / plain["flops"],
        None,
    )


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


@dataclass(frozen=True)
class Shipped:
    """One file of a trained network, in its runtime.

    Attributes:
        network: of the record.
        runtime: its title and version.
        precision: ``fp32`` or ``int8``.
        megabytes: size of the file and of the weights beside it.
        layouts: of its operators, with their number.
        agreement: fraction of the validation images with the prediction of the trained network.
        milliseconds, plain_milliseconds: median of one call, and of the plain network in the same runtime and precision.
        ratio: median over the rounds of the one by the other.
        record: path under ``results``.
    """

    network: str
    runtime: str
    precision: str
    megabytes: float
    layouts: str
    agreement: float
    milliseconds: float
    plain_milliseconds: float
    ratio: float
    record: str


def shipped(results: Path) -> Iterator[Shipped]:
    """The files of ``results/shipping``, network by network."""
    for path in sorted((results / "shipping").glob("*.json")):
        stored = json.loads(path.read_text(encoding="utf-8"))
        name = stored["network"]["model"]["name"].removeprefix("xvolution_")
        for file in stored["table"]["files"]:
            yield Shipped(
                network=NETWORKS.get(name, name),
                runtime=f"{DEPLOYED_IN[file['runtime']].title} {file['version'].partition('-')[0].partition('+')[0]}",
                precision=file["precision"],
                megabytes=file["bytes"] / 1e6,
                layouts=", ".join(f"{layout} ({count})" for layout, count in file["layouts"].items()),
                agreement=file["agreement"],
                milliseconds=1e3 * file["seconds"],
                plain_milliseconds=1e3 * file["plain_seconds"],
                ratio=file["ratio"],
                record=path.relative_to(results).as_posix(),
            )
