"""One training of one classifier on pictures that lie on the device, and what is to be known of it."""

from __future__ import annotations

import base64
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn

from experiments.gpu.augment import Augmentation, mixed
from experiments.gpu.data import Pictures
from experiments.gpu.networks import Network
from xvolution.conversion.summary import count_flops, count_parameters
from xvolution.deploy.reparameterize import layouts_of, reparameterize

_JUDGED_AT_ONCE = 500


@dataclass(frozen=True)
class Recipe:
    """How a classifier is trained.

    Attributes:
        epochs, batch: how many.
        optimizer: ``"sgd"`` (Nesterov momentum 0.9) or ``"adamw"``; both with a cosine down to zero.
        lr: its largest value, reached after ``warmup`` epochs.
        weight_decay: of all weights with more than one dimension.
        scale: smallest area of a random crop.
        strong: TrivialAugment, then mixup or CutMix.
        smoothing: of the labels.
        ema: decay for each step of the averaged weights that are judged; the trained ones are when None.
        new_lr_factor: what the learning rate of parameters is multiplied by that the plain network does not have.
        mean, deviation: of pixels in 0 .. 1, as the network expects them.
        statistics: training pictures over which batch norms are measured again before the last judging.
    """

    epochs: int
    batch: int = 256
    optimizer: str = "sgd"
    lr: float = 0.1
    weight_decay: float = 5e-4
    warmup: float = 2
    scale: float = 0.25
    strong: bool = False
    smoothing: float = 0.0
    ema: float | None = None
    new_lr_factor: float = 1.0
    mean: float = 0.45
    deviation: float = 0.25
    statistics: int = 5000


def train(
    network: Network,
    operator: str,
    recipe: Recipe,
    seed: int,
    train: Pictures,
    judge: Pictures,
    weights: Mapping[str, Tensor] | None = None,
    report: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Train one network and judge it after every epoch.

    Args:
        network: which one.
        operator: what is in it.
        recipe: how it is trained.
        seed: of weights, order and crops; the same for every operator, so that differences are paired.
        train, judge: pictures on the device that trains.
        weights: of the plain network, to start from.
        report: takes a line after every epoch.

    Returns:
        JSON values: figures of every epoch, which pictures the last one has right (packed bits), parameters, FLOPs, the deployed
        form's figures, and how long it took.
    """
    device, began = train.labels.device, time.perf_counter()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    torch.manual_seed(seed)
    model, new = network.build(operator, weights)
    model = model.to(device).to(memory_format=torch.channels_last)
    averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(recipe.ema)) if recipe.ema else None
    judged = model if averaged is None else averaged
    optimizer, schedule = _optimizer(model, new, recipe, len(train) // recipe.batch)
    prepare = _Preparation(network, recipe, device)
    epochs: list[dict[str, Any]] = []
    batches = _Batches(network, recipe, train, seed)
    for epoch in range(recipe.epochs):
        total = torch.zeros((), device=device)
        model.train()
        for images, target in batches:
            with prepare.autocast():
                loss = F.cross_entropy(model(prepare(images)), target)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.detach()
            if averaged is not None:
                averaged.update_parameters(model)
        last = epoch + 1 == recipe.epochs
        if last or averaged is not None:
            update_bn(prepare.each(train[: recipe.statistics].pixels), judged)
        right, figures = _judge(judged, judge, prepare)
        epochs.append({"train_loss": float(total) / len(batches), **figures, "seconds": time.perf_counter() - began})
        report(f"{operator} seed {seed} epoch {epoch + 1}/{recipe.epochs}: " + _line(epochs[-1]))
        if not math.isfinite(epochs[-1]["train_loss"]):
            break
    final: Any = model if averaged is None else averaged.module
    return {
        "operator": operator,
        "seed": seed,
        "train_pictures": len(train),
        "epochs": epochs,
        "correct": packed(right),
        "pictures": len(judge),
        "parameters": count_parameters(final),
        "deployed": _deployed(final.eval(), right, judge, prepare),
        "seconds": time.perf_counter() - began,
        "peak_bytes": torch.cuda.max_memory_allocated() if device.type == "cuda" else None,
    }


class _Preparation:
    """From augmented or stored pictures to what a network takes."""

    def __init__(self, network: Network, recipe: Recipe, device: torch.device) -> None:
        self.size, self.mean, self.deviation, self.device = network.size, recipe.mean, recipe.deviation, device

    def __call__(self, images: Tensor) -> Tensor:
        """(N, 3, S, S) in 0 .. 1 -> the same normalized, channels last."""
        return ((images - self.mean) / self.deviation).contiguous(memory_format=torch.channels_last)

    def each(self, pixels: Tensor) -> Iterator[Tensor]:
        """Stored pictures (N, 3, H, W) uint8 in batches, resized where the network wants another size."""
        for part in pixels.split(_JUDGED_AT_ONCE):
            images = part.float() / 255
            if images.shape[-1] != self.size:
                images = F.interpolate(images, size=(self.size, self.size), mode="bilinear", align_corners=False)
            yield self(images)

    def autocast(self) -> torch.autocast:
        """bfloat16 on a GPU."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda")


class _Batches:
    """The batches of an epoch in a new order each time it is walked through; the last pictures that fill none are left out."""

    def __init__(self, network: Network, recipe: Recipe, pictures: Pictures, seed: int) -> None:
        self.recipe, self.pictures, self.classes = recipe, pictures, network.classes
        self.random = torch.Generator().manual_seed(seed)
        device = pictures.labels.device
        self.augmentation = Augmentation(network.size, recipe.scale, recipe.strong, device, seed)

    def __len__(self) -> int:
        return len(self.pictures) // self.recipe.batch

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        labels, smoothing = self.pictures.labels, self.recipe.smoothing
        order = torch.randperm(len(labels), generator=self.random).to(labels.device)
        for chosen in order[: len(self) * self.recipe.batch].split(self.recipe.batch):
            images, target = self.augmentation(self.pictures.pixels[chosen]), labels[chosen]
            if self.recipe.strong:
                yield mixed(images, target, self.classes, smoothing, self.random)
            else:
                yield images, F.one_hot(target, self.classes) * (1 - smoothing) + smoothing / self.classes


def _optimizer(
    model: nn.Module, new: set[str], recipe: Recipe, steps: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LambdaLR]:
    """The optimizer with its learning rate for each of ``steps`` steps an epoch."""
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        groups.setdefault((name in new, parameter.dim() > 1), []).append(parameter)
    described = [
        {
            "params": parameters,
            "lr": recipe.lr * (recipe.new_lr_factor if is_new else 1),
            "weight_decay": recipe.weight_decay if decays else 0.0,
        }
        for (is_new, decays), parameters in groups.items()
    ]
    if recipe.optimizer == "sgd":
        optimizer: torch.optim.Optimizer = torch.optim.SGD(described, lr=recipe.lr, momentum=0.9, nesterov=True)
    else:
        optimizer = torch.optim.AdamW(described, lr=recipe.lr)
    warmup, total = max(recipe.warmup * steps, 1), recipe.epochs * steps

    def factor(step: int) -> float:
        return min((step + 1) / warmup, 0.5 * (1 + math.cos(math.pi * step / total)))

    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


@torch.no_grad()
def _judge(model: nn.Module, pictures: Pictures, prepare: _Preparation) -> tuple[Tensor, dict[str, float]]:
    """Which pictures are right, (N,) bool, and loss, top-1 and top-5, in single precision."""
    model.eval()
    logits = torch.cat([model(images) for images in prepare.each(pictures.pixels)]).float()
    best = logits.topk(5, 1).indices == pictures.labels[:, None]
    right = best[:, 0]
    loss = float(F.cross_entropy(logits, pictures.labels))
    return right, {"loss": loss, "top1": float(right.float().mean()), "top5": float(best.any(1).float().mean())}


def _deployed(model: nn.Module, right: Tensor, pictures: Pictures, prepare: _Preparation) -> dict[str, Any]:
    """The deployed form: FLOPs of one picture, parameters, top-1, and on how many pictures it is right where training was not."""
    example = next(prepare.each(pictures.pixels[:8]))
    deployed = reparameterize(model, example_inputs=example, fold_norms=True, rtol=1e-2)
    now, figures = _judge(deployed, pictures, prepare)
    return {
        "top1": figures["top1"],
        "changed": int((now != right).sum()),
        "layouts": sorted(set(layouts_of(deployed).values())),
        "parameters": count_parameters(deployed),
        "flops": count_flops(deployed, example[:1]),
    }


def packed(right: Tensor) -> str:
    """(N,) bool as base64 of packed bits."""
    return base64.b64encode(np.packbits(right.cpu().numpy()).tobytes()).decode()


def unpacked(text: str, count: int) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """The inverse of ``packed``."""
    bits = np.frombuffer(base64.b64decode(text), np.uint8)
    return np.unpackbits(bits, count=count).astype(bool)


def _line(figures: Mapping[str, float]) -> str:
    return (
        f"train loss {figures['train_loss']:.3f}  loss {figures['loss']:.3f}  top-1 {figures['top1']:.2%}  "
        f"top-5 {figures['top5']:.2%}  {figures['seconds']:.0f} s"
    )
