"""Starting a training from the weights of a file."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from xvolution.conversion.checkpoints import load_unconverted
from xvolution.models import ModelSpec
from xvolution.training.checkpoint import load_weights, read_tensors
from xvolution.training.classification.metadata import ClassifierMetadata
from xvolution.training.errors import InputError
from xvolution.training.fit import say


def begin_with(model: Any, path: str, spec: ModelSpec) -> None:
    """Load the weights of a file into a new network, also plain weights into a converted one, and print which weights are new.

    Args:
        model: a timm classifier, converted or not.
        path: a file of this library, or a .safetensors or .pth file in timm's names.
        spec: of the network.

    Raises:
        InputError: the weights are of another network, or have another conversion.
    """
    tensors, header = read_tensors(path)
    if header is not None:
        _require_alike(ClassifierMetadata.from_dict(header), spec, path)
    own = model.state_dict()
    new = _other_classes(model, own, tensors)
    tensors = {**tensors, **{name: own[name] for name in new}}
    if own.keys() <= tensors.keys() or spec.conversion is None:
        load_weights(model, tensors, path)
    else:
        try:
            load_unconverted(model, tensors)
        except (ValueError, RuntimeError) as error:
            raise InputError(f"{path} cannot be loaded into {spec.name}: {' '.join(str(error).split())}.") from error
    say(
        f"starts from the weights of {path}"
        + (f"; new for {spec.num_classes} classes: {', '.join(new)}" if new else "")
    )


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
