"""Networks in ONNX files, run by ONNX Runtime as if they were modules; their metadata travel in the file."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from xvolution.training.checkpoint import HEADER
from xvolution.training.errors import InputError
from xvolution.training.files import atomic_path
from xvolution.training.metadata import AnyMetadata, DetectorMetadata, Metadata, metadata_from_dict


class OnnxClassifier(nn.Module):
    """(N, 3, H, W) float32 images to (N, num_classes) logits, on the CPU; a file of a fixed batch takes them part by part.

    Raises:
        InputError: the file is no ONNX network.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        super().__init__()
        self.session = _session(path)
        self.input = self.session.get_inputs()[0]

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        batch = self.input.shape[0]
        size = batch if isinstance(batch, int) else max(len(images), 1)
        filled = torch.cat([images, images[-1:].expand(-len(images) % size, *images.shape[1:])])
        return torch.cat([self._logits(part) for part in filled.split(size)])[: len(images)]

    def _logits(self, images: torch.Tensor) -> torch.Tensor:
        (logits, *_) = self.session.run(None, {self.input.name: images.contiguous().numpy()})
        return torch.from_numpy(logits)


class OnnxDetector(nn.Module):
    """Images, each (3, H, W) float32 in [0, 1], to detections as torchvision's detectors give them, on the CPU.

    Raises:
        InputError: the file is no ONNX network.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        super().__init__()
        self.session = _session(path)
        self.output_names = [output.name for output in self.session.get_outputs()]

    def forward(self, images: Sequence[torch.Tensor]) -> list[dict[str, torch.Tensor]]:
        return [self._find(image) for image in images]

    def _find(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        outputs = self.session.run(self.output_names, {"image": image.contiguous().numpy()})
        return {name: torch.from_numpy(output) for name, output in zip(self.output_names, outputs, strict=True)}


def _session(path: str | os.PathLike[str]) -> Any:
    import onnxruntime

    if not Path(path).is_file():
        raise InputError(f"there is no file {path}.")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(os.fspath(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime raises a class of its own for each status code
        raise InputError(f"{path} is no ONNX network that ONNX Runtime can run, or it is damaged.") from error


def load_onnx(path: str | os.PathLike[str]) -> tuple[OnnxClassifier, Metadata]:
    """Open the ONNX file of a classifier that `deploy` wrote.

    Raises:
        InputError: there is no such file, it is no ONNX network, or it does not say how to prepare its images.
    """
    model = OnnxClassifier(path)
    return model, Metadata.from_dict(_header(model.session, path))


def load_onnx_detector(path: str | os.PathLike[str]) -> tuple[OnnxDetector, DetectorMetadata]:
    """Open the ONNX file of a detector that `deploy` wrote.

    Raises:
        InputError: there is no such file, it is no ONNX network, it does not say which, or it holds a feature pyramid alone.
    """
    model = OnnxDetector(path)
    metadata = DetectorMetadata.from_dict(_header(model.session, path))
    if model.session.get_modelmeta().custom_metadata_map.get("content") == "pyramid":
        raise InputError(
            f"{path} holds a detector's backbone and pyramid alone, which find nothing; give its checkpoint."
        )
    return model, metadata


def read_onnx_metadata(path: str | os.PathLike[str]) -> AnyMetadata:
    """What an ONNX file that `deploy` wrote says about its network.

    Raises:
        InputError: there is no such file, it is no ONNX network, or it does not say which network it is.
    """
    return metadata_from_dict(_header(_session(path), path))


def _header(session: Any, path: str | os.PathLike[str]) -> dict[str, Any]:
    properties = session.get_modelmeta().custom_metadata_map
    if HEADER not in properties:
        raise InputError(f"{path} does not say how to prepare its images; it was not written by `xvolution deploy`.")
    return json.loads(properties[HEADER])


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
