"""One kind of file that the library reads."""

from __future__ import annotations

import hashlib
import random
from abc import ABC, abstractmethod
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch


class Read(NamedTuple):
    """What a file was read as.

    Attributes:
        content: a digest of what it holds.
        description: what it says of it.
    """

    content: str
    description: str = ""


class Subject(ABC):
    """One kind of file: how whole ones are made, how one is crafted, and how the library reads it.

    Attributes:
        name: in the record.
        has_checksum: damage to the bytes must not change what is read. What has none, such as a picture, may.
        keeps_content: a crafted description must not change what is read either.
    """

    name: str
    has_checksum = False
    keeps_content = False

    @abstractmethod
    def originals(self, folder: Path) -> list[Path]:
        """Make whole files in an empty folder; those that are damaged or crafted."""

    def craft(self, path: Path, rng: random.Random) -> bool:
        """Write something else where a file says what it is; False where it says nothing."""
        return False

    @abstractmethod
    def read(self, path: Path) -> Read:
        """Read a file as the commands do."""


def digest(*values: np.ndarray | torch.Tensor) -> str:
    """A digest of shapes, types and numbers."""
    total = hashlib.sha256()
    for value in values:
        array = value.detach().numpy() if isinstance(value, torch.Tensor) else value
        total.update(f"{array.shape} {array.dtype}".encode())
        total.update(np.ascontiguousarray(array).tobytes())
    return total.hexdigest()
