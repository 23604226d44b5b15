"""Folds of cross-validation: every image is judged once, by a network that did not learn from it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from xvolution.training.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

#: More folds are a slip of the hand.
MOST_FOLDS = 1000


@dataclass(frozen=True)
class Fold:
    """One part of a data set that was divided into several; as text ``2/5``.

    Attributes:
        number: of the part that judges, from 1.
        count: of parts.
    """

    number: int
    count: int

    def __post_init__(self) -> None:
        if not 2 <= self.count <= MOST_FOLDS or not 1 <= self.number <= self.count:
            raise InputError(
                f"the fold {self} cannot be; give one such as 2/5, the second of five parts, with 2 to {MOST_FOLDS} parts."
            )

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    def judges(self, labels: NDArray[Any], seed: int) -> NDArray[np.bool_]:
        """Which images this part holds.

        Args:
            labels: (n,) int, the class of each image. Each class is dealt out evenly.
            seed: of the division, which is the same for all parts of it.

        Returns:
            (n,) bool. Over all parts each image is held once.
        """
        import numpy as np  # not for the sake of the flags, which are parsed without it

        generator = np.random.default_rng(seed)
        # Dealt out on and on over the classes, so that small ones do not all fall into the first parts.
        order = np.concatenate([generator.permutation(np.flatnonzero(labels == label)) for label in np.unique(labels)])
        part = np.empty(len(labels), dtype=np.int64)
        part[order] = np.arange(len(labels)) % self.count
        return part == self.number - 1


def parse_holdout(value: float | str | None) -> float | Fold | None:
    """What ``--holdout`` says: a fraction of the training part, or a fold such as ``2/5``.

    Raises:
        InputError: it is neither.
    """
    if isinstance(value, str):
        found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", value)
        if found is None:
            raise InputError(f"--holdout is {value}; give a fraction such as 0.1, or a fold such as 2/5.")
        return Fold(*map(int, found.groups()))
    if value is not None and not 0 < value < 1:
        raise InputError(f"--holdout is {value}; it must be between 0 and 1, or a fold such as 2/5.")
    return value
