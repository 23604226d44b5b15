"""Pictures as bytes on the device that trains, from the packs or made up for a trial without them."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

CLASSES = 200


@dataclass(frozen=True)
class Pictures:
    """Classified pictures of one size.

    Attributes:
        pixels: (N, 3, S, S) uint8.
        labels: (N,) int64.
    """

    pixels: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device) -> Pictures:
        return Pictures(self.pixels.to(device), self.labels.to(device))

    def __getitem__(self, index: Any) -> Pictures:
        return Pictures(self.pixels[index], self.labels[index])


def read_pictures(path: Path, limit: int | None = None) -> Iterator[Image.Image]:
    """The pictures of a pack, decoded one by one, in colour; at most ``limit``."""
    with np.load(path) as pack:
        files, ends = pack["files"].tobytes(), pack["ends"].tolist()
    for start, end in list(zip([0, *ends], ends, strict=False))[:limit]:
        yield Image.open(io.BytesIO(files[start:end])).convert("RGB")


def tiny_imagenet(folder: Path, part: str, limit: int | None = None) -> Pictures:
    """Tiny-ImageNet from as many packs of the part as there are.

    Args:
        folder: with the packs.
        part: ``"train"`` or ``"val"``.
        limit: of each pack only the first so many pictures.

    Raises:
        FileNotFoundError: there is no pack of the part.
    """
    paths = sorted(folder.glob(f"tiny-imagenet-{part}*.npz"))
    if not paths:
        raise FileNotFoundError(
            f"{folder} holds no tiny-imagenet-{part}*.npz; make it with python -m experiments.gpu.pack"
        )
    pixels = np.stack([np.asarray(picture) for path in paths for picture in read_pictures(path, limit)])
    labels = np.concatenate([np.load(path)["labels"][:limit] for path in paths])
    return Pictures(torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(), torch.from_numpy(labels).long())


def made_up(count: int, classes: int = CLASSES, size: int = 64) -> Pictures:
    """Noise around one colour for each class, so that there is something to learn."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(count) % classes
    colours = torch.randint(40, 215, (classes, 3, 1, 1), generator=generator)
    noise = torch.randint(-40, 40, (count, 3, size, size), generator=generator)
    return Pictures((colours[labels] + noise).to(torch.uint8), labels)


def held_out(pictures: Pictures, fraction: float = 0.1) -> tuple[Pictures, Pictures]:
    """What remains of a training part, and a random part of it to choose on; the same ones every time."""
    order = torch.randperm(len(pictures), generator=torch.Generator().manual_seed(1)).to(pictures.labels.device)
    count = round(fraction * len(pictures))
    return pictures[order[count:]], pictures[order[:count]]
