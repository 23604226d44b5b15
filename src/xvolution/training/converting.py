"""`convert_network`: a network by its name, a checkpoint or a weights file, converted and stored in its training form."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

import timm
import torch
from timm.data import ImageNetInfo, infer_imagenet_subset
from torch import Tensor, nn

from xvolution.conversion.convert import ConversionError, convert
from xvolution.conversion.summary import ConversionSummary, conversion_summary
from xvolution.models import ModelError, ModelSpec, build_model
from xvolution.training.checkpoint import load_weights, read_tensors, save_weights
from xvolution.training.classification.metadata import ClassifierMetadata
from xvolution.training.classification.train import preprocessing_of
from xvolution.training.config import TrainConfig
from xvolution.training.data.reading import PHOTOGRAPH_SIDE
from xvolution.training.errors import InputError
from xvolution.training.held_out import kept_description
from xvolution.training.metadata import provenance
from xvolution.training.tasks import CLASSIFY, task_of_file

_ENDING = ".safetensors"
_TORCHVISION = "torchvision:"


@dataclass(frozen=True)
class Converted:
    """A converted network.

    Attributes:
        summary: the replaced convolutions, and the others with reasons.
        config: configuration of a training that starts from it, for any data.
        path: path of the stored network; None if nothing was written.
    """

    summary: ConversionSummary
    config: TrainConfig
    path: Path | None


def convert_network(
    name: str,
    output: str | os.PathLike[str] | None,
    config: TrainConfig,
    *,
    model: str | None = None,
    pretrained: bool = True,
    num_classes: int | None = None,
    checksum: bool = True,
) -> Converted:
    """Convert a classifier and store it as `train`, `evaluate` and `deploy` read it; outputs are compared before and after.

    Args:
        name: a name in timm; a .safetensors, .ckpt or .pth file; or ``torchvision:`` and a name of torchvision, which cannot
            be stored.
        output: a .safetensors file; None writes nothing.
        config: operator, places, and settings of a network by name: ``operator``, ``operator_options``, ``stages``,
            ``kernel_sizes``, ``names``, ``at_projections``, ``model_kwargs``, ``in_chans``, ``small_images`` and ``image_size``.
        model: timm's name of the network in the file, if the file does not have it.
        pretrained: use timm's pretrained weights, for a network by name.
        num_classes: number of classes, for a network by name; by default that of its weights.
        checksum: check a file against the checksum stored in it, if it has one.

    Raises:
        InputError: a name, a file or an option cannot be used.
        ModelError: the network cannot be built, or none of its convolutions can be converted.
        RunError: the file cannot be written.
    """
    path = None if output is None else Path(output)
    if path is not None and path.suffix != _ENDING:
        raise InputError(f"{path} ends with {path.suffix or 'nothing'}; converted networks are stored as {_ENDING}.")
    conversion = config.conversion
    if conversion is None:
        raise InputError(
            "--operator is conv, which does not change the network; give another operator, such as xvolution."
        )
    if name.startswith(_TORCHVISION):
        if path is not None:
            raise InputError(
                f"{name} can be shown with --dry-run but not stored, because files describe networks of "
                "timm; give timm's name, such as resnet50.tv_in1k for torchvision's weights."
            )
        plain, metadata = _of_torchvision(name.removeprefix(_TORCHVISION)), None
        side = config.image_size or PHOTOGRAPH_SIDE
        example = torch.zeros(1, 3, side, side)
    else:
        if Path(name).suffix in (_ENDING, ".ckpt", ".pth") or os.path.exists(name):
            plain, metadata = _of_file(name, model, config, checksum)
        else:
            plain, metadata = _of_timm(name, config, pretrained, num_classes)
        example = metadata.example_images()
    try:
        converted = convert(
            plain.eval(), conversion.operator, **vars(conversion.where), example_inputs=example, inplace=True
        )
    except (ValueError, ConversionError) as error:
        raise ModelError(f"{name} cannot be converted: {error}") from error
    summary = conversion_summary(converted, example)
    if metadata is None:
        return Converted(summary, config, None)
    spec = metadata.model
    if path is not None:
        made = {**provenance(0), **kept_description(metadata.provenance)}
        stored = replace(metadata, model=replace(spec, conversion=conversion.to_dict()), provenance=made)
        save_weights(path, converted, stored)
    size = metadata.preprocessing.image_size
    config = replace(config, model=spec.name, model_kwargs=spec.kwargs, small_images=spec.small_images, image_size=size)
    weights = None if path is None else str(path)
    return Converted(summary, replace(config, weights=weights), path)


def _of_timm(
    name: str, config: TrainConfig, pretrained: bool, num_classes: int | None
) -> tuple[nn.Module, ClassifierMetadata]:
    known = timm.get_pretrained_cfg(name.removeprefix("timm/"), allow_unregistered=True)
    classes = num_classes or getattr(known, "num_classes", None) or 1000
    plain, metadata = _built(name, config, classes, pretrained)
    subset = infer_imagenet_subset(plain) if pretrained and num_classes is None else None
    if subset is not None:
        info = ImageNetInfo(subset)
        metadata = replace(metadata, class_names=[info.index_to_description(label) for label in range(classes)])
    return plain, metadata


def _built(name: str, config: TrainConfig, classes: int, pretrained: bool) -> tuple[nn.Module, ClassifierMetadata]:
    channels = 3 if config.in_chans == "auto" else config.in_chans
    spec = ModelSpec(name, classes, channels, dict(config.model_kwargs), config.small_images)
    plain = build_model(spec, pretrained)
    size = config.image_size or timm.data.resolve_model_data_config(plain)["input_size"][-1]
    names = [str(label) for label in range(classes)]
    return plain, ClassifierMetadata(
        model=spec, preprocessing=preprocessing_of(plain, size, channels), class_names=names, data=""
    )


def _of_file(name: str, model: str | None, config: TrainConfig, checksum: bool) -> tuple[nn.Module, ClassifierMetadata]:
    tensors, header = read_tensors(name, checksum)
    if header is None:
        if model is None:
            raise InputError(f"{name} does not name its network; give timm's name of the network with --model.")
        plain, metadata = _built(model, config, _classes_in(tensors, model), pretrained=False)
        load_weights(plain, tensors, f"{name} ({model})")
        return plain, metadata
    if task_of_file(name) is not CLASSIFY:
        raise InputError(
            f"{name} does not hold a classifier; to convert a detector, use xvolution train --backbone-weights."
        )
    plain, metadata = CLASSIFY.load(name, checksum=checksum)
    if metadata.form == "deployed" or metadata.model.conversion is not None:
        found = "in deployed form" if metadata.form == "deployed" else "already converted"
        raise InputError(f"the network of {name} is {found}; give a file of the plain network.")
    return plain, metadata


def _classes_in(tensors: dict[str, Tensor], model: str) -> int:
    """Rows of the classifier among the tensors of a network."""
    known = timm.get_pretrained_cfg(model, allow_unregistered=True)
    weight = tensors.get(f"{getattr(known, 'classifier', None)}.weight")
    return 1000 if weight is None else len(weight)


def _of_torchvision(name: str) -> nn.Module:
    from torchvision.models import get_model, list_models

    if name not in list_models():
        raise ModelError(f"torchvision has no network {name!r}.")
    return get_model(name, weights=None)
