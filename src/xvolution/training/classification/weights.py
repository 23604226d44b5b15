"""Starting a training from the weights of a file."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from xvolution.models import ModelSpec
from xvolution.models.factory import build_plain, convert_built
from xvolution.training.checkpoint import load_weights, read_tensors
from xvolution.training.classification.metadata import ClassifierMetadata
from xvolution.training.data import DataSplits
from xvolution.training.errors import InputError
from xvolution.training.fit import say
from xvolution.training.held_out import HOLD_OUT_THE_SAME, require_unseen


def build_from(path: str, spec: ModelSpec, example_inputs: Tensor | None = None) -> nn.Module:
    """Build a network with the weights of a file, and print which weights are new.

    Plain weights are loaded before the conversion: each operator starts as it does in a network with pretrained weights.

    Args:
        path: a file of this library, or a .safetensors or .pth file in timm's names.
        spec: of the network; the file is plain, or has the same conversion.
        example_inputs: (N, in_chans, H, W) images to compare the outputs on before and after the conversion of plain weights.

    Raises:
        InputError: the weights are of another network, or have another conversion.
        ModelError: the network cannot be built.
    """
    tensors, header = read_tensors(path)
    stored = None if header is None else ClassifierMetadata.from_dict(header)
    if stored is not None:
        _require_alike(stored, spec, path)
    model = build_plain(spec)
    is_plain = model.state_dict().keys() <= tensors.keys() if stored is None else stored.model.conversion is None
    if not is_plain:
        model = convert_built(model, spec)
    own = model.state_dict()
    new = _other_classes(model, own, tensors)
    load_weights(model, {**tensors, **{name: own[name] for name in new}}, path)
    if is_plain:
        model = convert_built(model, spec, example_inputs)
    say(
        f"starts from the weights of {path}"
        + (f"; new for {spec.num_classes} classes: {', '.join(new)}" if new else "")
    )
    return model


def require_unseen_files(files: Iterable[str], splits: DataSplits) -> None:
    """Require that no network that a training starts from, or is taught by, learned from the images that judge it.

    Args:
        files: of these networks; those that this library did not write are passed over, since they do not say it.
        splits: the data of the training.

    Raises:
        InputError: a network did, or its file cannot be read.
    """
    for file in files:
        _, header = read_tensors(file)
        if header is not None:
            metadata = ClassifierMetadata.from_dict(header)
            require_unseen(file, metadata, splits.name, splits.held_out, HOLD_OUT_THE_SAME)


def _require_alike(stored: ClassifierMetadata, spec: ModelSpec, path: str) -> None:
    if stored.form == "deployed":
        raise InputError(f"{path} is in deployed form, which cannot be trained; give the file in training form.")
    if stored.model.name != spec.name:
        raise InputError(f"{path} holds the weights of {stored.model.name}; give --model {stored.model.name}.")
    if stored.model.conversion not in (None, spec.conversion):
        raise InputError(
            f"{path} has another conversion ({stored.model.conversion}) than this training "
            f"({spec.conversion}); give the flags of its conversion, or the file of the plain network."
        )


def _other_classes(model: Any, own: dict[str, Tensor], tensors: dict[str, Tensor]) -> list[str]:
    """The weights of the last layer, if those of the file have another number of classes."""
    head: nn.Module = model.get_classifier()
    names = [f"{name}.{part}" for name, module in model.named_modules() if module is head for part in head.state_dict()]
    return [name for name in names if name in tensors and tensors[name].shape != own[name].shape]
