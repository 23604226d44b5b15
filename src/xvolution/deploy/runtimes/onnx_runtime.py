"""ONNX Runtime, on the CPU."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import torch

from xvolution.deploy.runtimes.base import register
from xvolution.deploy.runtimes.onnx_sessions import OnnxSession, SessionRuntime, session_options


@register
class OnnxRuntime(SessionRuntime):
    """``.onnx`` files, run by ONNX Runtime's own CPU kernels."""

    name = "onnxruntime"
    title = "ONNX Runtime"
    takes_int8 = True
    ending = ".onnx"
    computes_in: ClassVar = {dtype: dtype for dtype in (torch.float32, torch.float16, torch.float64)}

    def _load(self, path: Path, threads: int | None, input_shapes: Sequence[Sequence[int]] | None) -> OnnxSession:
        import onnxruntime

        session = onnxruntime.InferenceSession(path, session_options(threads), providers=["CPUExecutionProvider"])
        return OnnxSession(self, path, session)
