"""Runtimes that deployed networks are written for, compared in and timed in: one file each.

To add one: a subclass of ``Runtime`` in a file of its own, decorated with ``register``, and its import here.
"""

from xvolution.deploy.runtimes.base import RUNTIMES, ExportError, LoadedFile, Runtime, register, runtime_for
from xvolution.deploy.runtimes.coreml_runtime import CoreMl
from xvolution.deploy.runtimes.executorch_runtime import ExecuTorch
from xvolution.deploy.runtimes.labels import Labels
from xvolution.deploy.runtimes.litert_runtime import LiteRt
from xvolution.deploy.runtimes.mnn_runtime import Mnn
from xvolution.deploy.runtimes.ncnn_runtime import Ncnn
from xvolution.deploy.runtimes.onnx_files import OnnxReader, detector_runtimes
from xvolution.deploy.runtimes.onnx_runtime import OnnxRuntime
from xvolution.deploy.runtimes.openvino_runtime import OpenVino
from xvolution.deploy.runtimes.tensorrt_runtime import TensorRt
from xvolution.deploy.runtimes.torch_export import TorchExport

__all__ = [
    "RUNTIMES",
    "CoreMl",
    "ExecuTorch",
    "ExportError",
    "Labels",
    "LiteRt",
    "LoadedFile",
    "Mnn",
    "Ncnn",
    "OnnxReader",
    "OnnxRuntime",
    "OpenVino",
    "Runtime",
    "TensorRt",
    "TorchExport",
    "detector_runtimes",
    "register",
    "runtime_for",
]
