"""Damage to the bytes of a file, and values in the place of other values in what it says."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable, Iterator
from typing import Any

_NASTY: tuple[Any, ...] = (
    *(None, True, -1, 0, 1, 3, 7.5, 255, 10**6, 10**9, 2**63, 2**70, -(2**40), 1e308, "", "a", "resnet18", "é" * 5000),
    *([], [0], [3, 3], [10**9] * 4, [1] * 10_000, ["a"], [None], [[1]], {}, {"a": 1}, {"type": "linear"}, {"0": [{}]}),
    *("Transformer", "hf-hub:a/b", "../../x", "nan", {"checkpoint_path": "/dev/zero"}),
    *({"depth": 10**6}, {"layers": [10**6]}),
)


def flip(contents: bytearray, rng: random.Random) -> None:
    contents[rng.randrange(len(contents))] ^= 1 << rng.randrange(8)


def scramble(contents: bytearray, rng: random.Random) -> None:
    begin, length = rng.randrange(len(contents)), rng.choice([1, 16, 4096])
    end = min(len(contents), begin + length)
    contents[begin:end] = rng.randbytes(end - begin)


def blank(contents: bytearray, rng: random.Random) -> None:
    begin, length = rng.randrange(len(contents)), rng.choice([16, 4096])
    end = min(len(contents), begin + length)
    contents[begin:end] = bytes(end - begin)


def cut(contents: bytearray, rng: random.Random) -> None:
    del contents[rng.randrange(len(contents)) :]


def lengthen(contents: bytearray, rng: random.Random) -> None:
    contents += rng.randbytes(rng.choice([1, 100, 10_000]))


DAMAGES: dict[str, Callable[[bytearray, random.Random], None]] = {
    "a flipped bit": flip,
    "a block of random bytes": scramble,
    "a block of zeros": blank,
    "an end that is missing": cut,
    "an end too much": lengthen,
}


def crafted(values: Any, rng: random.Random) -> Any:
    """JSON values with one of them, anywhere, in the place of what was there; or one more, or one less."""
    copy = json.loads(json.dumps(values))
    places = list(_places(copy))
    inner, key = rng.choice([p for p in places if rng.random() < 0.5] or places)
    kind = rng.random()
    if kind < 0.1:
        del inner[key]
    elif kind < 0.2 and isinstance(inner, dict):
        inner["unknown"] = rng.choice(_NASTY)
    else:
        inner[key] = rng.choice(_NASTY)
    return copy


def _places(values: Any) -> Iterator[tuple[Any, Any]]:
    keys: Iterable[Any] = values if isinstance(values, dict) else range(len(values)) if isinstance(values, list) else ()
    for key in list(keys):
        yield values, key
        if key != "provenance":
            yield from _places(values[key])
