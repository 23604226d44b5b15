"""`xvolution deploy --to`: every runtime that is installed, in one table."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from xvolution.deploy.runtimes import RUNTIMES, base
from xvolution.training import InputError, evaluate
from xvolution.training.file_commands import deploy_command
from xvolution.training.fit import TrainResult
from xvolution.training.shipping import deploy_to

pytest.importorskip("onnxruntime")


def test_files_of_several_runtimes_and_their_table(
    trained: TrainResult, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    find_spec, others = base.find_spec, ("coremltools", "executorch", "ai_edge_litert", "MNN", "ncnn", "openvino")
    monkeypatch.setattr(base, "find_spec", lambda name: None if name in others else find_spec(name))
    where = ["--output", str(tmp_path / "shipped"), "--json", str(tmp_path / "table.json")]
    measured = ["--data", "digits", "--images", "20", "--rounds", "1", "--threads", "1", "--layout", "split"]
    deploy_command([str(trained.weights), "--to", "all", *where, *measured])
    said = capsys.readouterr().out
    table = json.loads((tmp_path / "table.json").read_text())
    assert [file["path"] for file in table["files"]] == [str(tmp_path / f"shipped{end}") for end in (".onnx", ".pt2")]
    assert all(file["agreement"] == 1 and file["max_difference"] < 1e-3 for file in table["files"])
    assert (table["images"], table["threads"], set(table["refused"])) == (20, 1, {"tensorrt"})
    assert set(table["absent"]) == {"coreml", "executorch", "litert", "mnn", "ncnn", "openvino"}
    assert 'OpenVINO: not installed; pip install "xvolution[export]"' in said
    assert evaluate(tmp_path / "shipped.onnx", limit_batches=1).top1 == evaluate(trained.weights, limit_batches=1).top1


def test_quantized_files_beside_those_in_fp32(trained: TrainResult, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    table = deploy_to(
        trained.weights,
        ["onnxruntime", "openvino", "torch_export"],
        tmp_path / "shipped",
        data="digits",
        images=20,
        int8=True,
        calibration_images=40,
        layout="split",
        rounds=1,
    )
    assert [(file.runtime, file.precision, file.path.name) for file in table.files] == [
        ("onnxruntime", "fp32", "shipped.onnx"),
        ("onnxruntime", "int8", "shipped-int8.onnx"),
        ("openvino", "fp32", "shipped.xml"),
        ("openvino", "int8", "shipped-int8.xml"),
        ("torch_export", "fp32", "shipped.pt2"),
    ]
    fp32, int8 = table.files[:2]
    assert int8.bytes < fp32.bytes
    assert fp32.max_difference < 1e-3 < int8.max_difference
    assert all(file.agreement is not None and file.agreement > 0.8 for file in table.files)
    assert (table.refused, int8.layouts) == ({}, fp32.layouts)
    assert evaluate(tmp_path / "shipped-int8.onnx", limit_batches=1).images > 0


def test_a_runtime_that_refuses_leaves_the_others(
    trained: TrainResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object) -> None:
        raise RuntimeError("no such operator")

    monkeypatch.setattr(type(RUNTIMES["torch_export"]), "_write", fail)
    table = deploy_to(
        trained.weights, ["torch_export", "onnxruntime"], tmp_path / "shipped", layout="split", rounds=1, images=1
    )
    assert [file.runtime for file in table.files] == ["onnxruntime"]
    assert "no such operator" in table.refused["torch_export"]
    assert "torch.export: not written, because " in str(table)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["shipped.onnx"]


def test_what_cannot_be_asked_for(trained: TrainResult, tmp_path: Path) -> None:
    with pytest.raises(
        InputError,
        match=r"--to is h5; allowed are all, coreml, executorch, litert, mnn, ncnn, onnxruntime, openvino, tensorrt, "
        "torch_export",
    ):
        deploy_to(trained.weights, ["h5"])
    with pytest.raises(InputError, match=r"--rounds is 0; it must be at least 1"):
        deploy_to(trained.weights, rounds=0)
    with pytest.raises(InputError, match=r"--calibration-images is 0; it must be at least 1"):
        deploy_to(trained.weights, data="digits", int8=True, calibration_images=0)
    with pytest.raises(InputError, match=r"--int8 needs images that set the ranges of the activations; give --data"):
        deploy_to(trained.weights, int8=True)
    with pytest.raises(InputError, match="give --output with files, or --to"):
        deploy_command([str(trained.weights)])
    with pytest.raises(InputError, match="without --to there is no table for --data"):
        deploy_command([str(trained.weights), "--output", str(tmp_path / "a.onnx"), "--data", "digits"])
    with pytest.raises(InputError, match="without --to there is no table for --int8"):
        deploy_command([str(trained.weights), "--output", str(tmp_path / "a.onnx"), "--int8"])
    with pytest.raises(InputError, match="--output has 2 paths"):
        deploy_command([str(trained.weights), "--to", "all", "--output", "a", "b"])
