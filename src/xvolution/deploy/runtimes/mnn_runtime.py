"""MNN, on the CPU."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from xvolution.deploy.runtimes.base import LoadedFile, register
from xvolution.deploy.runtimes.onnx_files import OnnxReader, OnnxWriter

#: The converter writes to the descriptors of standard output, and it may end the process. MNN's own command reports its use over
#: the network, the function behind it does not.
_CONVERTER = "import sys, _tools; _tools.mnnconvert(sys.argv)"


class MnnModule(LoadedFile):
    """An MNN file; the module's type is the package's, which has no annotations."""

    def __init__(self, runtime: Mnn, path: Path, module: Any) -> None:
        super().__init__(runtime, path)
        self._module = module

    def _run(self, inputs: tuple[Tensor, ...]) -> list[Tensor]:
        import MNN.expr as expr
        import numpy as np

        images = [expr.const(x.detach().cpu().contiguous().numpy(), list(x.shape), expr.NCHW) for x in inputs]
        outputs = self._module.onForward(images)
        if not outputs:
            raise ValueError(f"MNN returns nothing for inputs {', '.join(str(tuple(x.shape)) for x in inputs)}")
        plain = [y if y.data_format == expr.NCHW else expr.convert(y, expr.NCHW) for y in outputs]
        return [torch.from_numpy(np.array(y.read())) for y in plain]


@register
class Mnn(OnnxReader[MnnModule]):
    """``.mnn`` files, made from ONNX files and run in fp32."""

    name = "mnn"
    title = "MNN"
    ending = ".mnn"
    packages = ("MNN",)
    writer_packages = ("onnx", "onnxscript")
    extra = "mnn"
    takes_detectors = False
    computes_in: ClassVar = {torch.float32: torch.float32}

    def version(self) -> str:
        import MNN

        return MNN.version()

    def _write_from(self, write_onnx: OnnxWriter, path: Path) -> None:
        with tempfile.TemporaryDirectory() as folder:
            onnx_path = Path(folder) / "model.onnx"
            write_onnx(onnx_path)
            files = ["--modelFile", str(onnx_path), "--MNNModel", str(path)]
            command = [sys.executable, "-c", _CONVERTER, "-f", "ONNX", *files, "--bizCode", "xvolution"]
            done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
        if not path.is_file():
            said = (done.stdout + done.stderr).strip().splitlines()
            raise ValueError(f"MNN's converter wrote nothing: {(said[-1] if said else 'it said nothing')}")

    def _load(self, path: Path, threads: int | None, input_shapes: Sequence[Sequence[int]] | None) -> MnnModule:
        import MNN.nn

        # Where a processor has fp16 or bf16, MNN may use it by default, and that would be compared and timed instead.
        config: dict[str, str | int] = {"backend": "CPU", "precision": "high"}
        if threads is not None:
            config["numThread"] = threads
        manager = MNN.nn.create_runtime_manager((config,))
        try:
            module = MNN.nn.load_module_from_file(str(path), [], [], runtime_manager=manager)
        except SystemError as error:
            raise ValueError(f"{path.name} is damaged, or it is not an MNN file") from error
        return MnnModule(self, path, module)
