"""Checkpoints and weights: written completely or not at all, and read without running code in them."""

from __future__ import annotations

import hashlib
import os
import pickle
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from xvolution.attention.deployed import upgraded_weights
from xvolution.deploy.runtimes.onnx_files import CHECKSUM
from xvolution.training.errors import InputError
from xvolution.training.exported_file import read_exported_header, runtime_that_runs
from xvolution.training.files import atomic_path
from xvolution.training.metadata import HEADER, SKIP_CHECKSUM, Metadata, read_description

# What torch.load(weights_only=True) says of a pickle that is well-formed and holds more than tensors and plain values.
_SIGNS_OF_CODE = ("Unsupported global", "Unsupported class", "Trying to call reduce", "Can only")

#: Where checkpoints of timm, torchvision's references and others have their weights; some hold those of a parallel module.
_STATE_DICTS = ("state_dict", "model_state", "model")


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning's checkpoint files, written beside their place and renamed into it."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any | None = None
    ) -> None:
        with atomic_path(path) as temporary:
            torch.save(checkpoint, temporary)


def read_checkpoint(path: str | os.PathLike[str], checksum: bool = True) -> dict[str, Any]:
    """Read a Lightning checkpoint of this library, tensors on the CPU.

    Args:
        path: the file.
        checksum: check its parts against the checksums in the archive.

    Raises:
        InputError: there is no such file, it is not a checkpoint of this library, it is damaged, or it holds code.
    """
    return _own(_unpickled(Path(path), checksum), path)


def _own(checkpoint: Any, path: str | os.PathLike[str]) -> dict[str, Any]:
    """The content of a checkpoint, if this library wrote it."""
    if not isinstance(checkpoint, dict) or HEADER not in checkpoint or "state_dict" not in checkpoint:
        raise InputError(f"{path} is not a checkpoint of this library: it does not name its network.")
    if not _is_state_dict(checkpoint["state_dict"]):
        raise InputError(f"{path} is not a checkpoint of this library: its weights are not tensors.")
    return checkpoint


def _unpickled(path: Path, checksum: bool) -> Any:
    """What `torch.save` wrote, if it is tensors and plain values.

    Raises:
        InputError: there is no such file, it is damaged, or it holds code.
    """
    _require_file(path)
    try:
        if checksum and zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                if archive.testzip() is not None:
                    raise InputError(f"{path} is damaged: its checksum does not match its contents. {SKIP_CHECKSUM}")
        return torch.load(path, map_location="cpu", weights_only=True)
    except InputError:
        raise
    except Exception as error:  # zip, pickle, storage and memory errors of a file that may be anything
        if any(sign in str(error) for sign in _SIGNS_OF_CODE) or _is_bare_pickle(path):
            raise InputError(
                f"{path} was refused: it holds pickled objects other than tensors and plain values, which "
                "could run code when they are read. Give a state dict, or a checkpoint that this library wrote."
            ) from error
        raise InputError(f"{path} is not a checkpoint, or it is damaged.") from error


def _is_state_dict(content: object) -> bool:
    return isinstance(content, dict) and all(isinstance(value, torch.Tensor) for value in content.values())


def _state_dict_in(content: Any, path: Path) -> dict[str, torch.Tensor]:
    """The weights in a file of another library: a state dict, or a checkpoint that has one under a name that is in use."""
    held = [content[key] for key in _STATE_DICTS if key in content] if isinstance(content, dict) else []
    for state in [*held, content]:
        if state and _is_state_dict(state):
            return {str(name).removeprefix("module."): tensor for name, tensor in state.items()}
    raise InputError(
        f"{path} holds no weights; give a state dict, a .safetensors file or a checkpoint that this library wrote."
    )


def save_weights(path: str | os.PathLike[str], model: nn.Module, metadata: Metadata) -> None:
    """Write a network's weights and its metadata as safetensors.

    Raises:
        RunError: the disk is full.
    """
    # Tied parameters share storage, which safetensors refuses; each name gets a copy of its own.
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in model.state_dict().items()}
    described = metadata.to_json()
    with atomic_path(path) as temporary:
        header = {"format": "pt", HEADER: described, CHECKSUM: digest_of(tensors, described)}
        save_file(tensors, temporary, metadata=header)


def digest_of(tensors: Mapping[str, torch.Tensor], described: str) -> str:
    """SHA-256, in hexadecimal digits, of tensors on the CPU, with their names, types and shapes, and of their description."""
    digest = hashlib.sha256(described.encode())
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def read_weights(path: str | os.PathLike[str], checksum: bool = True) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Read a file of `save_weights`, or the network in a Lightning checkpoint (the moving average if there is one).

    Args:
        path: the file.
        checksum: check the tensors against the checksum stored in the file, if it has one.

    Returns:
        The tensors, and `to_dict` of the metadata.

    Raises:
        InputError: there is no such file, it is neither, it is damaged, or it holds invalid weights.
    """
    tensors, header = read_tensors(path, checksum)
    if header is None:
        raise InputError(f"{path} does not say which network it belongs to; it was not written by this library.")
    return tensors, header


def read_tensors(
    path: str | os.PathLike[str], checksum: bool = True
) -> tuple[dict[str, torch.Tensor], dict[str, Any] | None]:
    """`read_weights` for any file of weights: the metadata is None if this library did not write the file.

    Raises:
        InputError: there is no such file, it is neither a checkpoint nor a state dict nor a safetensors file, it is damaged,
            holds code, or holds weights that no network has.
    """
    path = Path(path)
    _require_file(path)
    if path.suffix != ".safetensors":
        content = _unpickled(path, checksum)
        if isinstance(content, dict) and HEADER in content:
            tensors = _judged_weights(_own(content, path)["state_dict"])
            _require_numbers(tensors, path)
            return tensors, content[HEADER]
        tensors = _state_dict_in(content, path)
        _require_numbers(tensors, path)
        return tensors, None
    with _opened(path) as file:
        header = file.metadata() or {}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    described = header.get(HEADER)
    if checksum and CHECKSUM in header and header[CHECKSUM] != digest_of(tensors, described or ""):
        raise InputError(f"{path} is damaged: its checksum does not match its contents. {SKIP_CHECKSUM}")
    _require_numbers(tensors, path)
    return tensors, None if described is None else read_description(described)


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    # What a header says may be anything, and comes back as errors of Python's own too.
    except (SafetensorError, OSError, ValueError, TypeError, AttributeError, OverflowError, RuntimeError) as error:
        raise InputError(f"{path} is not a safetensors file, or it is damaged ({error}).") from error


def read_header(path: str | os.PathLike[str]) -> dict[str, Any]:
    """`to_dict` of the metadata of a file of this library, of any ending; its weights are not read.

    Raises:
        InputError: it is not a file of this library.
    """
    path = Path(path)
    runtime = runtime_that_runs(path)
    if runtime is not None:
        return read_exported_header(path, runtime)
    if path.suffix != ".safetensors":
        return read_checkpoint(path, checksum=False)[HEADER]
    _require_file(path)
    with _opened(path) as file:
        described = (file.metadata() or {}).get(HEADER)
    if described is None:
        raise InputError(f"{path} does not say which network it belongs to; it was not written by this library.")
    return read_description(described)


def load_weights(model: nn.Module, weights: Mapping[str, torch.Tensor], name: str) -> None:
    """Load a state dict strictly.

    Raises:
        InputError: a name, a shape or a kind of number differs; the message tells the first of them.
    """
    require_fitting(model, weights, name)
    model.load_state_dict(weights, strict=True)


def require_fitting(model: nn.Module, weights: Mapping[str, torch.Tensor], name: str) -> None:
    """Require that a state dict fits a network, which may be on the meta device.

    Raises:
        InputError: a name, a shape or a kind of number differs; the message tells the first of them.
    """
    own, weights = model.state_dict(), upgraded_weights(model, weights)
    missing, unexpected = sorted(own.keys() - weights.keys()), sorted(weights.keys() - own.keys())
    both = sorted(own.keys() & weights.keys())
    shapes = [key for key in both if own[key].shape != weights[key].shape]
    kinds = [key for key in both if own[key].is_floating_point() != weights[key].is_floating_point()]
    problems = []
    if missing:
        problems.append(f"{len(missing)} weights are missing ({missing[0]}, ...)")
    if unexpected:
        problems.append(f"{len(unexpected)} are not in the network ({unexpected[0]}, ...)")
    if shapes:
        key = shapes[0]
        problems.append(
            f"{len(shapes)} have another shape ({key}: {tuple(weights[key].shape)}, not {tuple(own[key].shape)})"
        )
    if kinds:
        key = kinds[0]
        problems.append(f"{len(kinds)} are of another type ({key}: {weights[key].dtype}, not {own[key].dtype})")
    if problems:
        raise InputError(f"the weights of {name} do not fit the network: {'; '.join(problems)}.")


def _require_numbers(tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    """Require that weights are finite floating-point numbers."""
    for name, tensor in tensors.items():
        wanted = name.rpartition(".")[2] in ("weight", "bias", "running_mean", "running_var")
        if tensor.is_complex() or (wanted and not tensor.is_floating_point()):
            raise InputError(
                f"{path} cannot be used: {name} is of type {tensor.dtype}, but weights must be floating-point."
            )
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise InputError(f"{path} cannot be used: {name} holds numbers that are NaN or infinite.")
        if name.endswith("running_var") and (tensor < 0).any():
            raise InputError(f"{path} cannot be used: {name} holds variances below 0.")


def _judged_weights(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    prefix = "ema.module." if any(name.startswith("ema.module.") for name in state) else "model."
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}


def _is_bare_pickle(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(1) == pickle.PROTO


def _require_file(path: Path) -> None:
    if not path.is_file():
        raise InputError(f"there is no file {path}.")
