"""A classifier in an ONNX file, run by ONNX Runtime as if it were a module; its metadata travels in the file."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import nn

from xvolution.training.checkpoint import HEADER
from xvolution.training.errors import InputError
from xvolution.training.files import atomic_path
from xvolution.training.metadata import Metadata


class OnnxClassifier(nn.Module):
    """(N, 3, H, W) float32 images to (N, num_classes) logits, on the CPU.

    Raises:
        InputError: the file is no ONNX network.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        super().__init__()
        import onnxruntime

        try:
            self.session = onnxruntime.InferenceSession(os.fspath(path), providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime raises a class of its own for each status code
            raise InputError(f"{path} is no ONNX network that ONNX Runtime can run, or it is damaged.") from error
        self.input_name = self.session.get_inputs()[0].name

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        (logits, *_) = self.session.run(None, {self.input_name: images.contiguous().numpy()})
        return torch.from_numpy(logits)


def load_onnx(path: str | os.PathLike[str]) -> tuple[OnnxClassifier, Metadata]:
    """Open an ONNX file that `deploy` wrote.

    Raises:
        InputError: there is no such file, it is no ONNX network, or it does not say how to prepare its images.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"there is no file {path}.")
    model = OnnxClassifier(path)
    properties = model.session.get_modelmeta().custom_metadata_map
    if HEADER not in properties:
        raise InputError(f"{path} does not say how to prepare its images; it was not written by `xvolution deploy`.")
    return model, Metadata.from_json(properties[HEADER])


def write_properties(path: str | os.PathLike[str], metadata: Metadata) -> None:
    """Put the metadata into an ONNX file.

    Raises:
        RunError: the file cannot be written.
    """
    import onnx

    network = onnx.load(os.fspath(path))
    onnx.helper.set_model_props(network, {HEADER: metadata.to_json()})
    with atomic_path(path) as temporary:
        onnx.save(network, os.fspath(temporary))
