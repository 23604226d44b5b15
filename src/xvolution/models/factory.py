"""One description of a network, and the function that builds it again from that description."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import timm
import torch
from torch import nn

from xvolution.conversion.convert import ConversionError, convert
from xvolution.conversion.register import conversion_from_dict


class ModelError(ValueError):
    """The requested network cannot be built; the message says why and what is allowed."""

    exit_code = 2


@dataclass(frozen=True)
class ModelSpec:
    """The description of a network's architecture, as plain JSON values.

    Attributes:
        name: a timm model name.
        num_classes: outputs of the classifier.
        in_chans: channels of the input images.
        kwargs: further keyword arguments of `timm.create_model`.
        small_images: whether a ResNet's stem is replaced by a 3x3 convolution of stride 1 without max-pooling.
        conversion: `to_dict()` of a `Conversion`, or None for the plain network.
    """

    name: str
    num_classes: int
    in_chans: int = 3
    kwargs: dict[str, Any] = field(default_factory=dict)
    small_images: bool = False
    conversion: dict[str, Any] | None = None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ModelSpec:
        return cls(**values)


def build_model(spec: ModelSpec, pretrained: bool = False, example_inputs: torch.Tensor | None = None) -> nn.Module:
    """Build the network in its training form, on the CPU, in training mode.

    Args:
        spec: what to build.
        pretrained: load timm's weights into the plain network, before conversion.
        example_inputs: (N, in_chans, H, W) images to compare the outputs on before and after the conversion; without them
            outputs are not compared, for a network whose weights are loaded next.

    Raises:
        ModelError: timm does not know the name or its arguments, or nothing in the network can be converted.
    """
    return convert_built(build_plain(spec, pretrained), spec, example_inputs)


def build_plain(spec: ModelSpec, pretrained: bool = False) -> nn.Module:
    """`build_model` without the conversion.

    Raises:
        ModelError: timm does not know the name or its arguments.
    """
    model = _create(spec, pretrained)
    return shrink_stem(model) if spec.small_images else model


def convert_built(model: nn.Module, spec: ModelSpec, example_inputs: torch.Tensor | None = None) -> nn.Module:
    """The conversion of `build_model`, in place, if the description has one.

    Raises:
        ModelError: nothing in the network can be converted.
    """
    if spec.conversion is None:
        return model
    try:
        conversion = conversion_from_dict(spec.conversion)
        return convert(
            model,
            conversion.operator,
            **vars(conversion.where),
            example_inputs=example_inputs,
            verify=example_inputs is not None,
            inplace=True,
        )
    except (ValueError, ConversionError) as error:
        raise ModelError(f"{spec.name} cannot be converted: {error}") from error


def _create(spec: ModelSpec, pretrained: bool) -> nn.Module:
    arguments, name = dict(spec.kwargs), spec.name.removeprefix("xvolution_")
    if name != spec.name and spec.conversion is None:
        raise ModelError(f"{spec.name} is an X-volution network; the plain one is called {name}.")
    if not timm.is_model(name.removeprefix("timm/").split(".")[0]):
        near = ", ".join(timm.list_models(f"*{name[:6]}*")[:8])
        raise ModelError(f"timm knows no model called {name!r}" + (f"; names close to it: {near}." if near else "."))
    try:
        return timm.create_model(
            name, pretrained=pretrained, num_classes=spec.num_classes, in_chans=spec.in_chans, **arguments
        )
    except (TypeError, ValueError, RuntimeError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(
            f"timm cannot build {spec.name} with {arguments or 'no further arguments'}: {reason}"
        ) from error


def shrink_stem(model: nn.Module) -> nn.Module:
    """Give a ResNet the stem for images of 64 pixels and less: a 3x3 convolution of stride 1, no max-pooling.

    Raises:
        ModelError: the network has no ResNet stem (`conv1` followed by `maxpool`).
    """
    stem = getattr(model, "conv1", None)
    if not isinstance(stem, nn.Conv2d) or not hasattr(model, "maxpool"):
        raise ModelError(
            f"the small-image stem works only for ResNets with a plain stem, which {type(model).__name__} does "
            "not have; leave it out."
        )
    model.conv1 = nn.Conv2d(stem.in_channels, stem.out_channels, 3, stride=1, padding=1, bias=stem.bias is not None)
    nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
    model.maxpool = nn.Identity()
    return model
