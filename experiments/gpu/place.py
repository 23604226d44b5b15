"""Where an item runs, and how long."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass(frozen=True)
class Place:
    """What an item may use.

    Attributes:
        packs: folder with the packs; pictures are made up when None.
        tiny: a trial on few pictures.
        workers: trainings at once; in this process when 0.
        deadline: by ``time.monotonic()``: nothing is started that would end later.
    """

    packs: Path | None
    tiny: bool
    workers: int
    deadline: float

    @property
    def device(self) -> torch.device:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
