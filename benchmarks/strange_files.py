"""Files of networks that are damaged or crafted: each must be refused with a sentence, or open as the same network.

    python -m benchmarks.strange_files --files 1000 --output results/strange-files.json

File i is made from the seed i alone, of a small classifier in each form that is read: the training form (.safetensors, .ckpt) and
the deployed one (.safetensors, .onnx). It is damaged (a flipped bit, a block of random bytes or of zeros, an end that is missing
or too much) or its description of the network is crafted (a value in the place of another one). Crafted files have no checksum,
as a stranger's need not have one; a description that says something else about the same weights is counted apart.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from benchmarks.record import write_record
from xvolution.training import TrainConfig, deploy, load_model, train
from xvolution.training.checkpoint import read_header

LIMIT = 60  # seconds, beyond which a file has run away
OUTCOMES = ("same", "sentence", "described otherwise", "another network", "traceback", "ran away")
ALLOWED = OUTCOMES[:3]

_NASTY: tuple[Any, ...] = (
    *(None, True, -1, 0, 1, 3, 7.5, 255, 10**6, 10**9, 2**63, 2**70, -(2**40), 1e308, "", "a", "resnet18", "é" * 5000),
    *([], [0], [3, 3], [10**9] * 4, [1] * 10_000, ["a"], [None], [[1]], {}, {"a": 1}, {"type": "linear"}, {"0": [{}]}),
    *(
        "Transformer",
        "hf-hub:a/b",
        "../../x",
        "nan",
        {"checkpoint_path": "/dev/zero"},
        {"depth": 10**6},
        {"layers": [10**6]},
    ),
)


def originals(folder: Path) -> list[Path]:
    """Train and deploy a small classifier; its files."""
    config = TrainConfig(
        model="resnet18",
        model_kwargs={"layers": [1, 1, 1, 1], "channels": [8, 8, 16, 32]},
        small_images=True,
        image_size=16,
        stages=[2, 3],
        epochs=1,
        limit_train_batches=2,
        accelerator="cpu",
        workers=0,
        progress="off",
        output=str(folder / "run"),
    )
    result = train(config)
    deployed = [folder / "deployed.safetensors", folder / "deployed.onnx"]
    deploy(result.weights, deployed, layout="split")
    return [result.weights, result.checkpoint, *deployed]


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


def make(index: int, files: list[Path], folder: Path) -> tuple[Path, Path, str]:
    """File number ``index``: where it is, what it was made of and how."""
    rng = random.Random(index)
    source = files[index % len(files)]
    path = folder / f"strange{source.suffix}"
    if source.suffix == ".safetensors" and rng.random() < 0.6:
        header = crafted(read_header(source), rng)
        save_file(load_file(source), path, metadata={"xvolution": json.dumps(header)})
        return path, source, "a crafted description"
    if source.suffix == ".ckpt" and rng.random() < 0.5:
        checkpoint = torch.load(source, weights_only=True)
        checkpoint["xvolution"] = crafted(checkpoint["xvolution"], rng)
        torch.save(checkpoint, path)
        return path, source, "a crafted description"
    kind = rng.choice(list(DAMAGES))
    contents = bytearray(source.read_bytes())
    DAMAGES[kind](contents, rng)
    path.write_bytes(contents)
    return path, source, kind


class _RanAway(BaseException):
    pass


@contextmanager
def _limited() -> Iterator[None]:
    def end(signum: int, frame: FrameType | None) -> None:
        raise _RanAway

    before = signal.signal(signal.SIGALRM, end)
    signal.alarm(LIMIT)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def opened(path: Path) -> tuple[dict[str, Any], Any]:
    """What makes a network: its numbers, and what its file says of it."""
    model, metadata = load_model(path)
    numbers: dict[str, Any] = dict(model.state_dict())
    if path.suffix == ".onnx":
        x = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
        numbers = {"logits": model(x)}
    return numbers, metadata


def outcome(path: Path, expected: tuple[dict[str, Any], Any]) -> tuple[str, str]:
    """What became of a file, one of ``OUTCOMES``, and what was said."""
    try:
        with _limited():
            numbers, metadata = opened(path)
    except _RanAway:
        return "ran away", f"more than {LIMIT} s"
    except Exception as error:
        kind = "sentence" if getattr(error, "exit_code", None) == 2 else "traceback"
        return kind, f"{type(error).__name__}: {str(error)[:300]}"
    same = numbers.keys() == expected[0].keys() and all(torch.equal(numbers[k], expected[0][k]) for k in numbers)
    if not same:
        return "another network", ""
    return ("same", "") if metadata == expected[1] else ("described otherwise", "")


def check(count: int, first: int = 0) -> dict[str, Any]:
    """Make and open so many files; what became of them, by kind, and every one that is not as promised."""
    counts: dict[str, Counter[str]] = {}
    failures, slowest = [], 0.0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = originals(folder)
        expected = {file: opened(file) for file in files}
        for index in range(first, first + count):
            path, source, kind = make(index, files, folder)
            began = time.perf_counter()
            found, said = outcome(path, expected[source])
            slowest = max(slowest, time.perf_counter() - began)
            # A description may say something else of the same weights; damage may not.
            if found == "described otherwise" and kind != "a crafted description":
                found = "another network"
            counts.setdefault(f"{source.name}, {kind}", Counter())[found] += 1
            if found not in ALLOWED:
                failures.append({"file": index, "of": source.name, "kind": kind, "outcome": found, "said": said})
    table = {kind: dict(row) for kind, row in sorted(counts.items())}
    totals: Counter[str] = sum(counts.values(), Counter())
    return {"files": count, "totals": dict(totals), "slowest_seconds": slowest, "table": table, "failures": failures}


def main(arguments: Iterable[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--files", type=int, default=1000)
    parser.add_argument("--first", type=int, default=0, help="number of the first file")
    parser.add_argument("--output", type=Path, default=Path("strange-files.json"))
    values = parser.parse_args(None if arguments is None else list(arguments))
    result = check(values.files, values.first)
    write_record(values.output, result)
    for failure in result["failures"]:
        print(failure)
    print(result["totals"])
    return 1 if result["failures"] else 0


if __name__ == "__main__":
    sys.exit(main())
