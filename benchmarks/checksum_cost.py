"""What the checksums of files cost: CPU time to write and to read a ResNet-50 with them and without.

python -m benchmarks.checksum_cost --output results/checksum-cost.json
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.record import write_record
from xvolution.models import ModelSpec, build_model
from xvolution.training.checkpoint import digest_of, read_weights, save_weights
from xvolution.training.classification.metadata import ClassifierMetadata
from xvolution.training.data.transforms import Preprocessing
from xvolution.training.metadata import HEADER


def cpu_seconds(call: Callable[[], Any], times: int) -> float:
    """The median CPU time of a call, which other processes on the machine disturb less than the clock's."""
    found = []
    for _ in range(times):
        began = time.process_time()
        call()
        found.append(time.process_time() - began)
    return statistics.median(found)


def measure(folder: Path, times: int) -> dict[str, Any]:
    """Bytes and CPU seconds, by file."""
    spec = ModelSpec("resnet50", 1000)
    model = build_model(spec)
    metadata = ClassifierMetadata(model=spec, preprocessing=Preprocessing(224), class_names=["a"], data="none")
    weights, checkpoint = folder / "model.safetensors", folder / "last.ckpt"
    save_weights(weights, model, metadata)
    state = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    momentum = {name: tensor.clone() for name, tensor in state.items()}
    torch.save({HEADER: metadata.to_dict(), "state_dict": state, "momentum": momentum}, checkpoint)
    found: dict[str, Any] = {}
    for path in (weights, checkpoint):
        found[path.name] = {
            "bytes": path.stat().st_size,
            "read": cpu_seconds(partial(read_weights, path, checksum=False), times),
            "read_with_checksum": cpu_seconds(partial(read_weights, path, checksum=True), times),
        }
    tensors = dict(model.state_dict())
    found[weights.name]["write"] = cpu_seconds(lambda: save_weights(weights, model, metadata), times)
    found[weights.name]["of_that_checksum"] = cpu_seconds(lambda: digest_of(tensors, ""), times)
    return found


def main(arguments: Iterable[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--times", type=int, default=7)
    parser.add_argument("--output", type=Path, default=Path("checksum-cost.json"))
    values = parser.parse_args(None if arguments is None else list(arguments))
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder), values.times)
    write_record(values.output, {"cpu_seconds": found, "times": values.times})
    print(found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
