"""Item f: Mask R-CNN over EfficientNet-Lite0 with ImageNet weights, on the cell nuclei."""

from __future__ import annotations

import dataclasses
import math
import time
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.ops import masks_to_boxes

from experiments.gpu import schedule
from experiments.gpu.data import read_pictures
from experiments.gpu.networks import OPERATORS, UNCHANGED, lite0_weights
from experiments.gpu.place import Place
from experiments.gpu.precision import Matches, average_precision, match, to_json
from experiments.gpu.store import Store
from experiments.gpu.timing import wake
from xvolution.conversion.config import Conversion, Placement
from xvolution.conversion.register import operator_config
from xvolution.conversion.summary import count_parameters
from xvolution.deploy.latency import measure_latency
from xvolution.deploy.reparameterize import layouts_of, reparameterize
from xvolution.models.detection import DetectorSpec, build_detector

SEEDS = 3
#: The projections of the network's last two stages, and the output convolutions of the pyramid.
_PLACES = tuple(f"blocks.{block}.*.conv_pwl" for block in (3, 4, 5, 6))
_PYRAMID = ("backbone.fpn.layer_blocks.*",)


@dataclass(frozen=True)
class Sample:
    """One picture, (3, H, W) uint8, and (H, W) int32 with 0 for background, i for nucleus i."""

    pixels: Tensor
    numbers: Tensor

    def target(self) -> dict[str, Tensor]:
        """What torchvision's detectors take: boxes, labels and masks; nuclei of one pixel's width are left out."""
        present = self.numbers.unique()
        masks = self.numbers == present[present > 0][:, None, None]
        boxes = masks_to_boxes(masks) if len(masks) else masks.new_zeros(0, 4, dtype=torch.float32)
        wide = ((boxes[:, 2:] - boxes[:, :2]) > 0).all(1)
        boxes[:, 2:] += 1
        labels = torch.ones(int(wide.sum()), dtype=torch.int64, device=masks.device)
        return {"boxes": boxes[wide], "labels": labels, "masks": masks[wide].to(torch.uint8)}

    def flipped(self, *dims: int) -> Sample:
        return Sample(self.pixels.flip(dims), self.numbers.flip(dims)) if dims else self

    def to(self, device: torch.device) -> Sample:
        return Sample(self.pixels.to(device), self.numbers.to(device))


@dataclass(frozen=True)
class Detection:
    """The plain detector, with squeeze-and-excitation, and with X-volution.

    Attributes:
        epochs, batch: how many.
        lr, weight_decay: of AdamW, with a cosine down to zero.
        size: the shorter side to which pictures are resized; in training also three quarters and five quarters of it.
    """

    epochs: int = 12
    batch: int = 8
    lr: float = 5e-4
    weight_decay: float = 0.05
    size: int = 512

    def tiny(self) -> Detection:
        return dataclasses.replace(self, epochs=1, batch=1, size=64)

    def settings(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def run(self, store: Store, place: Place) -> bool:
        jobs = {
            f"{operator} seed {seed}": partial(self._train, place, operator, seed)
            for seed in range(1 if place.tiny else SEEDS)
            for operator in OPERATORS
        }
        if not schedule.run(store, jobs, place.workers, place.deadline):
            return False
        if "latency" not in store:
            store.add("latency", self._latency(place))
        return True

    def build(self, operator: str, packs: Path | None) -> nn.Module:
        """The detector in training mode, which starts as the plain one does."""
        conversion = None
        if operator != "conv":
            where = Placement(names=(*_PLACES, *_PYRAMID))
            conversion = Conversion(operator_config(operator, UNCHANGED.get(operator)), where).to_dict()
        spec = DetectorSpec(
            "maskrcnn",
            backbone="timm/tf_efficientnet_lite0",
            num_classes=2,
            min_size=self.size,
            max_size=2 * self.size,
            trainable_layers=5,
            kwargs={"box_detections_per_img": 300},
            conversion=conversion,
        )
        detector: Any = build_detector(spec, None if packs is None else lite0_weights(packs / "lite0.npz"))
        detector.transform.min_size = (self.size * 3 // 4, self.size * 5 // 4, self.size)
        return detector

    def _train(self, place: Place, operator: str, seed: int) -> dict[str, Any]:
        torch.manual_seed(seed)
        torch.backends.cuda.matmul.allow_tf32 = True
        began, (train, judge) = time.perf_counter(), samples(place)
        detector = self.build(operator, place.packs).to(place.device)
        trained = [parameter for parameter in detector.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(trained, self.lr, weight_decay=self.weight_decay)
        random, losses = torch.Generator().manual_seed(seed), []
        steps = len(train) // self.batch
        for epoch in range(self.epochs):
            total = torch.zeros((), device=place.device)
            for step, chosen in enumerate(
                torch.randperm(len(train), generator=random)[: steps * self.batch].split(self.batch)
            ):
                for group in optimizer.param_groups:
                    group["lr"] = self.lr * _factor(epoch * steps + step, steps, self.epochs)
                loss = _loss(detector, [_mirrored(train[i], random) for i in chosen.tolist()])
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                nn.utils.clip_grad_norm_(trained, 5.0)
                optimizer.step()
                total += loss.detach()
            losses.append(float(total) / steps)
            spent = time.perf_counter() - began
            print(
                f"{operator} seed {seed} epoch {epoch + 1}/{self.epochs}: loss {losses[-1]:.3f}  {spent:.0f} s",
                flush=True,
            )
        found = [_matches(detector.eval(), sample) for sample in judge]
        deployed = reparameterize(detector)
        ap, ap50 = average_precision(found)
        deployed_ap, _ = average_precision([_matches(deployed, sample) for sample in judge])
        return {
            "operator": operator,
            "seed": seed,
            "train_loss": losses,
            "mask_ap": ap,
            "mask_ap50": ap50,
            "images": to_json(found),
            "parameters": count_parameters(detector),
            "deployed": {"mask_ap": deployed_ap, "layouts": sorted(set(layouts_of(deployed).values()))},
            "seconds": time.perf_counter() - began,
        }

    @torch.no_grad()
    def _latency(self, place: Place) -> dict[str, Any]:
        """Milliseconds of the deployed backbone with its pyramid on one picture, the part that the operator is in, in turns."""
        x = torch.randn(1, 3, self.size, self.size, device=place.device)
        parts: dict[str, Any] = {}
        for operator in OPERATORS:
            detector: Any = reparameterize(wake(self.build(operator, None)).eval().to(place.device))
            parts[operator] = detector.backbone
        measured = measure_latency({name: partial(part, x) for name, part in parts.items()}, 2 if place.tiny else 11)
        return {
            "forms": {
                name: {"median_ms": 1e3 * latency.median, "ratio": measured.ratio(name, "conv")}
                for name, latency in measured.latencies.items()
            }
        }


@cache
def samples(place: Place) -> tuple[list[Sample], list[Sample]]:
    """Training and validation part on the device."""
    if place.packs is None:
        made = [_made_up(index) for index in range(3)]
        return [sample.to(place.device) for sample in made[:2]], [made[2].to(place.device)]
    train, judge = (_read(place.packs / f"nuclei-{part}.npz", 2 if place.tiny else None) for part in ("train", "val"))
    return [sample.to(place.device) for sample in train], [sample.to(place.device) for sample in judge]


def _read(path: Path, limit: int | None) -> list[Sample]:
    with np.load(path) as pack:
        maps, sizes = pack["maps"], pack["sizes"]
    ends = sizes.prod(1).cumsum()
    found = []
    for picture, size, end in zip(read_pictures(path, limit), sizes, ends, strict=False):
        numbers = maps[end - size.prod() : end].reshape(size).astype(np.int32)
        found.append(
            Sample(torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous(), torch.from_numpy(numbers))
        )
    return found


def _made_up(seed: int) -> Sample:
    """A dark picture with four bright squares."""
    numbers = torch.zeros(64, 64, dtype=torch.int32)
    for index in range(4):
        top, left = 32 * (index // 2) + 4 + seed, 32 * (index % 2) + 6
        numbers[top : top + 12, left : left + 12] = index + 1
    return Sample(((numbers > 0) * 180 + 20).to(torch.uint8).expand(3, -1, -1).contiguous(), numbers)


def _mirrored(sample: Sample, random: torch.Generator) -> Sample:
    chosen = torch.rand(2, generator=random) < 0.5
    return sample.flipped(*(dim for dim, turn in zip((-2, -1), chosen.tolist(), strict=True) if turn))


def _loss(detector: nn.Module, batch: list[Sample]) -> Tensor:
    losses = detector.train()([sample.pixels.float() / 255 for sample in batch], [sample.target() for sample in batch])
    return sum(losses.values(), start=torch.zeros((), device=batch[0].pixels.device))


@torch.no_grad()
def _matches(detector: nn.Module, sample: Sample) -> Matches:
    """The detections in one picture against its nuclei, by the overlap of masks."""
    found = detector([sample.pixels.float() / 255])[0]
    masks = (found["masks"][:, 0] > 0.5).flatten(1).float()
    truth = sample.target()["masks"].flatten(1).float()
    shared = masks @ truth.T
    overlaps = shared / (masks.sum(1)[:, None] + truth.sum(1) - shared).clamp(min=1)
    return match(found["scores"].float().cpu().numpy(), overlaps.cpu().numpy())


def _factor(step: int, steps: int, epochs: int) -> float:
    """Half an epoch up, a cosine down."""
    return min(2 * (step + 1) / steps, 0.5 * (1 + math.cos(math.pi * step / (steps * epochs))))
