"""TensorRT, on an NVIDIA GPU, as the provider of ONNX Runtime."""

from __future__ import annotations

import base64
import functools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch

from xvolution.deploy.runtimes.base import first_line, register
from xvolution.deploy.runtimes.onnx_sessions import OnnxSession, SessionRuntime, session_options

PROVIDER = "TensorrtExecutionProvider"
#: An ONNX file that says y = relu(x) for x of one number.
_TRIAL = base64.b64decode("CAg6MwoMCgF4EgF5IgRSZWx1EgFnWg8KAXgSCgoICAESBAoCCAFiDwoBeRIKCggIARIECgIIAUIECgAQEQ==")


@register
class TensorRt(SessionRuntime):
    """``.tensorrt.onnx`` files: ONNX files whose layouts were timed in TensorRT, run by it in fp32 and by nothing else.

    A file that TensorRT does not take as a whole is refused: the rest would run in ONNX Runtime's kernels, and be compared and
    timed with it. TF32 is off for the process, unless ``NVIDIA_TF32_OVERRIDE`` is set.
    """

    name = "tensorrt"
    title = "TensorRT"
    ending = ".tensorrt.onnx"
    takes_detectors = False
    computes_in: ClassVar = {torch.float32: torch.float32}

    def unrunnable(self) -> str:
        import onnxruntime

        there = onnxruntime.get_available_providers()
        if PROVIDER not in there:
            return (
                f"this ONNX Runtime has {', '.join(there)} and no {PROVIDER}; on a machine with an NVIDIA GPU, install "
                "onnxruntime-gpu in the place of onnxruntime, and TensorRT"
            )
        return _failure(onnxruntime.InferenceSession)

    def _load(self, path: Path, threads: int | None, input_shapes: Sequence[Sequence[int]] | None) -> OnnxSession:
        return OnnxSession(self, path, _session(path, threads))


@functools.cache
def _failure(session: type) -> str:
    """Why sessions of this class do not start in TensorRT; cached, since each attempt builds an engine."""
    try:
        _session(_TRIAL, None)
    except Exception as error:
        return f"{PROVIDER} does not start: {first_line(error)}"
    return ""


def _session(model: Path | bytes, threads: int | None) -> Any:
    """A session in TensorRT alone.

    Raises:
        ValueError: ONNX Runtime has given the file to something else.
    """
    import onnxruntime

    # TensorRT has no option for it here; CUDA's libraries read it once, when the first of them needs it.
    os.environ.setdefault("NVIDIA_TF32_OVERRIDE", "0")
    options = session_options(threads)
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    session = onnxruntime.InferenceSession(model, options, providers=[PROVIDER])
    session.disable_fallback()
    used = session.get_providers()
    if PROVIDER not in used:
        raise ValueError(
            f"ONNX Runtime took {', '.join(used)} in its place; it needs an NVIDIA GPU with its driver, CUDA and TensorRT"
        )
    return session
