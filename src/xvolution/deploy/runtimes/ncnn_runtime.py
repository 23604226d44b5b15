"""ncnn, on the CPU; pnnx writes its files."""

from __future__ import annotations

import subprocess
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor
from torch.export import ExportedProgram

from xvolution.deploy.runtimes.base import LoadedFile, Runtime, register

if TYPE_CHECKING:
    from ncnn import Net

#: What an input layer calls its sizes, by the number of axes of one image: of (C,), (C, L), (C, H, W) and (C, D, H, W).
_SIZES = {1: ("0",), 2: ("1", "0"), 3: ("2", "1", "0"), 4: ("2", "11", "1", "0")}


class NcnnNet(LoadedFile):
    """An ncnn network, which takes one image: a batch is run image by image.

    Attributes:
        input_shapes: shapes of the inputs, None for a dynamic axis; the batch is dynamic.
        output_names: names of the outputs, in the graph's order.
    """

    def __init__(self, runtime: Ncnn, path: Path, net: Net, param: str) -> None:
        self._net, self._images = net, _input_shapes(param)
        made = sorted(name for name in net.output_names() if name.startswith("out"))
        shapes = [(None, *shape) for shape in self._images.values()]
        super().__init__(runtime, path, shapes, sorted(made, key=lambda name: (len(name), name)))

    def _run(self, inputs: tuple[Tensor, ...]) -> list[Tensor]:
        for x, (name, shape) in zip(inputs, self._images.items(), strict=True):
            _require_shape(name, shape, x)
        images = [self._image(arrays) for arrays in zip(*inputs, strict=True)]
        return [torch.stack(outputs) for outputs in zip(*images, strict=True)]

    def _image(self, image: tuple[Tensor, ...]) -> list[Tensor]:
        """The outputs for one image."""
        import ncnn
        import numpy as np

        extractor = self._net.create_extractor()
        arrays = [x.detach().cpu().contiguous().numpy() for x in image]  # which ncnn reads without a copy
        for name, array in zip(self._images, arrays, strict=True):
            extractor.input(name, ncnn.Mat(array))
        outputs = []
        for name in self.output_names:
            failed, output = extractor.extract(name)
            if failed:
                raise ValueError(f"ncnn returns error {failed} for the output {name} of {self.path.name}")
            outputs.append(torch.from_numpy(np.array(output)))
        return outputs


@register
class Ncnn(Runtime[NcnnNet]):
    """``.ncnn.param`` files with their weights in a ``.ncnn.bin`` beside them, written by pnnx and run in fp32."""

    name = "ncnn"
    title = "ncnn"
    ending = ".ncnn.param"
    packages = ("ncnn",)
    writer_packages = ("pnnx",)
    extra = "ncnn"
    batched = False
    computes_in: ClassVar = {torch.float32: torch.float32}

    def version(self) -> str:
        import ncnn

        return ncnn.__version__

    def files_of(self, path: Path) -> tuple[Path, ...]:
        return (path, _weights(path))

    def _write(self, program: ExportedProgram, path: Path, opset_version: int | None) -> None:
        shapes = _shapes_in(program)
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            images = _trace(program, folder / "model.pt")
            _convert(folder, path, [tuple(x.shape) for x in images], shapes)
        path.write_text(
            _with_sizes(path.read_text(encoding="utf-8"), [shape[1:] for shape in shapes]), encoding="utf-8"
        )

    def _load(self, path: Path, threads: int | None, input_shapes: Sequence[Sequence[int]] | None) -> NcnnNet:
        import ncnn

        net = ncnn.Net()
        # On ARM and on a GPU ncnn computes in fp16 by default, which would be compared and timed instead of the graph.
        net.opt.use_vulkan_compute = False
        net.opt.use_fp16_packed = net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = False
        if threads is not None:
            net.opt.num_threads = threads
        weights = _weights(path)
        if not weights.is_file():
            raise ValueError(f"the weights are missing: there is no file {weights}")
        if net.load_param(str(path)) or net.load_model(str(weights)):
            raise ValueError(f"{path.name} is damaged, or it holds a layer that ncnn {self.version()} does not have")
        return NcnnNet(self, path, net, path.read_text(encoding="utf-8"))


def _weights(path: Path) -> Path:
    """The file with the weights beside a graph's file."""
    return path.with_name(path.name.removesuffix(".param") + ".bin")


def _shapes_in(program: ExportedProgram) -> list[tuple[int | None, ...]]:
    """The shapes of a program's inputs; None for an open axis.

    Raises:
        ValueError: the program takes a batch of several images.
    """
    nodes = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    values = [nodes[name].meta["val"] for name in program.graph_signature.user_inputs if isinstance(name, str)]
    shapes = [tuple(size if isinstance(size, int) else None for size in value.shape) for value in values]
    for shape in shapes:
        if len(shape) - 1 not in _SIZES or shape[0] not in (1, None):
            raise ValueError(
                f"ncnn runs one image at a time, but the network was captured for inputs {shape}; give a "
                "batch of 1, or a dynamic batch"
            )
    return shapes


def _trace(program: ExportedProgram, path: Path) -> tuple[Tensor, ...]:
    """Write TorchScript, which pnnx reads; returns the traced images, one for each input."""
    arguments, _ = program.example_inputs
    images = tuple(x[:1] for x in arguments)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.trace(program.module(), images, check_trace=False).save(str(path))
    return images


def _convert(folder: Path, path: Path, traced: list[tuple[int, ...]], shapes: list[tuple[int | None, ...]]) -> None:
    """Call pnnx, which also writes further files into the folder."""
    import pnnx

    larger = [
        (1, *(size + 32 if there is None else size for size, there in zip(shape[1:], open_shape[1:], strict=True)))
        for shape, open_shape in zip(traced, shapes, strict=True)
    ]
    others = {"pnnxparam": "a", "pnnxbin": "b", "pnnxpy": "c.py", "pnnxonnx": "d.onnx", "ncnnpy": "e.py"}
    command = [
        pnnx.EXEC_PATH,
        str(folder / "model.pt"),
        f"inputshape={_spelled(traced)}",
        *([f"inputshape2={_spelled(larger)}"] if larger != traced else []),
        f"ncnnparam={path}",
        f"ncnnbin={_weights(path)}",
        *(f"{option}={folder / name}" for option, name in others.items()),
        "fp16=0",
    ]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode or not path.is_file():
        said = (done.stderr.strip() or done.stdout.strip()).splitlines()
        raise ValueError(f"pnnx ended with {done.returncode}: {said[-1] if said else 'it said nothing'}")


def _spelled(shapes: Sequence[tuple[int, ...]]) -> str:
    return ",".join(f"[{','.join(map(str, shape))}]f32" for shape in shapes)


def _with_sizes(param: str, shapes: Sequence[tuple[int | None, ...]]) -> str:
    """The graph with the sizes of its inputs: ncnn itself would read beyond the end of an image with fewer channels."""
    sizes = {f"in{position}": shape for position, shape in enumerate(shapes)}
    lines = []
    for line in param.splitlines():
        words = line.split()
        if words[0] == "Input":
            shape = sizes[words[1]]
            line += "".join(f" {key}={size or 0}" for key, size in zip(_SIZES[len(shape)], shape, strict=True))
        lines.append(line)
    return "\n".join(lines) + "\n"


def _input_shapes(param: str) -> dict[str, tuple[int | None, ...]]:
    """The shape of one image for each input; () if the graph does not have it."""
    shapes: dict[str, tuple[int | None, ...]] = {}
    for words in map(str.split, param.splitlines()):
        if words and words[0] == "Input":
            sizes = {key: int(size) for key, size in (word.split("=") for word in words[5:])}
            keys = next((keys for keys in _SIZES.values() if set(keys) == set(sizes)), ())
            shapes[words[1]] = tuple(sizes[key] or None for key in keys)
    return shapes


def _require_shape(name: str, shape: tuple[int | None, ...], x: Tensor) -> None:
    given = tuple(x.shape[1:])
    fits = len(given) == len(shape) and all(size in (None, there) for size, there in zip(shape, given, strict=True))
    if shape and not fits:
        allowed = ", ".join("any" if size is None else str(size) for size in shape)
        raise ValueError(f"input {name} takes images ({allowed}), but got {given}")
