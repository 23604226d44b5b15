"""Networks of the queue: plain, with squeeze-and-excitation, and with X-volution in the same places."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from torch import Tensor, nn

from experiments.lite0 import renamed
from xvolution.conversion.convert import convert
from xvolution.conversion.register import operator_config
from xvolution.operator import XVolution

OPERATORS = ("conv", "se", "xvolution")
#: Options of operators in networks with pretrained weights, which all start as the plain network.
UNCHANGED: Mapping[str, Mapping[str, Any]] = {"se": {"zero_init": True}}


@dataclass(frozen=True)
class Network:
    """A network and the places of the operator in it.

    Attributes:
        name: of timm's network.
        stages: where the operator goes, from 1; all stages when empty.
        stem_stride: stride of a 3x3 stem without pooling in the place of a ResNet's; None keeps the stem.
        size: side length of the pictures in pixels.
        classes: outputs.
    """

    name: str
    stages: tuple[int, ...]
    size: int
    classes: int
    stem_stride: int | None = None

    def plain(self) -> nn.Module:
        """The network without any operator."""
        model = timm.create_model(self.name, num_classes=self.classes)
        if self.stem_stride is not None:
            stem: Any = model.conv1
            model.conv1 = nn.Conv2d(3, stem.out_channels, 3, self.stem_stride, padding=1, bias=False)
            nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
            model.maxpool = nn.Identity()
        return model

    def build(self, operator: str, weights: Mapping[str, Tensor] | None = None) -> tuple[nn.Module, set[str]]:
        """The network with an operator of ``OPERATORS``, in training mode.

        Args:
            operator: its name.
            weights: of the plain network, but for the classifier where that has another number of classes.

        Returns:
            The network, and the names of the parameters that the plain one does not have.
        """
        model = self.plain()
        if weights is not None:
            load_matching(model, weights)
        old = {id(parameter) for parameter in model.parameters()}
        example = torch.randn(2, 3, self.size, self.size, generator=torch.Generator().manual_seed(0))
        options = UNCHANGED.get(operator, {}) if weights is not None else {}
        model = put(model, operator, self.stages, example, options)
        return model.train(), {name for name, parameter in model.named_parameters() if id(parameter) not in old}


def put(
    model: nn.Module, operator: str, stages: Sequence[int], example: Tensor, options: Mapping[str, Any] | None = None
) -> nn.Module:
    """Put an operator in the places where X-volution goes, in place; conv leaves the network as it is."""
    if operator == "conv":
        return model
    if operator == "xvolution":
        return convert(model, stages=stages or None, example_inputs=example, inplace=True)
    converted = convert(model, stages=stages or None, example_inputs=example)
    places = [name for name, module in converted.named_modules() if isinstance(module, XVolution)]
    return convert(model, operator_config(operator, options), names=places, example_inputs=example, inplace=True)


def load_matching(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Load all tensors; the classifier's only where it has the same number of classes.

    Raises:
        RuntimeError: another tensor is missing or too many.
    """
    own = model.state_dict()
    chosen = {key: value for key, value in weights.items() if own[key].shape == value.shape}
    missing = [key for key in own if key not in chosen and not key.startswith(("classifier.", "fc."))]
    if missing:
        raise RuntimeError(f"the weights have nothing that fits {', '.join(missing[:5])}; give those of this network")
    model.load_state_dict(chosen, strict=False)


def lite0_weights(path: Path) -> dict[str, Tensor]:
    """ImageNet weights of timm's ``tf_efficientnet_lite0`` from the pack ``lite0.npz``, in single precision."""
    with np.load(path) as pack:
        return renamed({key: torch.from_numpy(pack[key]) for key in pack.files})
