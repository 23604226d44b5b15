"""A trained classifier in every installed runtime, as one table."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from xvolution.deploy.export import ExportError
from xvolution.deploy.measure import AUTO
from xvolution.deploy.quantize import QuantizationError
from xvolution.deploy.runtimes import RUNTIMES, OnnxReader, Runtime
from xvolution.deploy.shipping import Shippable, ShippingTable, absent_runtimes, compare_file, predicted
from xvolution.models import build_model
from xvolution.training.api import deploy, load_model
from xvolution.training.classification.metadata import ClassifierMetadata
from xvolution.training.classification.quantize import Calibration, write_quantized
from xvolution.training.data import ImageSource, evaluation_loader, open_data
from xvolution.training.deployment import DeploySettings
from xvolution.training.errors import InputError, RunError
from xvolution.training.held_out import seed_of
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
    int8: bool = False,
    calibration_images: int = 256,
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
        runtimes: names of runtimes, or ``all`` for each that can write classifiers; the table lists those not installed.
        output: the files' path without their endings; by default the checkpoint's.
        data: as in training: the images of its validation part whose predictions are compared; none when None.
        images: largest number of these images.
        int8: also write a quantized file, called ``...-int8``, for each runtime that takes such files. Needs ``data``.
        calibration_images: number of images of the training part that set the ranges of its activations.
        layout, fold_norms, threads, progress, checksum, **options: as of `xvolution.training.deploy`. ``threads`` is also what
            latencies are measured with.
        rounds: number of times each latency is measured.

    Returns:
        The table. For a runtime that does not run on this machine, or that cannot run the network, ``refused`` has the
        reason; the others have files.

    Raises:
        InputError: the checkpoint holds no classifier in training form, there is no such runtime, or an option cannot be used.
        RunError: the deployed form differs from the training form.
        OSError: a file cannot be written.
    """
    for option, number in {"rounds": rounds, "images": images, "calibration-images": calibration_images}.items():
        if number < 1:
            raise InputError(f"--{option} is {number}; it must be at least 1.")
    if int8 and data is None:
        raise InputError("--int8 needs images that set the ranges of the activations; give --data as well.")
    asked = _asked(runtimes, task_of_file(checkpoint).endings)
    trained, metadata = load_model(checkpoint, checksum=checksum)
    if not isinstance(metadata, ClassifierMetadata):
        raise InputError(
            f"--to works only for classifiers, but {checkpoint} holds {metadata.noun}; give --output instead."
        )
    absent = absent_runtimes(runtime.name for runtime in asked)
    stem = Path(checkpoint).with_suffix("") if output is None else Path(output)
    metadata = replace(metadata, preprocessing=metadata.preprocessing.resized(options.get("image_size")))
    splits = None if data is None else open_data(data, seed=seed_of(metadata, data))
    batches = [] if splits is None else _batches(splits.part("val"), metadata, images)
    calibration = _batches(splits.train, metadata, calibration_images) if int8 and splits is not None else []
    predictions = predicted(trained, batches) if batches else None
    plain = _plain_twin(metadata)
    how: dict[str, Any] = {"layout": layout, "fold_norms": fold_norms, "threads": threads, "checksum": checksum}
    measured = partial(compare_file, threads=threads, rounds=rounds)
    files: list[Shippable] = []
    refused: dict[str, str] = {}
    for runtime in asked:
        if runtime.name in absent:
            continue
        unrunnable = runtime.unrunnable()
        if unrunnable:
            refused[runtime.name] = unrunnable
            continue
        path = stem.with_name(f"{stem.name}{runtime.ending}")
        with _noted(refused, runtime.name):
            written = deploy(checkpoint, [path], progress=progress, **how, **options)
            (report,) = written.reports
            judged = (plain, written.example, batches, predictions)
            files.append(measured(report, *judged))
            if calibration and isinstance(runtime, OnnxReader) and runtime.takes_int8:
                with _noted(refused, f"{runtime.name} int8"):
                    path = stem.with_name(f"{stem.name}-int8{runtime.ending}")
                    if progress is not None:
                        progress(f"writing {path}, running it, comparing its outputs")
                    chosen = DeploySettings(report.layouts, True, (runtime.name,), threads)
                    ranges, _ = write_quantized(trained, metadata, path, calibration, chosen, Calibration())
                    smaller = replace(report, path=path, max_difference=ranges.max_difference)
                    files.append(measured(smaller, *judged, calibration=calibration))
    return ShippingTable(files, threads, sum(map(len, batches)), refused, absent)


@contextmanager
def _noted(refused: dict[str, str], name: str) -> Iterator[None]:
    """Write down why a file is left out, and go on."""
    try:
        yield
    except (RunError, ExportError, QuantizationError) as error:
        refused[name] = str(error)


def _asked(names: Sequence[str], endings: tuple[str, ...]) -> list[Runtime[Any]]:
    """The runtimes of these names, in the order of the register."""
    there = {name: runtime for name, runtime in RUNTIMES.items() if runtime.ending in endings}
    unknown = [name for name in names if name != ALL and name not in there]
    if unknown or not names:
        raise InputError(f"--to is {' '.join(unknown) or 'empty'}; allowed are {ALL}, {', '.join(there)}.")
    return [runtime for name, runtime in there.items() if ALL in names or name in names]


def _plain_twin(metadata: ClassifierMetadata) -> nn.Module:
    """The network without X-volution, in eval mode, with random weights."""
    name = metadata.model.name.removeprefix("xvolution_")
    return build_model(replace(metadata.model, conversion=None, name=name)).eval()


def _batches(source: ImageSource, metadata: ClassifierMetadata, images: int) -> list[Tensor]:
    """This number of preprocessed images, evenly spread over a part."""
    loader = evaluation_loader(source.spread(images), metadata.preprocessing, _BATCH)
    return [batch["image"] for batch in loader]
