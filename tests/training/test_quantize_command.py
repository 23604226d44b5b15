"""`xvolution quantize`: a file of 8-bit integers that `evaluate` reads, judged before and after, beside the plain twin."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("onnxruntime")

from xvolution.cli import main
from xvolution.deploy.runtimes.onnx_runtime import OnnxRuntime
from xvolution.training import InputError, deploy, evaluate, quantize, train
from xvolution.training.fit import TrainResult


def test_both_networks_are_judged_before_and_after(
    trained: TrainResult, tiny: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = train(tiny(operator="conv", epochs=1))
    output, figures = tmp_path / "int8.onnx", tmp_path / "figures.json"
    capsys.readouterr()
    flags = ["--images", "40", "--layout", "split", "--plain", str(plain.weights), "--json", str(figures)]
    assert main(["quantize", str(trained.weights), "--output", str(output), *flags]) == 0
    printed = capsys.readouterr().out
    ours, twin = json.loads(figures.read_text(encoding="utf-8"))["networks"]
    assert (ours["network"], twin["network"]) == ("the network", "its plain twin")
    for found, result in ((ours, trained), (twin, plain)):
        expected = evaluate(result.weights)
        assert found["fp32"]["top1"] == pytest.approx(expected.top1)
        assert found["fp32"]["loss"] == pytest.approx(expected.loss, rel=1e-4)
        assert found["int8"]["images"] == expected.images
        assert found["calibration_images"] == 40
        assert found["bytes_after"] < found["bytes_before"]
        assert 0 < found["relative_error"] < 0.2
    after = evaluate(output)
    assert ours["int8"]["top1"] == pytest.approx(after.top1)
    assert ours["int8"]["loss"] == pytest.approx(after.loss, rel=1e-6)
    before = evaluate(trained.weights)
    assert ours["changed_predictions"] == int((before.predictions != after.predictions).sum())
    lost = 100 * (after.top1 - before.top1)
    assert f"top-1 after minus before: {lost:+.2f} points for the network and" in printed
    assert printed.endswith(f"calibrated on 40 training images\nwrote {output}\n")
    names = {node.op_type for node in _graph(output).node}
    assert {"QuantizeLinear", "DequantizeLinear"} <= names
    assert not [path for path in tmp_path.iterdir() if "plain" in path.name and path.suffix == ".onnx"]


def _graph(path: Path) -> Any:
    import onnx

    return onnx.load(str(path)).graph


def test_a_deployed_file_is_quantized_as_it_is(trained: TrainResult, tmp_path: Path) -> None:
    fp32, int8 = tmp_path / "fp32.onnx", tmp_path / "int8.onnx"
    deploy(trained.weights, [fp32], layout="split")
    (found,) = quantize(fp32, int8, images=40).networks
    assert found.before.top1 == pytest.approx(evaluate(fp32).top1)
    assert found.after.top1 == pytest.approx(evaluate(int8).top1)
    assert OnnxRuntime().load(int8).properties == OnnxRuntime().load(fp32).properties
    with pytest.raises(InputError, match=r"fp32.onnx is an exported graph, whose parts cannot be equalized"):
        quantize(fp32, int8, equalized=True)


def test_openvino_runs_the_quantized_file(trained: TrainResult, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    xml, onnx = tmp_path / "int8.xml", tmp_path / "int8.onnx"
    (in_openvino,) = quantize(trained.weights, xml, images=40, layout="split", equalized=True).networks
    (in_onnx,) = quantize(trained.weights, onnx, images=40, layout="split", equalized=True).networks
    assert in_openvino.before.loss == pytest.approx(in_onnx.before.loss, rel=1e-6)
    assert in_openvino.after.loss == pytest.approx(in_onnx.after.loss, abs=0.02)
    assert in_openvino.after.loss != in_openvino.before.loss
    assert sorted(path.name for path in tmp_path.iterdir()) == ["int8.bin", "int8.onnx", "int8.xml", "int8.xml.json"]
    assert json.loads((tmp_path / "int8.xml.json").read_text(encoding="utf-8"))["type"] == "classify"


@pytest.mark.parametrize(
    ("output", "options", "sentence"),
    [
        ("int8.pt2", {}, "int8.pt2 cannot be quantized: torch.export has no int8 files here; give a file"),
        ("int8.jpg", {}, "cannot export to 'int8.jpg'; the name must end in"),
        ("int8.onnx", {"images": 0}, "--images is 0; it must be at least 1"),
        ("int8.onnx", {"method": "best"}, "--method is best; it must be one of minmax, entropy, percentile"),
        ("int8.onnx", {"split": "test"}, "has no part called 'test'"),
    ],
)
def test_what_cannot_be_is_refused(
    trained: TrainResult, tmp_path: Path, output: str, options: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(InputError, match=sentence):
        quantize(trained.weights, tmp_path / output, **options)
    assert not list(tmp_path.iterdir())
