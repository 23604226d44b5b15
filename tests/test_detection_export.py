"""Detectors in their deployed form, and as files that other runtimes run."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

pytest.importorskip("torchvision")

from torchvision.models.detection.transform import GeneralizedRCNNTransform

from tests.test_detection_models import PARTS, VERSIONS, images, small_detector
from xvolution import ExportError, ReparameterizationError, layouts_of, reparameterize, unfolded_of
from xvolution.conversion.summary import record_of
from xvolution.deploy.runtimes.onnx_files import write_traced
from xvolution.deploy.runtimes.onnx_runtime import OnnxRuntime
from xvolution.deploy.runtimes.onnx_sessions import OnnxSession
from xvolution.models.detect_deploy import deploy_detector
from xvolution.models.detect_export import export_detector, resizing_in_double
from xvolution.models.detect_match import match_detections
from xvolution.models.detect_raw import agreement_of, raw_outputs


@pytest.mark.parametrize(("architecture", "version"), VERSIONS)
def test_the_deployed_detector_finds_the_same(architecture: str, version: int) -> None:
    detector = small_detector(architecture, version, PARTS[architecture]).eval()
    deployed = deploy_detector(detector, images(), layout="split")
    assert set(layouts_of(deployed)) == {row.name for row in record_of(detector).replaced}
    assert not unfolded_of(deployed)
    with torch.no_grad():
        agreement = match_detections(detector(images()), deployed(images()), score_threshold=0.0)
    assert agreement.matched >= 2
    assert agreement.holds()


def test_reparameterize_takes_the_whole_detector_and_is_exact() -> None:
    detector = small_detector("fasterrcnn", 1, PARTS["fasterrcnn"]).eval().double()
    example = ([image.double() for image in images()],)
    deployed = reparameterize(detector, example_inputs=example, layout="single")
    with torch.no_grad():
        for expected, actual in zip(detector(*example), deployed(*example), strict=True):
            assert len(expected["boxes"]) > 0
            for name in expected:
                torch.testing.assert_close(actual[name], expected[name], rtol=1e-10, atol=1e-10)


def test_layouts_build_the_same_form_again_and_norms_fold() -> None:
    detector = small_detector("fasterrcnn", 1, ("backbone", "fpn")).eval()
    deployed = deploy_detector(detector, images(), layout="split", fold_norms=True)
    assert not any("BatchNorm" in type(module).__name__ for module in deployed.modules())
    again = deploy_detector(detector, layout=layouts_of(deployed), fold_norms=True)
    again.load_state_dict(deployed.state_dict())
    with torch.no_grad():
        assert match_detections(deployed(images()), again(images())).score == 0


def test_train_mode_is_refused() -> None:
    detector = small_detector("fasterrcnn", 1, ("fpn",))
    with pytest.raises(ReparameterizationError, match="train mode"):
        deploy_detector(detector)
    with pytest.raises(ExportError, match="train mode"):
        export_detector(detector, "detector.onnx", images()[0])


@pytest.mark.parametrize("architecture", list(PARTS))
def test_onnx_runtime_finds_the_same(tmp_path, architecture: str) -> None:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    detector = small_detector(architecture, 1, PARTS[architecture]).eval()
    deployed = deploy_detector(detector, images(), layout="split")
    report = export_detector(
        deployed, tmp_path / "detector.onnx", images()[0], score_threshold=0.0, properties={"classes": "cat"}
    )
    assert (report.content, report.dynamic, report.reason) == ("detector", "image size", "")
    assert report.agreement.matched >= 5
    assert [file.name for file in tmp_path.iterdir()] == ["detector.onnx"]
    network = onnx.load(report.path)
    assert {node.domain for node in network.graph.node} <= {"", "ai.onnx"}
    properties = {entry.key: entry.value for entry in network.metadata_props}
    assert len(properties.pop("sha256")) == 64
    assert properties == {"classes": "cat", "content": "detector"}
    assert {output.name for output in network.graph.output} == set(deployed([images()[0]])[0])


def test_the_training_form_of_a_detector_is_deployed_for_the_runtime(tmp_path) -> None:
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    detector, told = small_detector("fasterrcnn", 1, PARTS["fasterrcnn"]).eval(), []
    path = tmp_path / "detector.onnx"
    report = export_detector(detector, path, images()[0], score_threshold=0.0, threads=1, progress=told.append)
    assert (report.content, report.reason) == ("detector", "")
    assert set(report.layouts) == {row.name for row in record_of(detector).replaced}
    assert report.choice is not None
    assert (report.choice.timed_in, report.choice.reason) == ("onnxruntime", "")
    assert len(told) == len(report.choice.seconds) < len(report.layouts)
    given = deploy_detector(
        detector, images(), layout=report.choice.layouts | {"backbone.fpn.layer_blocks.0.0": "auto"}
    )
    assert set(layouts_of(given)) == set(report.layouts)


def test_a_file_that_finds_something_else_is_not_written(tmp_path, monkeypatch) -> None:
    pytest.importorskip("onnxruntime")
    detector = small_detector("fasterrcnn", 1, ("fpn",)).eval()
    nothing = [torch.zeros(0, 4), torch.zeros(0, dtype=torch.long), torch.zeros(0)]
    monkeypatch.setattr(OnnxSession, "_run", lambda self, inputs: nothing)
    with pytest.raises(ExportError, match="differ from those of the detector"):
        export_detector(detector, tmp_path / "detector.onnx", images()[0])
    assert not list(tmp_path.iterdir())


def test_openvino_finds_the_same(tmp_path) -> None:
    pytest.importorskip("onnxscript")
    pytest.importorskip("openvino")
    detector = small_detector("fasterrcnn", 1, PARTS["fasterrcnn"]).eval()
    deployed = deploy_detector(detector, images(), layout="split")
    report = export_detector(deployed, tmp_path / "detector.xml", images()[0], score_threshold=0.0)
    assert (report.format, report.content, report.reason) == ("xml", "detector", "")
    assert report.agreement.matched >= 5
    assert sorted(file.name for file in tmp_path.iterdir()) == ["detector.bin", "detector.xml"]


def test_a_detector_that_cannot_be_traced_is_its_pyramid(tmp_path, monkeypatch) -> None:
    pytest.importorskip("onnxruntime")
    detector = small_detector("fasterrcnn", 1, ("fpn",)).eval()
    monkeypatch.setattr(torch.onnx, "export", _refusing_to_trace(torch.onnx.export))
    options = {"layout": "split", "properties": {"classes": "cat"}}
    report = export_detector(detector, tmp_path / "detector.onnx", images()[0], **options)
    assert set(report.layouts.values()) == {"split"}
    assert (report.content, report.agreement) == ("pyramid", None)
    assert report.reason == "torch's tracing exporter cannot write the model: no such operator"
    properties = OnnxRuntime().load(report.path).properties
    assert properties == {"classes": "cat", "content": "pyramid", "reason": report.reason}
    assert [file.name for file in tmp_path.iterdir()] == ["detector.onnx"]


def _refusing_to_trace(export):
    def refuse(*arguments, dynamo, **options):
        if not dynamo:
            raise RuntimeError("no such operator")
        return export(*arguments, dynamo=dynamo, **options)

    return refuse


def test_other_endings_are_refused(tmp_path) -> None:
    detector = small_detector("fasterrcnn", 1, ("fpn",)).eval()
    with pytest.raises(ValueError, match=r"must end in \.onnx or \.xml"):
        export_detector(detector, tmp_path / "detector.pt2", images()[0])


def test_the_pyramid_alone(tmp_path) -> None:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    detector = small_detector("fasterrcnn", 1, ("fpn",)).eval()
    report = export_detector(detector, tmp_path / "pyramid.onnx", images()[0], whole=False, layout="split")
    assert (report.content, report.reason, report.agreement) == ("pyramid", "asked for", None)
    properties = {entry.key: entry.value for entry in onnx.load(report.path).metadata_props}
    assert properties["content"] == "pyramid"


def detections(scores: list[float], shift: float = 0.0) -> list[dict[str, torch.Tensor]]:
    boxes = torch.tensor([[10.0 * i + shift, 0.0, 10.0 * i + 8 + shift, 8.0] for i in range(len(scores))])
    return [{"boxes": boxes, "labels": torch.ones(len(scores), dtype=torch.long), "scores": torch.tensor(scores)}]


def test_matching_ignores_order_and_ties_but_nothing_else() -> None:
    expected = detections([0.9, 0.5, 0.06, 0.0501])
    turned = [{name: values.flip(0) for name, values in expected[0].items()}]
    assert match_detections(expected, turned).holds()
    assert match_detections(expected, detections([0.9, 0.5, 0.06])).holds(), "one at the threshold may be missing"
    assert not match_detections(expected, detections([0.9])).holds()
    assert not match_detections(detections([0.9]), expected).holds()
    assert not match_detections(expected, detections([0.9, 0.5, 0.06, 0.0501], shift=1.0)).holds()
    assert not match_detections(expected, detections([0.9, 0.55, 0.06, 0.0501])).holds()
    other = [{**expected[0], "labels": expected[0]["labels"] + 1}]
    assert not match_detections(expected, other).holds()


def unsure_detector(architecture: str) -> torch.nn.Module:
    """One that is sure of nothing, so that it finds nothing."""
    limits = {"box_score_thresh": 1.0} if "rcnn" in architecture else {"score_thresh": 1.0}
    return small_detector(architecture, 1, PARTS[architecture], kwargs=limits).eval()


@pytest.mark.parametrize("architecture", list(PARTS))
def test_where_nothing_is_found_maps_and_raw_scores_are_compared(architecture: str) -> None:
    detector = unsure_detector(architecture)
    deployed = deploy_detector(detector, images(), layout="split")
    raw = raw_outputs(detector, images()[0])
    assert {name.split(".")[0] for name in raw} == {"backbone", "rpn" if "rcnn" in architecture else "head"} | (
        {"roi_heads"} if "rcnn" in architecture else set()
    )
    agreement = agreement_of(detector, deployed, images()[0])
    assert agreement.is_empty
    assert agreement.raw is not None
    assert 0 < agreement.raw.maps < 1e-4
    assert 0 < agreement.raw.scores < 1e-4
    assert agreement.holds()
    assert "detections were not compared; feature maps differ by" in str(agreement)


@pytest.mark.parametrize(
    ("part", "kind"),
    [
        ("backbone.fpn.layer_blocks.0.0", "maps"),
        ("rpn.head.cls_logits", "scores"),
        ("roi_heads.box_predictor.cls_score", "scores"),
    ],
)
def test_another_detector_that_finds_nothing_either_does_not_agree(part: str, kind: str) -> None:
    detector = unsure_detector("fasterrcnn")
    other = copy.deepcopy(detector)
    with torch.no_grad():
        for parameter in other.get_submodule(part).parameters():
            parameter.mul_(1.1)
    agreement = agreement_of(detector, other, images()[0])
    assert agreement.is_empty
    assert getattr(agreement.raw, kind) > 1e-3
    assert not agreement.holds()


@pytest.mark.parametrize("architecture", ["maskrcnn", "fcos"])
def test_a_file_that_finds_nothing_is_compared_by_maps_and_raw_scores(tmp_path, architecture: str) -> None:
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    deployed = deploy_detector(unsure_detector(architecture), images(), layout="split")
    report = export_detector(deployed, tmp_path / "detector.onnx", images()[0])
    assert report.content == "detector"
    assert not any(module.training for module in deployed.modules())
    assert report.agreement.is_empty
    assert 0 < report.agreement.raw.maps < 1e-4
    assert report.agreement.raw.scores < 1e-4
    assert [file.name for file in tmp_path.iterdir()] == ["detector.onnx"]


def test_a_file_that_finds_nothing_and_computes_something_else_is_not_written(tmp_path, monkeypatch) -> None:
    pytest.importorskip("onnxruntime")
    deployed = deploy_detector(unsure_detector("fcos"), images(), layout="split")
    run = OnnxSession._run
    monkeypatch.setattr(OnnxSession, "_run", lambda self, inputs: [1.1 * y for y in run(self, inputs)])
    with pytest.raises(
        ExportError, match="differ from those of the detector: nothing is detected in the example image"
    ):
        export_detector(deployed, tmp_path / "detector.onnx", images()[0])
    assert not list(tmp_path.iterdir())


class Resized(torch.nn.Module):
    """The images as a detector's backbone sees them."""

    def __init__(self, transform: GeneralizedRCNNTransform) -> None:
        super().__init__()
        self.transform = transform

    def forward(self, images: list[torch.Tensor]) -> torch.Tensor:
        return self.transform(images)[0].tensors


def test_a_file_resizes_images_of_any_size_as_the_detector_does(tmp_path: Path) -> None:
    """In single precision 224 / 536 * 536 is below 224, so that the file saw a smaller image than the detector."""
    pytest.importorskip("onnxruntime")
    resized = Resized(GeneralizedRCNNTransform(224, 384, [0.5] * 3, [0.5] * 3)).eval()
    path = tmp_path / "resized.onnx"
    with resizing_in_double(resized):
        names = {"input_names": ["image"], "output_names": ["resized"]}
        axes = {"image": {1: "height", 2: "width"}, "resized": {2: "height", 3: "width"}}
        write_traced(resized, ([torch.rand(3, 100, 120)],), path, opset_version=17, dynamic_axes=axes, **names)
    run, generator = OnnxRuntime().load(path), torch.Generator().manual_seed(0)
    for height, width in [(536, 559), *torch.randint(20, 700, (40, 2), generator=generator).tolist()]:
        image = torch.rand(3, height, width, generator=generator)
        torch.testing.assert_close(run(image)[0], resized([image]), rtol=0, atol=2e-3)
