"""Does attention help CellCentroidFormer to find cell nuclei? The paper's network beside one without attention, and X-volution.

    python -m experiments.centroids --data DATA/nuclei --weights weights/tf_efficientnet_lite0.safetensors \
        --output results/centroids.json

Four necks: the paper's, with two MobileViT blocks; the same with the convolution of each block alone, which is the control; and
that one with X-volution or squeeze-and-excitation in its four 3x3 convolutions between. Two F1 on the validation
part: of centroids, which are right inside the box of a nucleus, and of boxes at an IoU of 0.5. The threshold of the heat map is
the best of each network and F1 on training images. With ``--holdout`` every fifth
training image judges instead, to choose the learning rate. Finished trainings in ``--runs`` are taken as they are, also those
that another process with other ``--seeds`` wrote.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from pycocotools.coco import COCO
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision.ops import box_iou

from benchmarks.record import write_record
from experiments.gpu.networks import UNCHANGED
from xvolution import convert, reparameterize
from xvolution.bench import count_flops, measure_latency
from xvolution.bench.written import ONNX, WrittenFiles
from xvolution.compare.statistics import DRAWS, Interval, resampled_difference
from xvolution.conversion.register import operator_config
from xvolution.conversion.summary import count_parameters
from xvolution.deploy.latency import cpu_threads
from xvolution.deploy.shipping import without_zero_scales
from xvolution.models import CellCentroidFormer, centroid_loss, centroid_targets, decode
from xvolution.training.files import write_text

BASELINE = "conv"
NECKS = (BASELINE, "mobilevit", "xvolution", "se")
#: The convolutions between the blocks of the neck.
BETWEEN = ("neck.1", "neck.4", "neck.8", "neck.11")
THRESHOLDS = tuple(round(0.1 + 0.05 * step, 2) for step in range(15))
LEAST_IOU = 0.5
#: Of the images whose cost is counted, in pixels.
SIDE = 256
#: What is counted as found.
CRITERIA = ("centroids", "boxes")


@dataclass(frozen=True)
class Picture:
    """(3, H, W) uint8 and boxes (M, 4), left, top, right and bottom in pixels."""

    pixels: Tensor
    boxes: Tensor

    def cropped(self, side: int, random: torch.Generator) -> Picture:
        """A random square, in a random one of its eight orientations, with the boxes whose centres are inside."""
        height, width = self.pixels.shape[-2:]
        top, left = (int(torch.randint(length - side + 1, (), generator=random)) for length in (height, width))
        pixels = self.pixels[:, top : top + side, left : left + side]
        boxes = self.boxes - torch.tensor([left, top, left, top])
        centres = (boxes[:, :2] + boxes[:, 2:]) / 2
        boxes = boxes[((centres >= 0) & (centres < side)).all(1)]
        mirrored, upended, transposed = torch.rand(3, generator=random) < 0.5
        if mirrored:
            pixels, boxes = pixels.flip(2), (side - boxes)[:, [2, 1, 0, 3]].where(_columns(), boxes)
        if upended:
            pixels, boxes = pixels.flip(1), (side - boxes)[:, [0, 3, 2, 1]].where(~_columns(), boxes)
        if transposed:
            pixels, boxes = pixels.transpose(1, 2), boxes[:, [1, 0, 3, 2]]
        return Picture(pixels, boxes)


def _columns() -> Tensor:
    return torch.tensor([True, False, True, False])


def read_part(data: Path, part: str) -> list[Picture]:
    """The images of a part with the boxes of their nuclei."""
    annotations = COCO(str(data / "annotations" / f"instances_{part}.json"))
    pictures = []
    for number in sorted(annotations.imgs):
        path = data / part / annotations.imgs[number]["file_name"]
        pixels = torch.from_numpy(np.array(Image.open(path).convert("RGB"))).permute(2, 0, 1).contiguous()
        rows = torch.tensor([row["bbox"] for row in annotations.imgToAnns[number]]).reshape(-1, 4)
        pictures.append(Picture(pixels, torch.cat([rows[:, :2], rows[:, :2] + rows[:, 2:].clamp_min(1)], 1)))
    return pictures


def build(neck: str, options: argparse.Namespace) -> nn.Module:
    """The network with one of the necks. Without MobileViT blocks, all start with the same weights and the same outputs."""
    model: Any = CellCentroidFormer("tf_efficientnet_lite0", neck_channels=options.neck, head_channels=options.heads)
    if options.weights is not None:
        weights = load_file(options.weights)
        model.backbone.load_state_dict({name: weights[name] for name in model.backbone.state_dict()})
    if neck == "mobilevit":
        return model
    for index, block in enumerate(model.neck):
        if hasattr(block, "local"):
            model.neck[index] = block.local
    if neck == BASELINE:
        return model
    return convert(model, operator_config(neck, UNCHANGED.get(neck)), names=BETWEEN, inplace=True)


def train(neck: str, seed: int, pictures: Sequence[Picture], options: argparse.Namespace) -> nn.Module:
    """AdamW with a cosine down to zero after one epoch of warm-up, on random crops."""
    torch.manual_seed(seed)
    random = torch.Generator().manual_seed(seed)
    model = build(neck, options).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), options.lr, weight_decay=options.weight_decay)
    steps = len(pictures) // options.batch
    for epoch in range(options.epochs):
        began, total = time.monotonic(), 0.0
        order = torch.randperm(len(pictures), generator=random)[: steps * options.batch]
        for step, chosen in enumerate(order.split(options.batch)):
            share = (epoch * steps + step + 1) / (steps * options.epochs)
            rate = min(1.0, (epoch * steps + step + 1) / steps) * (1 + math.cos(math.pi * share)) / 2
            for group in optimizer.param_groups:
                group["lr"] = options.lr * rate
            crops = [pictures[index].cropped(options.crop, random) for index in chosen.tolist()]
            side = (options.crop, options.crop)
            target = centroid_targets([crop.boxes for crop in crops], side, unit=side)
            loss = centroid_loss(model(_normalized([crop.pixels for crop in crops])), target)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 5.0)
            optimizer.step()
            total += loss.item() / steps
        took = time.monotonic() - began
        print(f"{neck} seed {seed}: epoch {epoch + 1}/{options.epochs}  loss {total:.4f}  {took:.0f} s", flush=True)
    return model.eval()


def _normalized(pixels: Sequence[Tensor]) -> Tensor:
    batch = torch.stack(list(pixels)).to(memory_format=torch.channels_last)
    return (batch.float() - 127.5) / 127.5


@torch.inference_mode()
def counts(model: nn.Module, pictures: Sequence[Picture], crop: int) -> NDArray[np.int64]:
    """(criteria, thresholds, images, 3) numbers of found nuclei, of detections that are none, and of missed nuclei.

    Args:
        model: a network that was trained on crops of ``crop`` pixels.
    """
    rows = np.zeros((len(CRITERIA), len(THRESHOLDS), len(pictures), 3), np.int64)
    for place, picture in enumerate(pictures):
        maps = model(_normalized([picture.pixels]))
        for level, threshold in enumerate(THRESHOLDS):
            boxes = decode(maps, threshold, unit=(crop, crop))[0].boxes
            for kind, criterion in enumerate(CRITERIA):
                found = sum(matched(fits(criterion, boxes, picture.boxes)))
                rows[kind, level, place] = found, len(boxes) - found, len(picture.boxes) - found
    return rows


def fits(criterion: str, boxes: Tensor, truth: Tensor) -> Tensor:
    """(K, M), how well each detection fits each nucleus; 0 where it does not count as found."""
    if criterion == "boxes":
        overlaps = box_iou(boxes, truth)
        return overlaps * (overlaps >= LEAST_IOU)
    centres, middles = ((each[:, :2] + each[:, 2:]) / 2 for each in (boxes, truth))
    inside = (centres[:, None] >= truth[:, :2]) & (centres[:, None] <= truth[:, 2:])
    return inside.all(2) / (1 + torch.cdist(centres, middles))


def matched(fit: Tensor) -> list[bool]:
    """Whether each detection, best first, has a nucleus of its own: the one that it fits best of those still free."""
    fit, hits = fit.clone(), []
    for row in range(len(fit)):
        best = int(fit[row].argmax()) if fit.shape[1] else -1
        hit = best >= 0 and float(fit[row, best]) > 0
        if hit:
            fit[:, best] = 0
        hits.append(hit)
    return hits


def f1(rows: NDArray[Any]) -> NDArray[np.float64]:
    """(..., 3) counts to 2 found / (2 found + false + missed)."""
    twice = 2.0 * rows[..., 0]
    values: NDArray[np.float64] = twice / np.maximum(twice + rows[..., 1] + rows[..., 2], 1)
    return values


def cell(neck: str, seed: int, options: argparse.Namespace, parts: tuple[list[Picture], list[Picture]]) -> None:
    """Train and judge one network, and store its counts."""
    path = options.runs / f"{neck}-{seed}.json"
    if path.exists():
        return
    began = time.monotonic()
    model = train(neck, seed, parts[0], options)
    levels = f1(counts(model, parts[0][:: options.every], options.crop).sum(2)).argmax(1)
    judged = counts(model, parts[1], options.crop)
    record: dict[str, Any] = {
        "neck": neck,
        "seed": seed,
        **{
            criterion: {
                "threshold": THRESHOLDS[level],
                "f1": float(f1(judged[kind, level].sum(0))),
                "images": judged[kind, level].tolist(),
            }
            for kind, (criterion, level) in enumerate(zip(CRITERIA, levels, strict=True))
        },
        "parameters": count_parameters(model),
        "seconds": time.monotonic() - began,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(record))
    said = ", ".join(f"{100 * record[each]['f1']:.2f} of {each} at {record[each]['threshold']}" for each in CRITERIA)
    print(f"{neck} seed {seed}: F1 {said}", flush=True)


def difference(own: list[dict[str, Any]], base: list[dict[str, Any]], criterion: str) -> Interval | None:
    """Of an F1, over the seeds that both have, by seeds and images."""
    seeds = sorted({row["seed"] for row in own} & {row["seed"] for row in base})
    sides = [
        np.array([row[criterion]["images"] for s in seeds for row in side if row["seed"] == s]) for side in (own, base)
    ]
    images = sides[0].shape[1]
    picks = np.random.default_rng(0).integers(0, images, (DRAWS, images))
    values = [f1(side.sum(1)) for side in sides]
    drawn = [f1(side[:, picks].sum(2)) for side in sides]
    return resampled_difference(values[0], values[1], drawn[0], drawn[1], images)


def summary(cells: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for each neck."""
    by_neck = {neck: [row for row in cells if row["neck"] == neck] for neck in NECKS}
    rows = []
    for neck, own in by_neck.items():
        if own:
            row: dict[str, Any] = {"neck": neck, "seeds": len(own), "parameters": own[0]["parameters"]}
            for criterion in CRITERIA:
                compared = neck != BASELINE and by_neck[BASELINE]
                gain = difference(own, by_neck[BASELINE], criterion) if compared else None
                row[criterion] = {
                    "f1": float(np.mean([each[criterion]["f1"] for each in own])),
                    "difference": None if gain is None else vars(gain),
                }
            rows.append(row)
    return rows


def costs(options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """FLOPs and, if ``options.rounds`` is not 0, times in ONNX Runtime of each deployed neck, with random weights."""
    image, files, calls = torch.zeros(1, 3, SIDE, SIDE), WrittenFiles(), {}
    rows: dict[str, dict[str, Any]] = {}
    with cpu_threads(1):
        for neck in options.necks:
            model = without_zero_scales(build(neck, options).eval())
            chosen: dict[str, Any] = {"runtime": ONNX, "threads": 1} if options.rounds else {}
            deployed = reparameterize(model, image, "auto", fold_norms=True, **chosen)
            rows[neck] = {"side": SIDE, "flops": count_flops(deployed, image)}
            if options.rounds:
                calls[neck] = files.runner(ONNX, deployed, image, neck, 1)
        if BASELINE in calls:
            measured = measure_latency(calls, options.rounds)
            for neck, latency in measured.latencies.items():
                rows[neck] |= {"median_ms": 1e3 * latency.median, "ratio": measured.ratio(neck, BASELINE)}
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the nuclei, with COCO annotations")
    parser.add_argument("--weights", type=Path, help="ImageNet weights of tf_efficientnet_lite0 in timm's names")
    parser.add_argument("--runs", type=Path, default=Path("runs/centroids"))
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--necks", nargs="+", choices=NECKS, default=list(NECKS))
    parser.add_argument("--holdout", action="store_true", help="judge every fifth training image; for choosing --lr")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--crop", type=int, default=96, help="side of the training crops in pixels")
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--weight-decay", type=float, default=0.05)
    parser.add_argument("--neck", type=int, nargs=2, default=[96, 64], help="channels of the neck")
    parser.add_argument("--heads", type=int, nargs=3, default=[32, 24, 16], help="channels of the heads")
    parser.add_argument("--every", type=int, default=8, help="of the training images, those that choose the threshold")
    parser.add_argument("--rounds", type=int, default=0, help="of timing in ONNX Runtime, on an idle machine; 0: none")
    parser.add_argument("--limit", type=int, help="of each part, the first images; for a trial")
    options = parser.parse_args(arguments)
    train_part = read_part(options.data, "train")[: options.limit]
    if options.holdout:
        parts = [row for index, row in enumerate(train_part) if index % 5], train_part[::5]
    else:
        parts = train_part, read_part(options.data, "val")[: options.limit]
    priced = costs(options)
    for seed in options.seeds:
        for neck in options.necks:
            cell(neck, seed, options, parts)
        cells = [json.loads(path.read_text()) for path in sorted(options.runs.glob("*.json"))]
        recipe = {
            name: value for name, value in vars(options).items() if name not in ("runs", "output", "seeds", "necks")
        }
        rows = summary(cells)
        write_record(options.output, {"summary": rows, "recipe": recipe, "costs": priced, "cells": cells})
    for row in rows:
        print(row["neck"], *(f"{each}: {100 * row[each]['f1']:.2f}, {row[each]['difference']}" for each in CRITERIA))


if __name__ == "__main__":
    main()
