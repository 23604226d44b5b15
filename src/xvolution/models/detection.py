"""One description of a detector, and the function that builds it again from that description."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

from torch import Tensor, nn
from torchvision.models.detection import FCOS, FasterRCNN, MaskRCNN, RetinaNet
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.models.detection.rpn import RPNHead
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock, LastLevelMaxPool, LastLevelP6P7

from xvolution.conversion.register import conversion_from_dict
from xvolution.models.detect_backbone import PYRAMID_CHANNELS, Pyramid, matched
from xvolution.models.detect_parts import PARTS, convert_parts, modules_of_part, part_of
from xvolution.models.factory import ModelError

__all__ = ["DetectorSpec", "build_detector", "modules_of_part", "part_of"]

_CLASSES = {"fasterrcnn": FasterRCNN, "maskrcnn": MaskRCNN, "retinanet": RetinaNet, "fcos": FCOS}
_NORMS = ("frozen", "batch")


@dataclass(frozen=True)
class DetectorSpec:
    """The description of a detector's architecture, as plain JSON values.

    Attributes:
        architecture: ``"fasterrcnn"``, ``"maskrcnn"``, ``"retinanet"`` or ``"fcos"``, all with a feature pyramid (FPN).
        version: 1, or 2 for torchvision's ``*_v2`` heads: batch norm in the pyramid and the box and mask heads and two
            convolutions in the RPN head; group norm and the GIoU loss in RetinaNet. FCOS has version 1 only.
        backbone: a torchvision ResNet, or a timm name (``"timm/resnet50"`` where both have one).
        num_classes: with background, as in torchvision: 2 for one category.
        norm: the backbone's norms: ``"frozen"`` batch norms, whose statistics and scales stay those of the classifier, or
            ``"batch"`` for norms that are trained, which takes large batches. With ``"frozen"`` the statistics of the
            attention's norms stay as well, and their scales are trained.
        min_size, max_size: images are resized to a shorter side of ``min_size`` pixels, but a longer side of at most
            ``max_size``.
        trainable_layers: how many of the backbone's five layers (stem and four stages), from the end, are trained. New
            attention is trained in every layer.
        kwargs: further arguments of torchvision's class, such as ``box_score_thresh``.
        parts: parts in which convolutions are replaced: ``"backbone"``, ``"fpn"`` (its output convolutions), ``"rpn"``,
            ``"mask"``; of RetinaNet and FCOS ``"head"``.
        conversion: ``to_dict()`` of a ``Conversion``, or None for the plain detector. ``stages`` chooses in the backbone
            only.
    """

    architecture: str = "fasterrcnn"
    version: int = 1
    backbone: str = "resnet50"
    num_classes: int = 91
    norm: str = "frozen"
    min_size: int = 800
    max_size: int = 1333
    trainable_layers: int = 3
    kwargs: dict[str, Any] = field(default_factory=dict)
    parts: tuple[str, ...] = ("backbone", "fpn")
    conversion: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "parts", tuple(self.parts))
        _check(self)

    @property
    def name(self) -> str:
        """Architecture and backbone."""
        return f"{self.architecture}-{self.backbone}"

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "parts": list(self.parts)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> DetectorSpec:
        return cls(**values)


def _check(spec: DetectorSpec) -> None:
    """Raise ``ModelError`` for a value that is not allowed."""
    if spec.architecture not in _CLASSES:
        raise ModelError(
            f"there is no architecture {spec.architecture!r}; the architectures are {', '.join(_CLASSES)}."
        )
    if spec.version not in (1, 2):
        raise ModelError(f"version is {spec.version}; torchvision's detectors have the versions 1 and 2.")
    if spec.architecture == "fcos" and spec.version == 2:
        raise ModelError("torchvision has no version 2 of FCOS; set version to 1.")
    if spec.norm not in _NORMS:
        raise ModelError(f"norm is {spec.norm!r}; allowed are {', '.join(map(repr, _NORMS))}.")
    if spec.num_classes < 2:
        raise ModelError(
            f"num_classes is {spec.num_classes}; it must be at least 2, because it counts the background too."
        )
    if not 0 < spec.min_size <= spec.max_size:
        raise ModelError(
            f"min_size is {spec.min_size} and max_size is {spec.max_size}; they must satisfy 0 < min_size <= max_size."
        )
    if spec.conversion is None:
        return
    unknown = [part for part in spec.parts if part not in PARTS[spec.architecture]]
    if unknown or not spec.parts:
        raise ModelError(
            f"parts are {', '.join(spec.parts) or 'empty'}; those of {spec.architecture} are "
            f"{', '.join(PARTS[spec.architecture])}."
        )


def build_detector(
    spec: DetectorSpec,
    backbone_weights: Mapping[str, Tensor] | None = None,
    pretrained: bool = False,
    weights_name: str = "the given file",
) -> nn.Module:
    """Build the detector in its training form, on the CPU, in training mode.

    Args:
        spec: what to build.
        backbone_weights: state dict of a classifier with this backbone, plain or with the same conversion; the last layer
            is dropped. The attribute ``backbone_weights`` of the detector is the ``WeightsReport``.
        pretrained: load the library's own weights of the classifier into the backbone; not with ``backbone_weights``.
        weights_name: name of ``backbone_weights`` in messages, such as the file's path.

    Raises:
        ModelError: the backbone is unknown or unfit, the weights are of another network, an argument is unknown to torchvision,
            or nothing can be converted.
    """
    detector = _plain_detector(spec, pretrained and backbone_weights is None)
    fitting: tuple[dict[str, Tensor], Any] | None = None
    if backbone_weights is not None:
        try:
            fitting = matched(detector.backbone.body, backbone_weights, weights_name)
        except ModelError:
            # The weights of a classifier that was converted as the backbone is going to be.
            if spec.conversion is None or "backbone" not in spec.parts:
                raise
    if fitting is not None:
        _load(detector, *fitting)
    if spec.conversion is not None:
        try:
            config = conversion_from_dict(spec.conversion)
        except ValueError as error:
            raise ModelError(str(error)) from error
        convert_parts(detector, config, spec.parts, fixed_norms=spec.norm == "frozen")
    if backbone_weights is not None and fitting is None:
        _load(detector, *matched(detector.backbone.body, backbone_weights, weights_name))
    return detector.train()


def _load(detector: Any, weights: dict[str, Tensor], report: Any) -> None:
    detector.backbone.body.load_state_dict(weights, strict=False)
    # Written past nn.Module's bookkeeping, which is for parameters and modules.
    vars(detector)["backbone_weights"] = report


def _plain_detector(spec: DetectorSpec, pretrained: bool) -> Any:
    backbone = _backbone(spec, pretrained)
    known = set(inspect.signature(_CLASSES[spec.architecture].__init__).parameters)
    unknown = [name for name in spec.kwargs if name not in known - {"self", "backbone", "num_classes", "kwargs"}]
    if unknown:
        raise ModelError(f"torchvision's {spec.architecture} does not take {', '.join(unknown)}.")
    arguments = {**_own_normalization(backbone), **_heads(spec), **spec.kwargs}
    try:
        detector = _CLASSES[spec.architecture](
            backbone, spec.num_classes, min_size=spec.min_size, max_size=spec.max_size, **arguments
        )
    except (TypeError, ValueError) as error:
        raise ModelError(f"torchvision cannot build {spec.architecture} with {spec.kwargs}: {error}") from error
    if spec.architecture == "retinanet" and spec.version == 2:
        anchors = detector.anchor_generator.num_anchors_per_location()[0]
        group_norm = partial(nn.GroupNorm, 32)
        detector.head = RetinaNetHead(PYRAMID_CHANNELS, anchors, spec.num_classes, norm_layer=group_norm)
        detector.head.regression_head._loss_type = "giou"
    return detector


def _backbone(spec: DetectorSpec, pretrained: bool) -> nn.Module:
    two_stage = spec.architecture in ("fasterrcnn", "maskrcnn")
    pyramid = Pyramid(
        # The first level has too many anchors for one stage; two levels behind the last make up for it.
        strides=(4, 8, 16, 32) if two_stage else (8, 16, 32),
        last=_pooled if two_stage else (_from_features if spec.version == 2 else _from_pyramid),
        norm=nn.BatchNorm2d if two_stage and spec.version == 2 else None,
        frozen_norms=spec.norm == "frozen",
        trainable_layers=spec.trainable_layers,
        pretrained=pretrained,
    )
    return pyramid.over(spec.backbone)


def _pooled(channels: int) -> ExtraFPNBlock:
    """One level after the pyramid's last, by pooling it."""
    return LastLevelMaxPool()


def _from_features(channels: int) -> ExtraFPNBlock:
    """Two levels computed from the backbone's last features."""
    return LastLevelP6P7(channels, PYRAMID_CHANNELS)


def _from_pyramid(channels: int) -> ExtraFPNBlock:
    """Two levels computed from the pyramid's last."""
    return LastLevelP6P7(PYRAMID_CHANNELS, PYRAMID_CHANNELS)


def _heads(spec: DetectorSpec) -> dict[str, nn.Module]:
    """The heads of torchvision's second versions of the two-stage detectors."""
    if spec.version == 1 or spec.architecture == "retinanet":
        return {}
    heads: dict[str, nn.Module] = {
        "rpn_head": RPNHead(PYRAMID_CHANNELS, 3, conv_depth=2),
        "box_head": FastRCNNConvFCHead((PYRAMID_CHANNELS, 7, 7), [256] * 4, [1024], norm_layer=nn.BatchNorm2d),
    }
    if spec.architecture == "maskrcnn":
        heads["mask_head"] = MaskRCNNHeads(PYRAMID_CHANNELS, [256] * 4, 1, norm_layer=nn.BatchNorm2d)
    return heads


def _own_normalization(backbone: Any) -> dict[str, Any]:
    """The mean and deviation that a timm network was trained with; torchvision's classes know those of ImageNet."""
    settings = getattr(backbone.body, "pretrained_cfg", None) or getattr(backbone.body, "default_cfg", None) or {}
    names = {"image_mean": "mean", "image_std": "std"}
    return {argument: list(settings[name]) for argument, name in names.items() if settings.get(name)}
