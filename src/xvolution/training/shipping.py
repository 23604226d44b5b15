"""A trained classifier in every runtime that is installed, as one table."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from xvolution.deploy.export import ExportError
from xvolution.deploy.measure import AUTO
from xvolution.deploy.runtimes import RUNTIMES, Runtime
from xvolution.deploy.shipping import Shippable, ShippingTable, absent_runtimes, compare_file, predicted
from xvolution.models import build_model
from xvolution.training.api import deploy, load_model
from xvolution.training.classification.metadata import ClassifierMetadata
from xvolution.training.data import evaluation_loader, open_data
from xvolution.training.errors import InputError, RunError
from xvolution.training.tasks import task_of_file

#: What stands for every runtime.
ALL = "all"
_BATCH = 32


def deploy_to(
    checkpoint: str | os.PathLike[str],
    runtimes: Sequence[str] = (ALL,),
    output: str | os.PathLike[str] | None = None,
    *,
    data: str | os.PathLike[str] | None = None,
    images: int = 256,
    layout: str = AUTO,
    fold_norms: bool = False,
    threads: int | None = None,
    rounds: int = 30,
    progress: Callable[[str], None] | None = None,
    checksum: bool = True,
    **options: Any,
) -> ShippingTable:
    """Write a trained classifier for several runtimes, run each file, and compare it with the plain network there.

    Args:
        checkpoint: a .ckpt or .safetensors file of a classifier in training form.
        runtimes: by name, or ``all`` for each that can write classifiers; those that are not installed are named in the table.
        output: the files' path without their endings; by default the checkpoint's.
        data: as in training: the images of its validation part whose predictions are compared; none when None.
        images: how many of them at most.
        layout, fold_norms, threads, progress, checksum, **options: as of `xvolution.training.deploy`. ``threads`` is also what
            latencies are measured with.
        rounds: samples of each latency.

    Returns:
        The table. A runtime that cannot take the network has its reason in ``refused``, and the others have their files.

    Raises:
        InputError: the checkpoint holds no classifier in training form, there is no such runtime, or an option cannot be used.
        RunError: the deployed form differs from the training form.
        OSError: a file cannot be written.
    """
    if rounds < 1 or images < 1:
        raise InputError(f"--rounds is {rounds} and --images is {images}; each must be at least 1.")
    asked = _asked(runtimes, task_of_file(checkpoint).endings)
    trained, metadata = load_model(checkpoint, checksum=checksum)
    if not isinstance(metadata, ClassifierMetadata):
        raise InputError(f"--to is for classifiers, and {checkpoint} holds {metadata.noun}; give --output instead.")
    absent = absent_runtimes(runtime.name for runtime in asked)
    stem = Path(checkpoint).with_suffix("") if output is None else Path(output)
    batches = [] if data is None else _batches(data, metadata, options.get("image_size"), images)
    predictions = predicted(trained, batches) if batches else None
    plain = build_model(
        replace(metadata.model, conversion=None, name=metadata.model.name.removeprefix("xvolution_"))
    ).eval()
    files: list[Shippable] = []
    refused: dict[str, str] = {}
    for runtime in asked:
        if runtime.name in absent:
            continue
        path = stem.with_name(f"{stem.name}{runtime.ending}")
        how: dict[str, Any] = {"layout": layout, "fold_norms": fold_norms, "threads": threads, "checksum": checksum}
        try:
            written = deploy(checkpoint, [path], progress=progress, **how, **options)
            judged = (written.reports[0], plain, written.example, batches, predictions)
            files.append(compare_file(*judged, threads=threads, rounds=rounds))
        except (RunError, ExportError) as error:
            refused[runtime.name] = str(error)
    return ShippingTable(files, threads, sum(map(len, batches)), refused, absent)


def _asked(names: Sequence[str], endings: tuple[str, ...]) -> list[Runtime[Any]]:
    """The runtimes of these names, in the order of the register."""
    there = {name: runtime for name, runtime in RUNTIMES.items() if runtime.ending in endings}
    unknown = [name for name in names if name != ALL and name not in there]
    if unknown or not names:
        raise InputError(f"--to is {' '.join(unknown) or 'empty'}; allowed are {ALL}, {', '.join(there)}.")
    return [runtime for name, runtime in there.items() if ALL in names or name in names]


def _batches(
    data: str | os.PathLike[str], metadata: ClassifierMetadata, image_size: int | None, images: int
) -> list[Tensor]:
    """So many images from all over the validation part, prepared as the network takes them."""
    source = open_data(data).part("val")
    number = min(images, len(source))
    spread = source.subset([position * len(source) // number for position in range(number)])
    loader = evaluation_loader(spread, metadata.preprocessing.resized(image_size), _BATCH)
    return [batch["image"] for batch in loader]
