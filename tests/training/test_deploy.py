"""The deployed form answers what the training form answers, image by image, in every file format."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch

from xvolution import LayoutChoice, ReparameterizationError, XVolution2d
from xvolution.training import InputError, RunError, deploy, evaluate, load_model
from xvolution.training.file_commands import deploy_command
from xvolution.training.fit import TrainResult

onnxruntime = pytest.importorskip("onnxruntime")


@pytest.mark.parametrize("fold_norms", [False, True])
@pytest.mark.parametrize("layout", ["single", "split", "auto"])
def test_deployed_weights_predict_the_same(trained: TrainResult, tmp_path: Path, layout: str, fold_norms: bool) -> None:
    result = deploy(trained.checkpoint, [tmp_path / "deployed.safetensors"], layout=layout, fold_norms=fold_norms)
    assert result.difference < 1e-4
    assert len(result.metadata.layouts) == 4
    training, deployed = evaluate(trained.checkpoint), evaluate(tmp_path / "deployed.safetensors")
    assert torch.equal(training.predictions, deployed.predictions)
    assert training.top1 == deployed.top1
    assert training.loss == pytest.approx(deployed.loss, rel=1e-5)
    model, metadata = load_model(tmp_path / "deployed.safetensors")
    assert metadata.form == "deployed"
    x = metadata.example_images(batch_size=2)
    assert torch.equal(model(x), result.model(x))
    norms = [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    assert (not norms) == fold_norms


@pytest.mark.slow
def test_onnx_predicts_the_same(trained: TrainResult, tmp_path: Path) -> None:
    result = deploy(trained.weights, [tmp_path / "deployed.onnx"], layout="single")
    assert result.files == [tmp_path / "deployed.onnx"]
    training = evaluate(trained.weights, predictions=tmp_path / "a.csv")
    exported = evaluate(tmp_path / "deployed.onnx", predictions=tmp_path / "b.csv")
    assert torch.equal(training.predictions, exported.predictions)
    assert (tmp_path / "a.csv").read_text() == (tmp_path / "b.csv").read_text()
    rows = list(csv.DictReader((tmp_path / "a.csv").open()))
    assert sum(row["label"] == row["prediction"] for row in rows) / len(rows) == pytest.approx(training.top1)


@pytest.mark.slow
def test_an_onnx_file_of_a_fixed_size_predicts_the_same(trained: TrainResult, tmp_path: Path) -> None:
    result = deploy(trained.weights, [tmp_path / "deployed.onnx"], batch_size=5, fixed_size=True)
    assert result.reports[0].dynamic == "none"
    training = evaluate(trained.weights)
    exported = evaluate(tmp_path / "deployed.onnx", batch_size=64)
    assert training.images % 5 != 0
    assert torch.equal(training.predictions, exported.predictions)


def test_each_file_has_the_layouts_of_its_runtime(
    trained: TrainResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import xvolution.training.classification.deploy as deployment

    asked = []
    layouts = {"torch": "single", "onnxruntime": "split", "torch_export": "single"}

    def choose(model: torch.nn.Module, example: torch.Tensor, runtime: str, *options: object) -> LayoutChoice:
        asked.append((runtime, *options))
        names = [name for name, module in model.named_modules() if isinstance(module, XVolution2d)]
        return LayoutChoice(dict.fromkeys(names, layouts[runtime]), runtime, {names[0]: {"split": 1.0, "single": 2.0}})

    monkeypatch.setattr(deployment, "choose_layouts", choose)
    paths = [tmp_path / f"deployed{ending}" for ending in (".safetensors", ".onnx", ".pt2", ".v2.safetensors")]
    result = deploy(trained.weights, paths, threads=2)
    assert asked == [(runtime, 2, None) for runtime in ("torch", "onnxruntime", "torch_export")]
    assert result.forms["torch"].model is result.forms["torch_export"].model
    assert set(result.metadata.layouts.values()) == {"single"}
    for path in paths:
        if path.suffix != ".pt2":
            _, metadata = load_model(path)
            assert set(metadata.layouts.values()) == {"split" if path.suffix == ".onnx" else "single"}
    said = str(result).splitlines()
    assert said[1] == f"wrote {paths[0]}, layouts single (4); distinct operators timed in torch: 1"
    assert said[2] == f"wrote {paths[1]}, layouts split (4); distinct operators timed in ONNX Runtime: 1"
    assert str(deploy(trained.weights, paths[:1], layout="split")).endswith(f"wrote {paths[0]}, layouts split (4)")


def test_the_command_takes_threads_and_says_what_it_chose(
    trained: TrainResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "deployed.safetensors"
    command = [str(trained.weights), "--output", str(path), "--threads", "1"]
    deploy_command(command)
    found = capsys.readouterr()
    assert found.err == ""
    assert "timed in torch: " in found.out
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    deploy_command(command)
    assert capsys.readouterr().err.startswith("operator 1 of ")
    with pytest.raises(InputError, match="threads is 0"):
        deploy(trained.weights, [path], threads=0)


def test_what_cannot_be_deployed(trained: TrainResult, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="endings are"):
        deploy(trained.weights, [tmp_path / "model.h5"])
    with pytest.raises(InputError, match="layout"):
        deploy(trained.weights, [tmp_path / "model.safetensors"], layout="cubic")
    deploy(trained.weights, [tmp_path / "deployed.safetensors"])
    with pytest.raises(InputError, match="already in deployed form"):
        deploy(tmp_path / "deployed.safetensors", [tmp_path / "again.safetensors"])


def test_a_deployed_form_that_differs_is_not_written(
    trained: TrainResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import xvolution.training.classification.deploy as deployment

    def fails(*arguments: object, **options: object) -> None:
        raise ReparameterizationError("layer2.0.conv1 differs.")

    monkeypatch.setattr(deployment, "reparameterize", fails)
    with pytest.raises(RunError, match=r"layer2\.0\.conv1 differs"):
        deploy(trained.weights, [tmp_path / "deployed.safetensors"])
    assert not list(tmp_path.iterdir())
