"""The deployed form answers what the training form answers, image by image, in every file format."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch

from xvolution import ReparameterizationError
from xvolution.training import InputError, RunError, deploy, evaluate, load_model
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


def test_what_cannot_be_deployed(trained: TrainResult, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="endings are"):
        deploy(trained.weights, [tmp_path / "model.tflite"])
    with pytest.raises(InputError, match="layout"):
        deploy(trained.weights, [tmp_path / "model.safetensors"], layout="cubic")
    deploy(trained.weights, [tmp_path / "deployed.safetensors"])
    with pytest.raises(InputError, match="deployed form already"):
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
