"""Writing ONNX files with standard operators, the requested opset and metadata, for the runtimes that read them."""

from __future__ import annotations

import contextlib
import hashlib
import io
import logging
import os
import warnings
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn
from torch.export import ExportedProgram

from xvolution.deploy.runtimes.base import RUNTIMES, ExportError, FileT_co, LoadedFile, Runtime, one_sentence
from xvolution.deploy.runtimes.labels import Labels
from xvolution.deploy.runtimes.onnx_names import rename
from xvolution.files import written_whole

#: The metadata's key of a file's checksum.
CHECKSUM = "sha256"
#: Writes an ONNX file at the path it is given.
OnnxWriter = Callable[[Path], None]


class OnnxReader(Runtime[FileT_co]):
    """A runtime whose files are ONNX files, or are made from them.

    Attributes:
        takes_detectors: whether it supports whole detectors, with suppression and outputs of any length.
        takes_int8: whether it computes a quantized ONNX file (QDQ) in 8-bit integers.
    """

    takes_opset: ClassVar[bool] = True
    takes_detectors: ClassVar[bool] = True
    takes_int8: ClassVar[bool] = False

    def write_from(self, write_onnx: OnnxWriter, path: str | os.PathLike[str]) -> None:
        """Write a network from an ONNX file that the caller writes.

        Args:
            write_onnx: writes the ONNX file.
            path: the runtime's own file.

        Raises:
            ExportError: a missing package, or a network that the exporter or the runtime does not take.
            OSError: the file cannot be written.
        """
        self.require_writer()
        with one_sentence(f"{self.title} cannot take {Path(path).name}"):
            self._write_from(write_onnx, Path(path))

    def _write(self, program: ExportedProgram, path: Path, opset_version: int | None) -> None:
        self._write_from(partial(write_program, program, opset_version=opset_version), path)

    @abstractmethod
    def _write_from(self, write_onnx: OnnxWriter, path: Path) -> None: ...


def detector_runtimes() -> dict[str, OnnxReader[LoadedFile]]:
    """The runtimes that take whole detectors, by name."""
    readers = ((name, runtime) for name, runtime in RUNTIMES.items() if isinstance(runtime, OnnxReader))
    return {name: runtime for name, runtime in readers if runtime.takes_detectors}


def write_program(program: ExportedProgram, path: Path, opset_version: int | None = None) -> None:
    """Write a captured program by torch's ONNX exporter; weights above 2 GB go into a file beside it.

    Raises:
        ExportError: the exporter cannot convert the program, not to this opset, or not with standard operators alone.
    """
    with one_sentence("the ONNX exporter cannot convert the model"), _quiet():
        converted = torch.onnx.export(program, dynamo=True, verbose=False, opset_version=opset_version, optimize=True)
    if converted is None:
        raise ExportError("the ONNX exporter returned nothing; check that onnx and onnxscript are up to date")
    converted.save(path)
    _check_graph(path, opset_version)


def write_traced(
    model: nn.Module,
    inputs: tuple[Any, ...],
    path: Path,
    *,
    opset_version: int,
    input_names: Sequence[str],
    output_names: Sequence[str],
    dynamic_axes: Mapping[str, Mapping[int, str]],
) -> None:
    """Write a module by torch's tracing exporter, for networks that ``torch.export`` cannot capture.

    Args:
        model: in eval mode.
        inputs: its arguments, of which the graph is traced.
        path: the file.
        opset_version: of ONNX.
        input_names: of the graph.
        output_names: of the graph.
        dynamic_axes: input or output to its open axes and their names.

    Raises:
        ExportError: the exporter cannot trace the module, not to this opset, or not with standard operators alone.
    """
    with one_sentence("torch's tracing exporter cannot write the model"), _quiet(), torch.no_grad():
        torch.onnx.export(
            model,
            inputs,
            str(path),
            dynamo=False,
            opset_version=opset_version,
            input_names=list(input_names),
            output_names=list(output_names),
            dynamic_axes={name: dict(axes) for name, axes in dynamic_axes.items()},
        )
    _check_graph(path, opset_version)


def write_labels(path: str | os.PathLike[str], labels: Labels) -> None:
    """Put names into an ONNX file, strings into its metadata, in the place of what was there, and a checksum of the file.

    A data file beside it, for weights above 2 GB, is not changed and not part of the checksum.

    Raises:
        ExportError: onnx is missing, the file is no ONNX network, or the names do not fit its graph.
        OSError: the file cannot be read or written.
    """
    with one_sentence(f"cannot put metadata into {Path(path).name}"):
        import onnx

        network = onnx.load(os.fspath(path), load_external_data=False)
        rename(network.graph, labels)
        onnx.helper.set_model_props(network, {k: v for k, v in labels.properties.items() if k != CHECKSUM})
        with written_whole(path) as temporary:
            onnx.save(network, os.fspath(temporary))
            record = _record(_sha256(temporary, temporary.stat().st_size))
            with open(temporary, "ab") as file:
                file.write(record)


def is_intact(path: str | os.PathLike[str]) -> bool | None:
    """Whether an ONNX file still has the bytes that `write_labels` wrote; None if it has no checksum.

    Raises:
        OSError: the file cannot be read.
    """
    length = len(_record("0" * 64))
    size = os.stat(path).st_size
    if size < length:
        return None
    with open(path, "rb") as file:
        file.seek(size - length)
        found = file.read()
    if not found.startswith(_record("")):
        return None
    return found == _record(_sha256(path, size - length))


def _record(digest: str) -> bytes:
    """The checksum as the last entry of the metadata; fields that are appended to a protobuf message become part of it."""
    key = CHECKSUM.encode()
    entry = b"\x0a" + bytes([len(key)]) + key + b"\x12" + bytes([64]) + digest.encode()
    return b"\x72" + bytes([2 + len(key) + 2 + 64]) + entry


def _sha256(path: str | os.PathLike[str], size: int) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while size > 0 and (block := file.read(min(size, 2**20))):
            digest.update(block)
            size -= len(block)
    return digest.hexdigest()


def _check_graph(path: Path, opset_version: int | None) -> None:
    import onnx

    network = onnx.load(path, load_external_data=False)
    standard = ("", "ai.onnx")
    foreign = {node.domain for node in network.graph.node}.difference(standard)
    if foreign:
        raise ExportError(
            f"the ONNX graph holds operators of {', '.join(sorted(foreign))}; only standard ones can be deployed"
        )
    written = max(entry.version for entry in network.opset_import if entry.domain in standard)
    if opset_version not in (None, written):
        raise ExportError(
            f"opset_version is {opset_version}, but the ONNX exporter would write opset {written}, because "
            f"it cannot convert all operators of this model to {opset_version}; give "
            f"opset_version={written}, or leave it out"
        )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the progress messages of exporters; errors are still raised."""
    loggers = [logging.getLogger(name) for name in ("onnxscript", "torch.onnx")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
