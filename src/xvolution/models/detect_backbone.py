"""Feature pyramids over torchvision's ResNets and timm's networks, and classification weights for them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import timm
import torch
from timm.layers import BatchNormAct2d
from torch import Tensor, nn
from torchvision.models import get_model, resnet
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.ops import FeaturePyramidNetwork, FrozenBatchNorm2d
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock

from xvolution.conversion.modules import replace_module
from xvolution.conversion.selection import stages_of
from xvolution.models.factory import ModelError

#: Channels of every level of the pyramid.
PYRAMID_CHANNELS = 256

#: From the channels of the network's last features to what makes the levels after them.
LastLevels = Callable[[int], ExtraFPNBlock]

# What other libraries put before the names of a backbone's tensors.
_PREFIXES = ("", "module.", "model.", "_orig_mod.", "backbone.", "backbone.body.", "body.", "encoder.")


class TimmWithFPN(nn.Module):
    """A timm network with ``features_only`` under torchvision's feature pyramid; laid out as ``BackboneWithFPN``.

    Shape:
        (N, 3, H, W) -> the levels by name, each (N, 256, H / stride, W / stride).
    """

    def __init__(self, body: nn.Module, fpn: FeaturePyramidNetwork) -> None:
        super().__init__()
        self.body = body
        self.fpn = fpn
        self.out_channels = PYRAMID_CHANNELS

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """(N, 3, H, W) -> level name -> (N, 256, h, w)."""
        return self.fpn(OrderedDict((str(level), features) for level, features in enumerate(self.body(images))))


def torchvision_resnets() -> list[str]:
    """Names of torchvision's ResNets, ResNeXts and wide ResNets."""
    return sorted(name for name in resnet.__all__ if name.startswith(("resne", "wide")))


@dataclass(frozen=True)
class Pyramid:
    """The settings of a backbone and its feature pyramid.

    Attributes:
        strides: strides of the levels that the pyramid reads: 4, 8, 16, 32 or the last three.
        last: module for the levels after the last one.
        norm: normalization in the pyramid.
        frozen_norms: replace the backbone's batch norms by frozen ones.
        trainable_layers: how many of the backbone's five layers (the stem and four stages), from the end, are trained.
        pretrained: load the library's weights.
    """

    strides: tuple[int, ...]
    last: LastLevels
    norm: type[nn.Module] | None
    frozen_norms: bool
    trainable_layers: int
    pretrained: bool

    def over(self, name: str) -> nn.Module:
        """The pyramid on a backbone, with the backbone as its ``body``.

        Args:
            name: a torchvision ResNet, or a timm name; ``timm/resnet50`` is timm's if both libraries have one.

        Raises:
            ModelError: neither library knows the name, the network has no such features, or the weights cannot be loaded.
        """
        layers = self.trainable_layers
        if not 0 <= layers <= 5:
            raise ModelError(f"trainable_layers is {layers}; it must be from 0 (none) to 5 (the whole backbone).")
        return _over_torchvision(name, self) if name in torchvision_resnets() else _over_timm(name, self)


def _over_torchvision(name: str, pyramid: Pyramid) -> nn.Module:
    norm_layer = FrozenBatchNorm2d if pyramid.frozen_norms else nn.BatchNorm2d
    try:
        network = get_model(name, weights="DEFAULT" if pyramid.pretrained else None, norm_layer=norm_layer)
    except (OSError, RuntimeError) as error:
        raise ModelError(f"torchvision's weights of {name} cannot be loaded: {error}") from error
    layers = [4, 8, 16, 32]
    chosen = [layers.index(stride) + 1 for stride in pyramid.strides]
    channels = [network.inplanes // 8 * 2 ** (layer - 1) for layer in chosen]
    _freeze(network, [(f"layer{layer}",) for layer in range(1, 5)], pyramid.trainable_layers)
    outputs = {f"layer{layer}": str(index) for index, layer in enumerate(chosen)}
    return BackboneWithFPN(network, outputs, channels, PYRAMID_CHANNELS, pyramid.last(channels[-1]), pyramid.norm)


def _over_timm(name: str, pyramid: Pyramid) -> nn.Module:
    if not timm.is_model(name.removeprefix("timm/").split(".")[0]):
        raise ModelError(
            f"there is no backbone called {name!r}; give one of torchvision's "
            f"{', '.join(torchvision_resnets())}, or a timm network with features of strides 4, 8, 16 and 32."
        )
    name = name.removeprefix("timm/")
    try:
        with torch.device("meta"):
            info: Any = timm.create_model(name, features_only=True).feature_info
        found = list(info.reduction())
        if not set(pyramid.strides) <= set(found):
            raise ModelError(f"{name} has features of strides {found}; give a backbone with {list(pyramid.strides)}.")
        # The last of each stride is the end of a stage.
        indices = [len(found) - 1 - found[::-1].index(stride) for stride in pyramid.strides]
        body: Any = timm.create_model(name, features_only=True, out_indices=indices, pretrained=pyramid.pretrained)
    except (RuntimeError, AttributeError, AssertionError, TypeError, OSError) as error:
        raise ModelError(
            f"timm cannot extract features of several strides from {name}: {str(error).strip() or type(error)}"
        ) from error
    channels = body.feature_info.channels()
    _check_layout(name, body, channels)
    _freeze(body, stages_of(body)[-4:], pyramid.trainable_layers)
    if pyramid.frozen_norms:
        body = freeze_norms(body)
    last = pyramid.last(channels[-1])
    fpn = FeaturePyramidNetwork(channels, PYRAMID_CHANNELS, extra_blocks=last, norm_layer=pyramid.norm)
    return TimmWithFPN(body.train(), fpn)


def _check_layout(name: str, body: nn.Module, channels: Sequence[int]) -> None:
    body.eval()
    with torch.no_grad():
        try:
            shapes = [tuple(features.shape) for features in body(torch.zeros(1, 3, 128, 96))]
        except Exception as error:  # whatever a network raises that takes images of one size only
            raise ModelError(f"{name} does not take images of any size, which a detector needs: {error}") from error
    if any(len(shape) != 4 or shape[1] != count for shape, count in zip(shapes, channels, strict=True)):
        raise ModelError(
            f"{name} returns features of shapes {shapes}; a detector needs (N, C, H, W) with C = {channels}."
        )


def _freeze(network: nn.Module, stages: Sequence[tuple[str, ...]], trainable_layers: int) -> None:
    """Freeze all but the last layers; modules outside of stages form the stem, the first layer."""
    if trainable_layers == 5:
        return
    trained = tuple(f"{name}." for stage in stages[max(len(stages) - trainable_layers, 0) :] for name in stage)
    for name, parameter in network.named_parameters():
        if not trained or not name.startswith(trained):
            parameter.requires_grad_(False)


class FrozenNormAct(nn.Sequential):
    """The frozen form of timm's ``BatchNormAct2d``: the frozen batch norm, then the dropout and the activation in it."""


def freeze_norms(network: nn.Module) -> nn.Module:
    """Replace every 2-d batch norm by torchvision's ``FrozenBatchNorm2d``; an activation in it follows."""
    norms = {name: module for name, module in network.named_modules() if isinstance(module, nn.BatchNorm2d)}
    for name, norm in norms.items():
        frozen = FrozenBatchNorm2d(norm.num_features, norm.eps)
        # A batch norm without affine parameters keeps the frozen one's ones and zeros.
        frozen.load_state_dict(norm.state_dict(), strict=False)
        rest = [norm.drop, norm.act] if isinstance(norm, BatchNormAct2d) else []
        rest = [module for module in rest if not isinstance(module, nn.Identity)]
        network = replace_module(network, name, FrozenNormAct(frozen, *rest) if rest else frozen)
    return network


@dataclass(frozen=True)
class WeightsReport:
    """Report on loading a classification network's weights into a backbone.

    Attributes:
        name: source of the weights.
        used: number of tensors that were loaded.
        dropped: names of tensors without a place in the backbone: the classifier, and layers after the last feature.
    """

    name: str
    used: int
    dropped: tuple[str, ...]

    def __str__(self) -> str:
        dropped = f"; {len(self.dropped)} tensors of the classification layer were left out" if self.dropped else ""
        return f"the backbone loaded {self.used} tensors of {self.name}{dropped}"


def matched(body: nn.Module, weights: Mapping[str, Tensor], name: str) -> tuple[dict[str, Tensor], WeightsReport]:
    """The tensors of a classification network under the backbone's names.

    Names are compared without the prefix of a wrapper, of either. ``stages_0`` equals ``stages.0``, because timm's feature
    networks and classifiers differ in this; ``bn1.weight`` equals ``bn1.0.weight`` where a frozen norm stands before an
    activation.

    Raises:
        ModelError: a tensor is missing, has another shape, or belongs to a layer of the backbone that has no such tensor.
    """
    wrapper, network = _wrapped(body)
    own = {
        _plain(key.removeprefix(wrapper)): key for key in body.state_dict() if not key.endswith("num_batches_tracked")
    }
    given = {key: value for key, value in weights.items() if not key.endswith("num_batches_tracked")}
    frozen = {name for name, module in body.named_modules() if isinstance(module, FrozenNormAct)}
    renamed = {_plain(_before_freezing(key, frozen).removeprefix(wrapper)): plain for plain, key in own.items()}

    def named(key: str, start: str) -> str:
        key = _plain(key.removeprefix(start))
        return key if key in own else renamed.get(key, key)

    prefix = max(
        [start + inner for start in _PREFIXES for inner in dict.fromkeys(("", wrapper))],
        key=lambda start: sum(named(key, start) in own for key in given if key.startswith(start)),
    )
    plain = {named(key, prefix): value for key, value in given.items() if key.startswith(prefix)}
    shapes = {key: value.shape for key, value in body.state_dict().items()}
    missing = [key for key in own if key not in plain]
    wrong = [key for key in own if key in plain and plain[key].shape != shapes[own[key]]]
    layers = tuple(f"{_plain(name)}." for name, child in network.named_children() if child.state_dict())
    extra = [key for key in plain if key not in own]
    foreign = [key for key in extra if key.startswith(layers)]
    problems = []
    if missing:
        problems.append(f"{len(missing)} of its {len(own)} tensors are missing ({own[missing[0]]}, ...)")
    if wrong:
        expected, actual = tuple(shapes[own[wrong[0]]]), tuple(plain[wrong[0]].shape)
        problems.append(f"{len(wrong)} have another shape ({own[wrong[0]]}: {actual}, not {expected})")
    if foreign:
        problems.append(f"{len(foreign)} tensors have no counterpart in it ({foreign[0]}, ...)")
    if problems:
        hint = ""
        if any(".attention.norm." in key for key in (*foreign, *missing)):
            hint = (
                " One of the two is converted to X-volution and the other is not: give the conversion of the weights."
            )
        raise ModelError(f"the weights of {name} do not fit the backbone: {'; '.join(problems)}.{hint}")
    return {own[key]: plain[key] for key in own}, WeightsReport(name, len(own), tuple(extra))


def _wrapped(body: nn.Module) -> tuple[str, nn.Module]:
    """The prefix that timm's extraction of features puts before all names of a network, and the network itself."""
    for name, child in body.named_children():
        if f"{name}." in _PREFIXES and all(key.startswith(f"{name}.") for key in body.state_dict()):
            return f"{name}.", child
    return "", body


def _before_freezing(key: str, frozen: Collection[str]) -> str:
    """The name of a tensor before `freeze_norms` put its norm before an activation."""
    norm, _, tensor = key.rpartition(".0.")
    return f"{norm}.{tensor}" if norm in frozen else key


def _plain(key: str) -> str:
    return key.replace("_", ".")
