"""The settings and results of every evaluation, and its device."""

from __future__ import annotations

import os
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from xvolution.training.config import LARGEST_SEED, MOST_WORKERS
from xvolution.training.errors import InputError


@dataclass(frozen=True)
class EvaluationSettings:
    """The settings of an evaluation; the fields are arguments of `xvolution.training.evaluate`."""

    data: str | os.PathLike[str]
    split: str
    holdout: float | str | None
    seed: int
    batch_size: int
    workers: int | None
    on_bad_image: str
    limit_batches: int | None
    max_pixels: int | None
    outside_images: bool

    def __post_init__(self) -> None:
        for name, value, least, most in (
            ("batch-size", self.batch_size, 1, None),
            ("limit-batches", self.limit_batches, 1, None),
            ("workers", self.workers, 0, MOST_WORKERS),
            ("seed", self.seed, 0, LARGEST_SEED),
        ):
            if value is not None and not (least <= value and (most is None or value <= most)):
                allowed = f"at least {least}" if most is None else f"from {least} to {most}"
                raise InputError(f"--{name} is {value}; it must be {allowed}.")


class Evaluation(ABC):
    """The results of an evaluation; as text, the lines that `xvolution evaluate` prints."""

    images: int

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """The figures, without the predictions for single images, as plain JSON values."""


def pick_device(name: str) -> torch.device:
    """The device with this name; `auto` is a GPU if there is one.

    Raises:
        InputError: this machine has no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"this machine has no device {name!r}; give cpu or auto.") from error
    return device


def device_of(model: nn.Module) -> torch.device:
    """The device of a network's weights; the CPU if it has none, as in ONNX Runtime."""
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))


def clock(device: torch.device) -> float:
    """The time in seconds, after waiting for the device to finish."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
