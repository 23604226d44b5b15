"""The interface of a runtime, a program that runs exported networks, and the register of runtimes by name and ending."""

from __future__ import annotations

import io
import logging
import os
import re
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import torch
from torch import Tensor
from torch.export import ExportedProgram

from xvolution.deploy.runtimes.labels import Labels

#: What turns a terminal's text to a colour and back.
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


class ExportError(RuntimeError):
    """The model cannot be exported, or the exported file cannot be run or its outputs differ."""


class LoadedFile(ABC):
    """An exported network, ready to run: it takes its inputs and returns its outputs, both in the order of the graph.

    Attributes:
        runtime: the runtime that runs it.
        path: the file.
        input_shapes: shapes of the inputs, None for a dynamic axis; empty if the runtime does not report them.
        output_names: names of the outputs in the graph's order; empty if the runtime does not report them.
    """

    def __init__(
        self,
        runtime: Runtime[Any],
        path: Path,
        input_shapes: Sequence[Sequence[int | None]] = (),
        output_names: Sequence[str] = (),
    ) -> None:
        self.runtime = runtime
        self.path = path
        self.input_shapes: tuple[tuple[int | None, ...], ...] = tuple(map(tuple, input_shapes))
        self.output_names: tuple[str, ...] = tuple(output_names)

    def __call__(self, *inputs: Tensor) -> list[Tensor]:
        """Run the network.

        Args:
            inputs: tensors of the file's input shapes and dtypes.

        Returns:
            The outputs, on the CPU unless the runtime is torch itself.

        Raises:
            ExportError: the runtime cannot run the file on these inputs.
        """
        with one_sentence(f"{self.runtime.title} cannot run {self.path.name}"):
            return self._run(inputs)

    @abstractmethod
    def _run(self, inputs: tuple[Tensor, ...]) -> list[Tensor]: ...


FileT_co = TypeVar("FileT_co", bound=LoadedFile, covariant=True)


class Runtime(ABC, Generic[FileT_co]):
    """Writes networks for one runtime and runs them there, in the precision of the network: fp32 stays fp32.

    Subclasses import their packages inside their methods, so that xvolution itself needs torch alone.

    Attributes:
        name: its name for callers.
        title: its official spelling, for messages.
        ending: ending of its files, with the dot.
        packages: import names of the packages that run its files.
        writer_packages: further packages that write them.
        extra: extra of xvolution that installs them.
        folders: whether its files are folders, which users handle as one file.
        checked_unrun: whether files are also written on machines that cannot run them, and checked by being read back.
        takes_opset: whether its files are written through ONNX, so that an ONNX opset can be chosen.
        batched: whether a call takes a batch; otherwise files are written for one image and get one image at a time.
        computes_in: dtype of a network -> dtype in which the runtime computes it; other dtypes are refused.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    ending: ClassVar[str]
    packages: ClassVar[tuple[str, ...]]
    writer_packages: ClassVar[tuple[str, ...]] = ()
    extra: ClassVar[str] = "export"
    folders: ClassVar[bool] = False
    takes_opset: ClassVar[bool] = False
    checked_unrun: ClassVar[bool] = False
    batched: ClassVar[bool] = True
    computes_in: ClassVar[Mapping[torch.dtype, torch.dtype]]

    def write(
        self,
        program: ExportedProgram,
        path: str | os.PathLike[str],
        opset_version: int | None = None,
        labels: Labels | None = None,
    ) -> None:
        """Write a program captured by ``torch.export``.

        Args:
            program: the captured network.
            path: the file, in a folder that exists; a runtime may put more files beside it, with the same stem or name.
            opset_version: ONNX opset, for runtimes that use ONNX; the exporter's own if None.
            labels: see `label`.

        Raises:
            ExportError: a missing package, or a network that the runtime's exporter cannot write.
            OSError: the file cannot be written.
        """
        self.require_writer()
        with one_sentence(f"the exporter to {self.ending} cannot write {Path(path).name}"):
            if opset_version is not None and not self.takes_opset:
                raise ValueError(
                    f"opset_version is {opset_version}, but only ONNX files have one; leave it out for a {self.ending} file"
                )
            self._write(program, Path(path), opset_version)
        if labels is not None:
            self.label(path, labels)

    def label(self, path: str | os.PathLike[str], labels: Labels) -> None:
        """Put names and properties into a written file; they replace earlier properties.

        Names or properties that a runtime's files cannot store are left out.

        Raises:
            ExportError: a missing package, a file that the runtime cannot read, or names that do not fit its graph.
            OSError: the file cannot be read or written.
        """
        self.require_writer()
        with one_sentence(f"{self.title} cannot put names and properties into {Path(path).name}"):
            self._label(Path(path), labels)

    def properties(self, path: str | os.PathLike[str]) -> dict[str, str]:
        """The properties that `label` put into a file; empty if there are none.

        Raises:
            FileNotFoundError: there is no such file.
            ExportError: a missing package, or a file that the runtime does not take.
        """
        self._require_file(path)
        with one_sentence(f"{self.title} cannot open {Path(path).name}"):
            return self._properties(Path(path))

    def is_intact(self, path: str | os.PathLike[str]) -> bool | None:
        """Whether a file matches the checksum stored in it; None if it has none.

        Raises:
            OSError: the file cannot be read.
        """
        return None

    def load(
        self,
        path: str | os.PathLike[str],
        *,
        threads: int | None = None,
        input_shapes: Sequence[Sequence[int]] | None = None,
    ) -> FileT_co:
        """Open a file and prepare it to run.

        Args:
            path: a file of this runtime.
            threads: number of CPU threads that one call may use; the runtime's default if None.
            input_shapes: the only shapes that it will be called with, one for each input. A runtime that compiles for fixed
                shapes uses them; others accept any shape.

        Raises:
            ValueError: ``threads`` is below 1.
            FileNotFoundError: there is no such file.
            ExportError: a missing package, a machine that cannot run it, or a file that the runtime does not take.
        """
        if threads is not None and threads < 1:
            raise ValueError(f"threads is {threads}; give at least 1, or None for the runtime's default")
        self._require_file(path)
        self._require_runnable()
        with one_sentence(f"{self.title} cannot open {Path(path).name}"):
            return self._load(Path(path), threads, input_shapes)

    def unrunnable(self) -> str:
        """Why this machine cannot run its files, where their packages are installed; empty where it can."""
        return ""

    def check(self, path: str | os.PathLike[str], program: ExportedProgram) -> None:
        """Read back a file that this machine cannot run, and compare its parts with those of the network.

        Raises:
            ExportError: something is missing or too much, or the runtime cannot be checked in this way.
        """
        if not self.checked_unrun:
            self._require_runnable()
        with one_sentence(f"{Path(path).name} is not the network that was captured"):
            self._check(Path(path), program)

    def files_of(self, path: Path) -> tuple[Path, ...]:
        """A file of this runtime, and possible weight files beside it."""
        return (path,)

    def require_writer(self) -> None:
        """Raise ``ExportError`` with what is missing unless files can be written here, and run or read back to check them."""
        self._require("exporting to", (*self.writer_packages, *self.packages))
        if not self.checked_unrun:
            self._require_runnable()

    def _require_runnable(self) -> None:
        reason = self.unrunnable()
        if reason:
            raise ExportError(f"{self.title} cannot run here: {reason}")

    def _require_file(self, path: str | os.PathLike[str]) -> None:
        if not (Path(path).is_file() or (self.folders and Path(path).is_dir())):
            raise FileNotFoundError(f"there is no file {path}")
        self._require("opening", self.packages)

    def is_installed(self) -> bool:
        """Whether the packages that write and run its files are here."""
        return not _missing((*self.writer_packages, *self.packages))

    def _require(self, what: str, packages: tuple[str, ...]) -> None:
        missing = _missing(packages)
        if missing:
            raise ExportError(f"{what} {self.ending} needs {', '.join(missing)}; install xvolution[{self.extra}]")

    @abstractmethod
    def version(self) -> str:
        """Version of the runtime that is installed."""

    @abstractmethod
    def _write(self, program: ExportedProgram, path: Path, opset_version: int | None) -> None: ...

    @abstractmethod
    def _load(self, path: Path, threads: int | None, input_shapes: Sequence[Sequence[int]] | None) -> FileT_co: ...

    def _check(self, path: Path, program: ExportedProgram) -> None:
        """See `check`; here nothing can be read back."""

    def _label(self, path: Path, labels: Labels) -> None:
        """See `label`; these files can store neither names nor properties."""

    def _properties(self, path: Path) -> dict[str, str]:
        return {}


#: The runtimes by name, in the order in which they were registered.
RUNTIMES: dict[str, Runtime[LoadedFile]] = {}

RuntimeClass = TypeVar("RuntimeClass", bound=type[Runtime[Any]])


def register(runtime_class: RuntimeClass) -> RuntimeClass:
    """Add a runtime to ``RUNTIMES``; a decorator of its class.

    Raises:
        ValueError: another runtime has its name or its ending.
    """
    runtime = runtime_class()
    for other in RUNTIMES.values():
        if runtime.name == other.name or runtime.ending == other.ending:
            raise ValueError(
                f"runtime {runtime.name!r} for {runtime.ending} collides with {other.name!r} for {other.ending}; "
                "names and endings must differ"
            )
    RUNTIMES[runtime.name] = runtime
    return runtime_class


def find_runtime(path: str | os.PathLike[str]) -> Runtime[LoadedFile] | None:
    """The runtime that the ending of a file's name stands for, the longest where several fit; None where none does."""
    name = Path(path).name
    fitting = [runtime for runtime in RUNTIMES.values() if name.endswith(runtime.ending)]
    return max(fitting, key=lambda runtime: len(runtime.ending), default=None)


def runtime_for(path: str | os.PathLike[str]) -> Runtime[LoadedFile]:
    """`find_runtime`, with a sentence where there is none.

    Raises:
        ValueError: no runtime has such an ending.
    """
    name = Path(path).name
    runtime = find_runtime(path)
    if runtime is not None:
        return runtime
    endings = sorted(runtime.ending for runtime in RUNTIMES.values())
    raise ValueError(f"cannot export to {name!r}; the name must end in {', '.join(endings)}")


def _missing(packages: Sequence[str]) -> list[str]:
    return [package for package in packages if find_spec(package) is None]


@contextmanager
def one_sentence(failed: str) -> Iterator[None]:
    """Turn any error of an exporter or a runtime into an ``ExportError`` that starts with the failed step.

    Exporters and runtimes raise errors of many kinds, some in classes of their own. An OSError about
    files is not changed.
    """
    try:
        yield
    except (ExportError, OSError):
        raise
    except Exception as error:
        raise ExportError(f"{failed}: {first_line(error)}") from error


def first_line(error: BaseException) -> str:
    """The first line of an error's message, and in brackets that of the error which it was raised from, the first of them.

    Colours, and a sentence that leads to further lines, are left out. An error without a message is its class.
    """
    root = error
    while root.__cause__ is not None:
        root = root.__cause__
    said, cause = _first_line(error), _first_line(root)
    return said if cause in said else f"{said} ({cause})"


def _first_line(error: BaseException) -> str:
    lines = _COLOUR.sub("", str(error)).strip().splitlines()
    line = lines[0].strip() if lines else type(error).__name__
    return line[: line.rfind(". ") + 1] if line.endswith(":") and ". " in line else line


@contextmanager
def quiet() -> Iterator[None]:
    """Silence the warnings, prints and log lines of a converter; errors are still raised."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
