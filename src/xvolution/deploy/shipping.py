"""Comparison of exported files: size, difference of outputs, agreement of predictions, and latency."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from xvolution.conversion.modules import call
from xvolution.conversion.outputs import tensors_in
from xvolution.copying import copied
from xvolution.deploy.export import ExportReport, export
from xvolution.deploy.latency import measure_latency
from xvolution.deploy.quantize import quantize
from xvolution.deploy.runtimes import RUNTIMES, LoadedFile, runtime_for


@dataclass(frozen=True)
class Shippable:
    """One exported file, run in its runtime.

    Attributes:
        path: the file.
        runtime: its name in ``RUNTIMES``.
        version: version of the runtime.
        precision: ``fp32``, or ``int8`` for a quantized file.
        bytes: size of the file and of the weights beside it.
        dynamic: the dynamic axes, as in ``ExportReport``.
        layouts: number of operators for each layout.
        max_difference: largest absolute difference of any output from torch's; for a quantized file from the fp32 file's, on
            the calibration images.
        agreement: fraction of the images with the same prediction as the trained network; None without images.
        seconds: median time of one call on the example.
        plain_seconds: the same of the plain network in the same runtime.
        ratio: median over the rounds of the ratio of both.
    """

    path: Path
    runtime: str
    version: str
    precision: str
    bytes: int
    dynamic: str
    layouts: Mapping[str, int]
    max_difference: float
    agreement: float | None
    seconds: float
    plain_seconds: float
    ratio: float

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**vars(self), "path": str(self.path), "layouts": dict(self.layouts)}


@dataclass(frozen=True)
class ShippingTable:
    """The files that a network can be shipped as, and those that were not written.

    Attributes:
        files: the files, in the order of ``RUNTIMES``.
        threads: number of CPU threads of one call; None for the default of each runtime.
        images: number of images for the agreement.
        refused: runtime, or runtime and precision, to the reason why it has no file.
        absent: runtime that is not installed, to the command that installs it.
    """

    files: Sequence[Shippable]
    threads: int | None
    images: int
    refused: Mapping[str, str] = field(default_factory=dict)
    absent: Mapping[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "threads": self.threads,
            "images": self.images,
            "files": [file.to_dict() for file in self.files],
            "refused": dict(self.refused),
            "absent": dict(self.absent),
        }

    def __str__(self) -> str:
        head = (
            "file",
            "MB",
            "runtime",
            "precision",
            "layouts",
            "largest difference",
            "same prediction",
            "ms",
            "plain ms",
            "ratio",
        )
        rows = [head, *map(_cells, self.files)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        threads = "" if self.threads is None else f" by {self.threads} thread{'s' if self.threads > 1 else ''}"
        measured = f"latency{threads}: medians, measured in turns with the plain network"
        predicted = (
            f"predictions compared on {self.images} images"
            if self.images
            else "predictions were not compared; give --data"
        )
        return "\n".join(
            [
                *(lines if self.files else []),
                f"{measured}; {predicted}",
                *(f"{_title(name)}: not written, because {reason}" for name, reason in self.refused.items()),
                *(f"{RUNTIMES[name].title}: not installed; {command}" for name, command in self.absent.items()),
            ]
        )


def absent_runtimes(names: Iterable[str]) -> dict[str, str]:
    """Those of these runtimes that are not installed, with the command that installs each."""
    absent = [RUNTIMES[name] for name in names if not RUNTIMES[name].is_installed()]
    return {runtime.name: f'pip install "xvolution[{runtime.extra}]"' for runtime in absent}


def compare_file(
    report: ExportReport,
    plain: nn.Module,
    example: Tensor,
    batches: Sequence[Tensor] = (),
    predictions: Tensor | None = None,
    *,
    calibration: Sequence[Tensor] = (),
    threads: int | None = None,
    rounds: int = 30,
) -> Shippable:
    """Run a file that ``export`` wrote, beside the plain network in the same runtime.

    Args:
        report: of the file.
        plain: the network without X-volution, in eval mode; its weights may be any.
        example: (N, C, H, W), what one call of the latency takes.
        batches: images (n, C, H, W) whose predictions are compared, with as many axes open as the file has.
        predictions: (images,) int64, the class that the trained network gives each.
        calibration: images (n, C, H, W) that set the ranges of the plain network, which is quantized too; for a quantized file.
        threads: of the CPU that one call may use; the runtime's default when None.
        rounds: number of times each latency is measured.

    Raises:
        ExportError: the runtime cannot run the file, or cannot take the plain network.
        QuantizationError: the plain network cannot be quantized.
    """
    runtime = runtime_for(report.path)
    example = example if runtime.batched else example[:1]
    fixed = None if report.dynamic != "none" else example.shape[0]
    agreement = None if predictions is None else _agreement(runtime.load(report.path), batches, predictions, fixed)
    with tempfile.TemporaryDirectory() as folder:
        plain, beside = without_zero_scales(plain), Path(folder) / f"plain{runtime.ending}"
        if calibration:
            quantize(plain, beside, calibration)
        else:
            export(plain, beside, example, dynamic=fixed is None)
        files = {"ours": report.path, "plain": beside}
        loaded = {
            name: runtime.load(path, threads=threads, input_shapes=[example.shape]) for name, path in files.items()
        }
        measured = measure_latency({name: partial(run, example) for name, run in loaded.items()}, rounds)
    return Shippable(
        path=report.path,
        runtime=runtime.name,
        version=runtime.version(),
        precision="int8" if calibration else "fp32",
        bytes=sum(part.stat().st_size for part in runtime.files_of(report.path) if part.exists()),
        dynamic=report.dynamic,
        layouts=dict(Counter(report.layouts.values())),
        max_difference=report.max_difference,
        agreement=agreement,
        seconds=measured.latencies["ours"].median,
        plain_seconds=measured.latencies["plain"].median,
        ratio=measured.ratio("ours", "plain"),
    )


@torch.inference_mode()
def predicted(model: nn.Module, batches: Iterable[Tensor]) -> Tensor:
    """The class that a network in eval mode gives each image: (images,) int64."""
    return torch.cat([tensors_in(call(model, (batch,)))[0].argmax(1) for batch in batches])


def without_zero_scales(plain: nn.Module) -> nn.Module:
    """The network with scales of 1 where they are all 0, as many begin: converters leave out what a scale of 0 ends."""
    plain = copied(plain)
    with torch.no_grad():
        for name, scale in plain.named_parameters():
            if name.endswith("weight") and scale.dim() == 1 and not scale.any():
                scale.fill_(1)
    return plain


def _agreement(run: LoadedFile, batches: Sequence[Tensor], predictions: Tensor, fixed: int | None) -> float:
    """Fraction of the images with this prediction, if the file accepts their batch size."""
    found = [y for batch in batches for y in _logits(run, batch, fixed)]
    return float((torch.stack(found).argmax(1).cpu() == predictions.cpu()).double().mean())


def _logits(run: LoadedFile, batch: Tensor, fixed: int | None) -> Tensor:
    if fixed is None:
        return run(batch)[0]
    pieces = [run(pad(part, (0,) * 7 + (fixed - len(part),)))[0][: len(part)] for part in batch.split(fixed)]
    return torch.cat(pieces)


def _title(name: str) -> str:
    """Of a runtime, or of a runtime and a precision, such as "OpenVINO int8"."""
    runtime, _, precision = name.partition(" ")
    return f"{RUNTIMES[runtime].title} {precision}".rstrip()


def _cells(file: Shippable) -> tuple[str, ...]:
    return (
        str(file.path),
        f"{file.bytes / 1e6:.1f}",
        f"{RUNTIMES[file.runtime].title} {file.version}",
        file.precision,
        ", ".join(f"{layout} ({count})" for layout, count in file.layouts.items()) or "none",
        f"{file.max_difference:.1e}",
        "" if file.agreement is None else f"{file.agreement:.1%}",
        f"{file.seconds * 1e3:.2f}",
        f"{file.plain_seconds * 1e3:.2f}",
        f"{file.ratio:.2f}",
    )
