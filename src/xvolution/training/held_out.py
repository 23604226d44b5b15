"""The images that a training kept to be judged by: a network is judged by images that it did not learn from."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from xvolution.training.errors import InputError
from xvolution.training.fold import Fold, parse_holdout
from xvolution.training.metadata import Metadata

_KEY = "held_out"  # in the provenance of a file
#: What to do about an evaluation by images that the network learned from.
JUDGE_BY_OTHERS = "Give --holdout and --seed as they were there, or --split train to judge by what it learned from."
#: What to do about a training that would be judged by images that another network learned from.
HOLD_OUT_THE_SAME = (
    "Give --holdout and --split-seed as they were there, or a file of a training that held out the same images."
)


@dataclass(frozen=True)
class HeldOut:
    """A part of a data set that a seed chose and that a network did not learn from.

    Attributes:
        holdout: fraction of the training part, or a fold such as ``2/5`` of training and validation part together.
        seed: of the choice.
    """

    holdout: float | str
    seed: int

    def __str__(self) -> str:
        return f"the images of --holdout {self.holdout} with the seed {self.seed}"

    @property
    def holds_validation(self) -> bool:
        """Whether images of the validation part were dealt to all parts, so that the others learned from them."""
        return isinstance(parse_holdout(self.holdout), Fold)


def described(held_out: HeldOut | None) -> dict[str, Any]:
    """What the provenance of a file says; None is for a network that its data set's own validation part judged."""
    return {_KEY: None if held_out is None else asdict(held_out)}


def kept_description(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """What a provenance says of the held-out images, for a file with the same weights."""
    return {key: value for key, value in provenance.items() if key == _KEY}


def seed_of(metadata: Metadata, data: str | os.PathLike[str], given: int | None = None) -> int:
    """The given seed; else the one that held images of this data set out in the network's training; 0 if none did."""
    if given is not None:
        return given
    stored = _stored(metadata) if _same(metadata.data, data) else None
    return 0 if stored is None else stored.seed


def require_unseen(
    name: str, metadata: Metadata, data: str | os.PathLike[str], held_out: HeldOut | None, advice: str
) -> None:
    """Require that a network did not learn from the images that judge; warns where its file does not say it.

    Args:
        name: of the network's file, for messages.
        metadata: of the network.
        data: the data set that judges.
        held_out: the part of it that judges; None for its own validation part.
        advice: what to do about a network that learned from these images.

    Raises:
        InputError: it learned from some of them.
    """
    if not _same(metadata.data, data):
        return
    if _KEY not in metadata.provenance:
        if held_out is not None:
            warnings.warn(
                f"{name} does not say which images of {data} were held out in its training, because an older version "
                f"wrote it. It may have learned from those that judge here, {held_out}. {advice}",
                stacklevel=2,
            )
        return
    stored = _stored(metadata)
    if stored == held_out or (held_out is None and not (stored and stored.holds_validation)):
        return
    raise InputError(
        f"{name} learned from images of {data} that judge here. Its training held out "
        f"{stored or 'none of the training part'}; here {held_out or 'the validation part'} would judge. {advice}"
    )


def _stored(metadata: Metadata) -> HeldOut | None:
    values = metadata.provenance.get(_KEY)
    if values is None:
        return None
    try:
        stored = HeldOut(**values)
        parse_holdout(stored.holdout)
    except (TypeError, InputError) as error:
        raise InputError(f"the file's description of its held-out images cannot be read ({error}).") from error
    if not isinstance(stored.seed, int):
        raise InputError(f"the file's description of its held-out images cannot be read (the seed is {stored.seed!r}).")
    return stored


def _same(data: str, other: str | os.PathLike[str]) -> bool:
    """Whether two names are of the same data set, as far as this machine can tell."""
    if data == os.fspath(other):
        return bool(data)
    paths = [os.path.expanduser(each) for each in (data, os.fspath(other))]
    return all(map(os.path.exists, paths)) and os.path.samefile(*paths)
