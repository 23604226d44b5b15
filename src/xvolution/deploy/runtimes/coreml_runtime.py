"""CoreML: packages are written anywhere, read back and checked, and run on macOS alone."""

from __future__ import annotations

import contextlib
import io
import platform
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.export import ExportedProgram

from xvolution.deploy.runtimes.base import LoadedFile, Runtime, quiet, register
from xvolution.deploy.runtimes.labels import Labels

#: Operators of a captured program that are a convolution, and of CoreML's.
_CONVOLUTIONS = {f"conv{n}d" for n in (1, 2, 3)} | {"convolution"}
_TRANSPOSED = {f"conv_transpose{n}d" for n in (1, 2, 3)}


class CoreMlModel(LoadedFile):
    """A CoreML package, loaded on macOS; the model's type is the package's, which has no annotations."""

    def __init__(self, runtime: CoreMl, path: Path, model: Any) -> None:
        description = model.get_spec().description
        self._names = [feature.name for feature in description.input]
        shapes = [_shape(feature) for feature in description.input]
        super().__init__(runtime, path, shapes, [feature.name for feature in description.output])
        self._model = model

    def _run(self, inputs: tuple[Tensor, ...]) -> list[Tensor]:
        arrays = [x.detach().cpu().contiguous().numpy() for x in inputs]
        outputs = self._model.predict(dict(zip(self._names, arrays, strict=True)))
        return [torch.from_numpy(outputs[name]) for name in self.output_names]


@register
class CoreMl(Runtime[CoreMlModel]):
    """``.mlpackage`` folders of a fixed size, written by coremltools as ML programs in fp32.

    Elsewhere than on macOS they are written and read back: inputs, outputs and the number of convolutions must be those of the
    network. The threads of the CPU are CoreML's own choice.
    """

    name = "coreml"
    title = "CoreML"
    ending = ".mlpackage"
    packages = ("coremltools",)
    extra = "coreml"
    folders = True
    checked_unrun = True
    computes_in: ClassVar = {torch.float32: torch.float32}

    def version(self) -> str:
        from importlib.metadata import version

        return version("coremltools")

    def unrunnable(self) -> str:
        system = platform.system()
        return "" if system == "Darwin" else f"its packages run on macOS alone, and this is {system}"

    def files_of(self, path: Path) -> tuple[Path, ...]:
        return tuple(sorted(file for file in path.rglob("*") if file.is_file()))

    def _write(self, program: ExportedProgram, path: Path, opset_version: int | None) -> None:
        if program.range_constraints:
            # torch.export bounds an open batch to 2 and more, and CoreML would refuse a single image.
            raise ValueError("its open axes could not be tried without macOS")
        with _quiet():
            import coremltools

            converted = coremltools.convert(
                program.run_decompositions({}),
                convert_to="mlprogram",
                compute_precision=coremltools.precision.FLOAT32,
                skip_model_load=True,
            )
            converted.save(str(path))

    def _label(self, path: Path, labels: Labels) -> None:
        with _quiet():
            from coremltools.models.utils import load_spec, rename_feature

            spec = load_spec(str(path))
            inputs, outputs = spec.description.input, spec.description.output
            labels.require_fitting(len(inputs), len(outputs))
            for features, names in ((inputs, labels.input_names), (outputs, labels.output_names)):
                for feature, name in zip(list(features), names, strict=False):
                    rename_feature(spec, feature.name, name)
            stored = spec.description.metadata.userDefined
            for key in [key for key in stored if not key.startswith(_OWN)]:
                del stored[key]
            stored.update(labels.properties)
            _graph(path).write_bytes(spec.SerializeToString())

    def _properties(self, path: Path) -> dict[str, str]:
        stored = _specification(path).description.metadata.userDefined
        return {key: value for key, value in stored.items() if not key.startswith(_OWN)}

    def _check(self, path: Path, program: ExportedProgram) -> None:
        spec = _specification(path)
        _require_same("inputs", list(map(_shape, spec.description.input)), _input_shapes(program))
        _require_same("outputs", len(spec.description.output), len(program.graph_signature.user_outputs))
        operations = [operation.type for operation in _operations(spec)]
        called = [
            node.target._schema.name.rpartition("::")[2]
            for node in program.graph.nodes
            if isinstance(node.target, torch._ops.OpOverload)
        ]
        _require_same("convolutions", _count(operations, {"conv"}), _count(called, _CONVOLUTIONS))
        _require_same("transposed convolutions", _count(operations, {"conv_transpose"}), _count(called, _TRANSPOSED))

    def _load(self, path: Path, threads: int | None, input_shapes: Sequence[Sequence[int]] | None) -> CoreMlModel:
        import coremltools

        # The GPU and the neural engine compute in fp16, which would be compared and timed instead of the graph.
        model = coremltools.models.MLModel(str(path), compute_units=coremltools.ComputeUnit.CPU_ONLY)
        return CoreMlModel(self, path, model)


#: How the properties begin that coremltools stores by itself.
_OWN = "com.github.apple."


def _graph(path: Path) -> Path:
    """The file of a package that holds its graph."""
    from coremltools.libmodelpackage import ModelPackage

    return Path(ModelPackage(str(path)).getRootModel().path())


def _specification(path: Path) -> Any:
    with _quiet():
        from coremltools.models.utils import load_spec

        return load_spec(str(path))


def _operations(spec: Any) -> Iterator[Any]:
    """Every operation of an ML program."""
    for function in spec.mlProgram.functions.values():
        for block in function.block_specializations.values():
            yield from block.operations


def _shape(feature: Any) -> list[int]:
    return list(feature.type.multiArrayType.shape)


def _input_shapes(program: ExportedProgram) -> list[list[int]]:
    values = {node.name: node.meta["val"] for node in program.graph.nodes if isinstance(node.meta.get("val"), Tensor)}
    taken = [values[name] for name in program.graph_signature.user_inputs if isinstance(name, str)]
    return [list(value.shape) for value in taken]


def _count(names: Iterable[str], wanted: set[str]) -> int:
    return sum(name in wanted for name in names)


def _require_same(what: str, found: object, wanted: object) -> None:
    if found != wanted:
        raise ValueError(f"its {what} are {found}, and those of the network {wanted}")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """`quiet`, for a converter that draws bars on standard error."""
    with quiet(), contextlib.redirect_stderr(io.StringIO()):
        yield
