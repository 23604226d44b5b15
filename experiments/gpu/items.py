"""What each item asks, as settings, and its jobs by key."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch

from experiments.gpu import classify, data, detect, schedule, timing
from experiments.gpu.classify import Recipe
from experiments.gpu.networks import OPERATORS, Network, lite0_weights
from experiments.gpu.place import Place
from experiments.gpu.store import Store

SEEDS = 3


@dataclass(frozen=True)
class Classification:
    """An item that trains classifiers on Tiny-ImageNet.

    Attributes:
        network, recipe: what is trained, and how.
        rates: learning rates of which the plain network chooses one, on a held-out tenth of the training part.
        new_factors: learning-rate factors of new parameters; the operators are trained with each of them.
        pretrained: start from the pack ``lite0.npz``.
    """

    network: Network
    recipe: Recipe
    rates: tuple[float, ...] = ()
    new_factors: tuple[float, ...] = (1.0,)
    pretrained: bool = False

    def tiny(self) -> Classification:
        """The same for a trial on a CPU."""
        short = dataclasses.replace(self.recipe, epochs=1, batch=8, warmup=0, statistics=16)
        size = 64 if self.pretrained else 32
        network = dataclasses.replace(self.network, size=size)
        factors, rates = self.new_factors[-1:], self.rates[:2]
        return dataclasses.replace(self, network=network, recipe=short, rates=rates, new_factors=factors)

    def settings(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def run(self, store: Store, place: Place) -> bool:
        """Choose the learning rate if there is one to choose, then train, then measure latency; as far as time goes."""
        recipe = self.recipe
        if self.rates:
            trials = {f"rate {rate}": partial(self._trial, place, rate) for rate in self.rates}
            if not schedule.run(store, trials, place.workers, place.deadline):
                return False
            best = min(self.rates, key=lambda rate: store.records[f"rate {rate}"]["epochs"][-1]["loss"])
            print(f"the plain network's loss on the held-out part is lowest with a learning rate of {best}", flush=True)
            recipe = dataclasses.replace(recipe, lr=best)
        return schedule.run(store, self._jobs(recipe, place), place.workers, place.deadline) and measure(
            store, dict(timing.network_latency(self.network, *_latency_settings(place))), place
        )

    def _jobs(self, recipe: Recipe, place: Place) -> dict[str, Callable[[], dict[str, Any]]]:
        """Seed by seed, so that what is done when the time is over can be compared."""
        jobs: dict[str, Callable[[], dict[str, Any]]] = {}
        for seed in range(1 if place.tiny else SEEDS):
            for operator in OPERATORS:
                for factor in (1.0,) if operator == "conv" else self.new_factors:
                    named = "" if factor == 1 else f" new x{factor:g}"
                    changed = dataclasses.replace(recipe, new_lr_factor=factor)
                    jobs[f"{operator}{named} seed {seed}"] = partial(self._train, place, changed, operator, seed)
        return jobs

    def _train(self, place: Place, recipe: Recipe, operator: str, seed: int) -> dict[str, Any]:
        train, judge = pictures(place)
        return self._one(place, recipe, operator, seed, train, judge)

    def _trial(self, place: Place, rate: float) -> dict[str, Any]:
        train, judge = data.held_out(pictures(place)[0])
        return self._one(place, dataclasses.replace(self.recipe, lr=rate), "conv", 0, train, judge)

    def _one(
        self, place: Place, recipe: Recipe, operator: str, seed: int, train: data.Pictures, judge: data.Pictures
    ) -> dict[str, Any]:
        # Single precision is what it says where networks are judged and deployed; training is in bfloat16.
        torch.backends.cudnn.allow_tf32 = False
        weights = None
        if self.pretrained and place.packs is not None:
            weights = lite0_weights(place.packs / "lite0.npz")
        record = classify.train(self.network, operator, recipe, seed, train, judge, weights, partial(print, flush=True))
        return {**record, "recipe": dataclasses.asdict(recipe)}


@cache
def pictures(place: Place) -> tuple[data.Pictures, data.Pictures]:
    """Training and validation part on the device; a process loads them once."""
    if place.packs is None:
        parts = (data.made_up(32), data.made_up(16))
    else:
        limit = 32 if place.tiny else None
        parts = (data.tiny_imagenet(place.packs, "train", limit), data.tiny_imagenet(place.packs, "val", limit))
    return parts[0].to(place.device), parts[1].to(place.device)


def measure(store: Store, cases: Mapping[str, timing.Case], place: Place) -> bool:
    """Measure what the store does not hold yet, as long as there is time; whether all is done."""
    longest = 0.0
    for key, case in cases.items():
        if key in store:
            continue
        if time.monotonic() + longest > place.deadline:
            print(f"no time for {key} and what follows; call again to go on", flush=True)
            return False
        began = time.monotonic()
        with schedule.reported(key):
            store.add(key, {"forms": case.measure(place.device, 2 if place.tiny else 11)})
            print(f"{key}: {_ratios(store.records[key]['forms'])}  {time.monotonic() - began:.0f} s", flush=True)
        longest = max(longest, time.monotonic() - began)
    return all(key in store for key in cases)


def _latency_settings(place: Place) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """Batches and modes."""
    return (1,) if place.tiny else (1, 64), ("eager", "graph") if place.device.type == "cuda" else ("eager",)


def _ratios(forms: Mapping[str, Any]) -> str:
    return "  ".join(
        f"{name} {figures['median_ms']:.3f} ms ({figures['ratio']:.2f})" for name, figures in forms.items()
    )


class Bench:
    """Item a."""

    def tiny(self) -> Bench:
        return self

    def settings(self) -> dict[str, Any]:
        return {"rounds": 11, "size": 224}

    def run(self, store: Store, place: Place) -> bool:
        cases = timing.bench(place.tiny, place.device.type == "cuda")
        if place.tiny:
            cases = {key: case for key, case in cases.items() if case.mode == "eager"}
        return measure(store, cases, place)


_RESNET18 = Network("resnet18", (3, 4), 64, data.CLASSES, stem_stride=2)
_LITE0 = Network("tf_efficientnet_lite0", (4, 5), 128, data.CLASSES)
_STRONG = Recipe(epochs=60, lr=0.1, strong=True, smoothing=0.1, ema=0.999, warmup=5)
_FINE_TUNING = Recipe(
    10, optimizer="adamw", weight_decay=0.02, warmup=1, smoothing=0.1, mean=127 / 255, deviation=128 / 255
)

ITEMS: dict[str, Classification | Bench | detect.Detection] = {
    "a": Bench(),
    "b": Classification(_RESNET18, Recipe(epochs=30)),
    "c": Classification(_RESNET18, _STRONG),
    "d": Classification(_LITE0, _FINE_TUNING, rates=(3e-4, 1e-3, 3e-3, 1e-2), new_factors=(1.0, 3.0), pretrained=True),
    "e": Classification(Network("resnet34", (3,), 64, data.CLASSES, stem_stride=2), Recipe(epochs=30)),
    "f": detect.Detection(),
}
