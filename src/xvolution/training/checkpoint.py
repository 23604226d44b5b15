"""Checkpoints and weights: written whole or not at all, read without running anything that is in them."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from xvolution.training.errors import InputError
from xvolution.training.files import atomic_path
from xvolution.training.metadata import HEADER, Metadata
from xvolution.training.onnx_file import OnnxNetwork

# What torch.load(weights_only=True) says of a pickle that is well-formed and holds more than tensors and plain values.
_SIGNS_OF_CODE = ("Unsupported global", "Unsupported class", "Trying to call reduce", "Can only")


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning's checkpoint files, written beside their place and renamed into it."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any | None = None
    ) -> None:
        with atomic_path(path) as temporary:
            torch.save(checkpoint, temporary)


def read_checkpoint(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a Lightning checkpoint of this library, tensors on the CPU.

    Raises:
        InputError: there is no such file, it is no checkpoint of this library, or it holds code.
    """
    path = Path(path)
    _require_file(path)
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # zip, pickle, storage and memory errors of a file that may be anything
        if any(sign in str(error) for sign in _SIGNS_OF_CODE) or _is_bare_pickle(path):
            raise InputError(
                f"{path} was refused: it holds pickled objects other than tensors and plain values, which could run "
                "code when they are read. Checkpoints of this library hold none."
            ) from error
        raise InputError(f"{path} is no checkpoint, or it is damaged.") from error
    if not isinstance(checkpoint, dict) or HEADER not in checkpoint or "state_dict" not in checkpoint:
        raise InputError(f"{path} is no checkpoint of this library: it does not say which network it belongs to.")
    return checkpoint


def save_weights(path: str | os.PathLike[str], model: nn.Module, metadata: Metadata) -> None:
    """Write a network's weights and its metadata as safetensors.

    Raises:
        RunError: the disk is full.
    """
    # Tied parameters share storage, which safetensors refuses; each name gets a copy of its own.
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in model.state_dict().items()}
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata={"format": "pt", HEADER: metadata.to_json()})


def read_weights(path: str | os.PathLike[str]) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Read what `save_weights` wrote, or the network in a Lightning checkpoint (the moving average where there is one).

    Returns:
        The tensors, and `to_dict` of the metadata.

    Raises:
        InputError: there is no such file, or it is neither.
    """
    tensors, header = read_tensors(path)
    if header is None:
        raise InputError(f"{path} does not say which network it belongs to; it was not written by this library.")
    return tensors, header


def read_tensors(path: str | os.PathLike[str]) -> tuple[dict[str, torch.Tensor], dict[str, Any] | None]:
    """`read_weights` of a safetensors file by anyone: the metadata is None where the file has none of ours.

    Raises:
        InputError: there is no such file, or it is neither a checkpoint of this library nor a safetensors file.
    """
    path = Path(path)
    _require_file(path)
    if path.suffix != ".safetensors":
        checkpoint = read_checkpoint(path)
        return _judged_weights(checkpoint["state_dict"]), checkpoint[HEADER]
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} is no safetensors file, or it is damaged ({error}).") from error
    return tensors, json.loads(header[HEADER]) if HEADER in header else None


def read_header(path: str | os.PathLike[str]) -> dict[str, Any]:
    """`to_dict` of the metadata of a .ckpt, .safetensors or .onnx file of this library.

    Raises:
        InputError: it is none.
    """
    return OnnxNetwork(path).header if Path(path).suffix == ".onnx" else read_weights(path)[1]


def load_weights(model: nn.Module, weights: Mapping[str, torch.Tensor], name: str) -> None:
    """Load a state dict strictly.

    Raises:
        InputError: a name or a shape differs; the message tells the first of them.
    """
    own = model.state_dict()
    missing, unexpected = sorted(own.keys() - weights.keys()), sorted(weights.keys() - own.keys())
    shapes = [key for key in own.keys() & weights.keys() if own[key].shape != weights[key].shape]
    problems = []
    if missing:
        problems.append(f"{len(missing)} weights are missing ({missing[0]}, ...)")
    if unexpected:
        problems.append(f"{len(unexpected)} belong to nothing in it ({unexpected[0]}, ...)")
    if shapes:
        key = min(shapes)
        problems.append(
            f"{len(shapes)} have another shape ({key}: {tuple(weights[key].shape)}, not {tuple(own[key].shape)})"
        )
    if problems:
        raise InputError(f"the weights of {name} are of another architecture: {'; '.join(problems)}.")
    model.load_state_dict(weights, strict=True)


def _judged_weights(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    prefix = "ema.module." if any(name.startswith("ema.module.") for name in state) else "model."
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}


def _is_bare_pickle(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(1) == pickle.PROTO


def _require_file(path: Path) -> None:
    if not path.is_file():
        raise InputError(f"there is no file {path}.")
