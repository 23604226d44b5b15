"""Post-training quantization to 8-bit integers, by ONNX Runtime."""

from __future__ import annotations

import os
import platform
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from xvolution.deploy.export import export
from xvolution.deploy.runtimes import RUNTIMES, ExportError, LoadedFile, OnnxReader, OnnxRuntime, runtime_for
from xvolution.deploy.runtimes.base import first_line
from xvolution.deploy.runtimes.labels import Labels
from xvolution.files import written_whole


class QuantizationError(RuntimeError):
    """The network cannot be quantized, or the quantized file does not run."""


@dataclass(frozen=True)
class QuantizationReport:
    """The written file, and its difference from the fp32 network on the calibration images.

    Attributes:
        path: the file.
        calibration_images: how many images set the ranges of the activations.
        max_difference: largest absolute difference of any output.
        relative_error: ``||int8 - fp32|| / ||fp32||`` (Frobenius) of the outputs.
        bytes_before: size of the fp32 file.
        bytes_after: size of the quantized file.
    """

    path: Path
    calibration_images: int
    max_difference: float
    relative_error: float
    bytes_before: int
    bytes_after: int

    def __str__(self) -> str:
        return (
            f"wrote {self.path}: int8, {self.bytes_before:,} -> {self.bytes_after:,} bytes; outputs differ by "
            f"{self.relative_error:.1%} (at most {self.max_difference:.2e}) on {self.calibration_images} calibration images"
        )


def quantize(
    source: nn.Module | str | os.PathLike[str],
    path: str | os.PathLike[str],
    calibration: Iterable[Tensor],
    *,
    method: Literal["minmax", "entropy", "percentile"] = "minmax",
    reduce_range: bool | None = None,
) -> QuantizationReport:
    """Quantize a network to int8: weights per output channel, activations per tensor; run it and compare.

    ONNX Runtime quantizes it (QDQ); other runtimes that take quantized ONNX files get theirs made from that one.

    Args:
        source: a deployed network in eval mode, or an fp32 ``.onnx`` file with one image input.
        path: the file to write; it ends in ``.onnx``, or in ``.xml`` for OpenVINO.
        calibration: batches of images (N, C, H, W) like those the network will see, float32; of any number and size, as far as
            the network takes them. Read once.
        method: how ONNX Runtime computes the range of an activation from the calibration.
        reduce_range: give weights 7 bits. On x86 processors without VNNI, sums of two products in 16 bits overflow with 8-bit
            weights; on others 7 bits lose accuracy. None decides for this machine: give it if the file runs on another one.

    Returns:
        The report, with the error of this approximation. Calling ``equalize`` before may reduce the error.

    Raises:
        ValueError: an ending of no runtime that takes int8, an unknown method, or calibration without images.
        ExportError: ``source`` does not export.
        QuantizationError: a missing package, a file that cannot be read, or a quantized network that returns no finite numbers.
        OSError: the file cannot be written.
    """
    path = Path(path)
    runtime = int8_runtime(path)
    batches = _checked(calibration, method)
    with tempfile.TemporaryDirectory() as folder, written_whole(path) as written:
        if isinstance(source, nn.Module):
            original = Path(folder) / "fp32.onnx"
            export(source, original, example_inputs=batches[0])
        else:
            original = Path(source)
        seven_bits = saturates() if reduce_range is None else reduce_range
        quantized = Path(folder) / "int8.onnx"
        properties = _quantize_file(original, quantized, Path(folder), batches, method, seven_bits)
        try:
            runtime.write_from(partial(shutil.copyfile, quantized), written)
            runtime.label(written, Labels(properties=properties))
        except ExportError as error:
            raise QuantizationError(str(error)) from error
        expected, actual = _run(OnnxRuntime(), original, batches), _run(runtime, written, batches)
        if not all(torch.isfinite(y).all() for y in actual):
            raise QuantizationError(f"{path.name} returns infinite or NaN values; nothing was written")
        pairs = [(a, e) for a, e in zip(actual, expected, strict=True) if e.numel()]
        return QuantizationReport(
            path=path,
            calibration_images=sum(len(batch) for batch in batches),
            max_difference=max(float((a - e).abs().max()) for a, e in pairs),
            relative_error=_norm([a - e for a, e in pairs]) / max(_norm([e for _, e in pairs]), 1e-30),
            bytes_before=_size(OnnxRuntime(), original),
            bytes_after=_size(runtime, written),
        )


def saturates() -> bool:
    """Whether this machine's processor adds products of 8-bit integers in 16 bits, which may overflow."""
    return platform.machine().lower() in ("x86_64", "amd64") and not torch.cpu._is_vnni_supported()


def int8_runtime(path: str | os.PathLike[str]) -> OnnxReader[LoadedFile]:
    """The runtime of a path's ending, which must compute quantized ONNX files in 8-bit integers.

    Raises:
        ValueError: it does not, or no runtime has such an ending.
    """
    runtime = runtime_for(path)
    if not isinstance(runtime, OnnxReader) or not runtime.takes_int8:
        takers = [each.ending for each in RUNTIMES.values() if isinstance(each, OnnxReader) and each.takes_int8]
        raise ValueError(
            f"{Path(path).name} cannot be quantized: {runtime.title} has no int8 files here; give a file that ends in "
            f"{' or '.join(takers)}"
        )
    return runtime


def _checked(calibration: Iterable[Tensor], method: str) -> list[Tensor]:
    if method not in ("minmax", "entropy", "percentile"):
        raise ValueError(f"method is {method!r}; allowed are 'minmax', 'entropy' and 'percentile'")
    try:
        OnnxRuntime().require_writer()
    except ExportError as error:
        raise QuantizationError(str(error)) from error
    batches = list(calibration)
    if not all(isinstance(batch, Tensor) and batch.dim() >= 3 and len(batch) for batch in batches) or not batches:
        raise ValueError("calibration must hold at least one batch of images (N, C, H, W), each a tensor")
    return [batch.detach().cpu().float() for batch in batches]


def _quantize_file(
    original: Path, quantized: Path, folder: Path, batches: Sequence[Tensor], method: str, reduce_range: bool
) -> dict[str, str]:
    """Write the quantized form of an ONNX file, and answer the properties of that file."""
    import onnx
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(quantization.CalibrationDataReader):
        """Hands the batches to ONNX Runtime one by one; it asks for a range, so that those of one need not be of one size."""

        def __init__(self, name: str) -> None:
            self.name = name
            self.set_range(0, len(batches))

        def __len__(self) -> int:
            return len(batches)

        def set_range(self, start_index: int, end_index: int) -> None:
            feeds = [{self.name: batch.numpy()} for batch in batches[start_index:end_index]]
            self.feeds: Iterator[dict[str, Any]] = iter(feeds)

        def get_next(self) -> Any:
            return next(self.feeds, None)

    methods = quantization.CalibrationMethod
    prepared = folder / "prepared.onnx"
    try:
        network = onnx.load(os.fspath(original))
        quant_pre_process(os.fspath(original), os.fspath(prepared), skip_symbolic_shape=True)
        quantization.quantize_static(
            os.fspath(prepared),
            os.fspath(quantized),
            Reader(network.graph.input[0].name),
            quant_format=quantization.QuantFormat.QDQ,
            per_channel=True,
            reduce_range=reduce_range,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            calibrate_method={
                "minmax": methods.MinMax,
                "entropy": methods.Entropy,
                "percentile": methods.Percentile,
            }[method],
            extra_options={"CalibStridedMinMax": 1},  # the batches of one range, whatever the method
        )
    except Exception as error:  # ONNX and its runtime raise errors of many kinds for a file that may be anything
        raise QuantizationError(f"ONNX Runtime cannot quantize {original.name}: {first_line(error)}") from error
    return {entry.key: entry.value for entry in network.metadata_props}


def _run(runtime: OnnxReader[LoadedFile], path: Path, batches: Sequence[Tensor]) -> list[Tensor]:
    """All outputs of a file, of any number and rank, batch by batch."""
    try:
        run = runtime.load(path)
        return [y.double() for batch in batches for y in run(batch)]
    except ExportError as error:
        raise QuantizationError(str(error)) from error


def _norm(tensors: Sequence[Tensor]) -> float:
    """The Frobenius norm of all numbers in ``tensors``."""
    return sum(float(tensor.square().sum()) for tensor in tensors) ** 0.5


def _size(runtime: OnnxReader[LoadedFile], path: Path) -> int:
    """Bytes of a file with the weights beside it, where there are some."""
    return sum(part.stat().st_size for part in runtime.files_of(path) if part.exists())
