"""Detectors from their description: every architecture, version and part, and weights for their backbones."""

from __future__ import annotations

import json

import pytest
import torch

timm = pytest.importorskip("timm")
torchvision = pytest.importorskip("torchvision")

from torch import nn  # noqa: E402
from torchvision.ops import FrozenBatchNorm2d  # noqa: E402

from xvolution import XVolution2d, XVolutionConfig, conversion_summary  # noqa: E402
from xvolution.conversion.config import Conversion, Placement  # noqa: E402
from xvolution.models import ModelError, ModelSpec, build_model  # noqa: E402
from xvolution.models.detect_backbone import FrozenNormAct  # noqa: E402
from xvolution.models.detect_parts import FixedBatchNorm2d  # noqa: E402
from xvolution.models.detection import DetectorSpec, build_detector, modules_of_part, part_of  # noqa: E402

PARTS = {
    "fasterrcnn": ("backbone", "fpn", "rpn"),
    "maskrcnn": ("backbone", "fpn", "rpn", "mask"),
    "retinanet": ("backbone", "fpn", "head"),
    "fcos": ("backbone", "fpn", "head"),
}
VERSIONS = [
    ("fasterrcnn", 1),
    ("fasterrcnn", 2),
    ("maskrcnn", 1),
    ("maskrcnn", 2),
    ("retinanet", 1),
    ("retinanet", 2),
    ("fcos", 1),
]
TWO_STAGES = {
    "box_score_thresh": 0.0,
    "box_detections_per_img": 8,
    "rpn_post_nms_top_n_test": 16,
    "rpn_post_nms_top_n_train": 16,
}
ONE_STAGE = {"score_thresh": 0.0, "detections_per_img": 8}
STAGE = Conversion(XVolutionConfig(), Placement(stages=(3,))).to_dict()


def images() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.rand(3, 64, 80, generator=generator), torch.rand(3, 70, 60, generator=generator)]


def spec_of(architecture: str, version: int = 1, backbone: str = "resnet18", **options) -> DetectorSpec:
    limits = TWO_STAGES if "rcnn" in architecture else ONE_STAGE
    options = {"num_classes": 3, "min_size": 64, "max_size": 96, "kwargs": limits, **options}
    return DetectorSpec(architecture, version, backbone, **options)


def randomize(detector: nn.Module) -> nn.Module:
    """Random statistics everywhere and attention that counts: fresh ones would hide what was lost."""
    generator = torch.Generator().manual_seed(1)
    for module in detector.modules():
        if module._buffers.get("running_mean") is not None:  # and not that of a norm that moved
            for tensor, low, high in (
                (module.running_mean, -0.3, 0.3),
                (module.running_var, 0.7, 1.5),
                (module.weight, 0.7, 1.3),
                (module.bias, -0.3, 0.3),
            ):
                tensor.data.copy_(low + (high - low) * torch.rand(tensor.shape, generator=generator))
        if isinstance(module, XVolution2d):
            noise = torch.randn(module.attention.value.weight.shape, generator=generator)
            module.attention.value.weight.data.copy_(0.05 * noise)
    # The classifier says something about each box, and not the same.
    for name, parameter in detector.named_parameters():
        if name.endswith(("cls_logits.weight", "cls_score.weight", "objectness.weight")):
            parameter.data.mul_(8)
        if name.endswith("cls_logits.bias"):
            parameter.data.zero_()
    return detector


def small_detector(architecture: str, version: int, parts: tuple[str, ...], **options) -> nn.Module:
    torch.manual_seed(0)
    return randomize(build_detector(spec_of(architecture, version, conversion=STAGE, parts=parts, **options)))


def operators(detector: nn.Module) -> set[str]:
    return {name for name, module in detector.named_modules() if isinstance(module, XVolution2d)}


@pytest.mark.parametrize(("architecture", "version"), VERSIONS)
def test_conversion_keeps_the_detector_and_it_trains(architecture: str, version: int) -> None:
    spec = spec_of(architecture, version)
    torch.manual_seed(0)
    plain = randomize(build_detector(spec))
    converted = build_detector(spec_of(architecture, version, conversion=STAGE, parts=PARTS[architecture]))
    # The plain detector's weights load into the converted one, its moved norms included.
    missing, unexpected = converted.load_state_dict(plain.state_dict(), strict=False)
    assert not unexpected
    assert all(".attention" in name for name in missing)
    with torch.no_grad():
        expected, actual = plain.eval()(images()), converted.eval()(images())
    assert sum(len(found["boxes"]) for found in expected) > 5
    for one, other in zip(expected, actual, strict=True):
        for name in one:
            torch.testing.assert_close(other[name], one[name], rtol=1e-5, atol=1e-5)

    assert {part_of(converted, name) for name in operators(converted)} == set(PARTS[architecture])
    target = {"boxes": torch.tensor([[4.0, 4, 40, 40]]), "labels": torch.tensor([1])}
    target["masks"] = torch.ones(1, 64, 80, dtype=torch.uint8)
    sum(converted.train()(images()[:1], [target]).values()).backward()
    last = {name: converted.get_submodule(name).attention_norm.weight.grad for name in operators(converted)}
    assert all(gradient is not None for gradient in last.values())


@pytest.mark.parametrize(
    ("part", "names"),
    [
        ("backbone", {f"backbone.body.layer3.{block}.conv{conv}" for block in (0, 1) for conv in (1, 2)}),
        ("fpn", {f"backbone.fpn.layer_blocks.{level}.0" for level in range(4)}),
        ("rpn", {"rpn.head.conv.0.0"}),
        ("mask", {f"roi_heads.mask_head.{layer}.0" for layer in range(4)}),
    ],
)
def test_each_part_alone(part: str, names: set[str]) -> None:
    detector = small_detector("maskrcnn", 1, (part,))
    assert operators(detector) == names == {row.name for row in conversion_summary(detector).replaced}
    left = {row.name: row.reason for row in conversion_summary(detector).left}
    assert not names & left.keys()
    assert left["backbone.body.conv1"] == f"not chosen in {part}"
    assert names <= {name for name, _ in modules_of_part(detector, part)}
    assert part_of(detector, "roi_heads.box_head.fc6") is None


@pytest.mark.parametrize("backbone", ["timm/resnet18", "regnetx_002", "convnext_atto"])
def test_timm_backbones(backbone: str) -> None:
    spec = spec_of("fasterrcnn", backbone=backbone, conversion=STAGE, trainable_layers=2)
    detector = build_detector(spec)
    body = detector.backbone.body
    assert operators(detector)
    assert not any(type(module) is nn.BatchNorm2d for module in body.modules())
    trained = [
        name for name, parameter in body.named_parameters() if parameter.requires_grad and ".attention" not in name
    ]
    frozen = [name for name, parameter in body.named_parameters() if not parameter.requires_grad]
    assert trained
    assert frozen
    with torch.no_grad():
        assert len(detector.eval()(images())) == 2


def test_frozen_norms_fold_into_the_operator_and_the_attentions_keep_their_statistics() -> None:
    detector = small_detector("fasterrcnn", 1, ("backbone", "rpn"))
    operator = detector.backbone.body.layer3[0].conv1
    assert type(operator.conv_norm) is FrozenBatchNorm2d
    assert isinstance(detector.backbone.body.layer3[0].bn1, nn.Identity)
    assert type(operator.attention_norm) is FixedBatchNorm2d
    before = operator.attention_norm.running_mean.clone()
    target = {"boxes": torch.tensor([[4.0, 4, 40, 40]]), "labels": torch.tensor([1])}
    detector.train()(images()[:1], [target])
    torch.testing.assert_close(operator.attention_norm.running_mean, before)
    assert operator.attention_norm.weight.requires_grad

    batch = build_detector(spec_of("fasterrcnn", norm="batch", conversion=STAGE, parts=("backbone", "rpn")))
    assert type(batch.backbone.body.layer3[0].conv1.attention_norm) is nn.BatchNorm2d
    assert type(batch.rpn.head.conv[0][0].attention_norm) is FixedBatchNorm2d, "it runs once for each level"


@pytest.mark.parametrize(
    ("backbone", "name"), [("resnet18", "resnet18"), ("resnet18", "xvolution"), ("convnext_atto", "convnext_atto")]
)
def test_weights_of_a_classifier(backbone: str, name: str) -> None:
    classifier = build_model(
        ModelSpec("resnet18" if name == "xvolution" else name, 5, conversion=STAGE if name == "xvolution" else None)
    )
    weights = randomize(classifier).state_dict()
    spec = spec_of("fasterrcnn", backbone=backbone, conversion=STAGE, parts=("backbone",))
    detector = build_detector(spec, {f"model.{key}": value for key, value in weights.items()}, weights_name="a.ckpt")
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        features = detector.eval().backbone.body(x)
        last = list(features.values())[-1] if isinstance(features, dict) else features[-1]
        torch.testing.assert_close(
            last,
            classifier.eval().forward_features(x) if name != "convnext_atto" else classifier.stages(classifier.stem(x)),
            rtol=1e-4,
            atol=1e-4,
        )
    assert "a.ckpt" in str(detector.backbone_weights)
    assert detector.backbone_weights.used > 50


@pytest.mark.parametrize("backbone", ["tf_efficientnet_lite0", "mobilenetv3_small_050", "cspnext_s"])
def test_weights_of_a_classifier_whose_norms_hold_activations(backbone: str) -> None:
    weights = randomize(timm.create_model(backbone)).state_dict()
    x = torch.rand(1, 3, 64, 64)
    features = []
    for norm in ("batch", "frozen"):
        spec = spec_of("fasterrcnn", backbone=backbone, conversion=None, norm=norm)
        body = build_detector(spec, weights).eval().backbone.body
        with torch.no_grad():
            features.append(body(x))
    assert any(isinstance(module, FrozenNormAct) for module in body.modules())
    torch.testing.assert_close(features[1], features[0], rtol=1e-4, atol=1e-4)
    again = {f"backbone.body.{key}": value for key, value in body.state_dict().items()}
    with torch.no_grad():
        torch.testing.assert_close(build_detector(spec, again).eval().backbone.body(x), features[1])


def test_weights_that_do_not_fit_are_refused() -> None:
    deeper = timm.create_model("resnet34").state_dict()
    with pytest.raises(ModelError, match=r"r34\.safetensors do not fit.*have no counterpart"):
        build_detector(spec_of("fasterrcnn"), deeper, weights_name="r34.safetensors")
    with pytest.raises(ModelError, match="another shape"):
        build_detector(spec_of("fasterrcnn"), timm.create_model("resnet18", in_chans=1).state_dict())
    converted = build_model(ModelSpec("resnet18", 5, conversion=STAGE)).state_dict()
    with pytest.raises(ModelError, match="X-volution"):
        build_detector(spec_of("fasterrcnn"), converted)


def test_a_description_survives_json() -> None:
    spec = spec_of("maskrcnn", conversion=STAGE, parts=("fpn", "mask"))
    assert DetectorSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"architecture": "yolo"}, "no architecture 'yolo'"),
        ({"architecture": "fcos", "version": 2}, "no version 2 of FCOS"),
        ({"norm": "group"}, "'frozen', 'batch'"),
        ({"num_classes": 1}, "counts the background"),
        ({"min_size": 900, "max_size": 800}, "min_size <= max_size"),
        ({"parts": ("mask",), "conversion": STAGE}, "those of fasterrcnn are backbone, fpn, rpn"),
    ],
)
def test_descriptions_that_mean_nothing(values: dict, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        DetectorSpec(**values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"backbone": "resnet19"}, "no backbone called 'resnet19'"),
        ({"backbone": "vit_tiny_patch16_224"}, "has features of strides"),
        ({"trainable_layers": 6}, "trainable_layers is 6"),
        ({"kwargs": {"speed": 3}}, "speed"),
        ({"conversion": {**STAGE, "where": {"stages": [7]}}, "parts": ("backbone",)}, "4 stages"),
        ({"conversion": {**STAGE, "where": {"names": ["nothing"]}}}, "nothing"),
    ],
)
def test_detectors_that_cannot_be_built(values: dict, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        build_detector(spec_of("fasterrcnn", **values))
