"""Detectors from the command line: trained, resumed, evaluated in every form, deployed, drawn."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import xvolution
from tests.training import coco_folder
from xvolution.cli import main
from xvolution.models import ModelSpec, build_model
from xvolution.training import InputError, commands, evaluate, load_model, train
from xvolution.training.checkpoint import read_weights, save_weights
from xvolution.training.classification.metadata import ClassifierMetadata
from xvolution.training.commands import parse_run
from xvolution.training.config import DetectionConfig
from xvolution.training.data.transforms import Preprocessing
from xvolution.training.detection.module import Detection
from xvolution.training.detection.train import detector_spec
from xvolution.training.fit import TrainResult

SMALL: dict[str, Any] = {
    "task": "segment",
    "backbone": "resnet18",
    "trainable_layers": 5,
    "norm": "batch",
    "operator_options": {"zero_init": False},
    "min_size": 64,
    "max_size": 96,
    "model_kwargs": {
        "rpn_pre_nms_top_n_train": 60,
        "rpn_post_nms_top_n_train": 30,
        "rpn_pre_nms_top_n_test": 60,
        "rpn_post_nms_top_n_test": 30,
        "box_batch_size_per_image": 16,
        "box_detections_per_img": 5,
        "box_score_thresh": 0.01,  # two epochs make no confident detector, and the forms are compared by what they find
    },
    "epochs": 2,
    "batch_size": 2,
    "lr": 0.002,
    "schedule": "cosine",
    "accelerator": "cpu",
    "devices": 1,
    "workers": 0,
    "progress": "off",
}


@pytest.fixture(scope="session")
def blocks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return coco_folder.write_folder(tmp_path_factory.mktemp("detection") / "blocks")


@pytest.fixture(scope="session")
def detector(blocks: Path) -> TrainResult:
    return train(DetectionConfig(**SMALL, data=str(blocks), output=str(blocks.parent / "run")))


@pytest.fixture(scope="session")
def deployed(detector: TrainResult, blocks: Path) -> dict[str, Path]:
    """The deployed forms, by ending."""
    files = {ending: detector.run_dir / f"deployed.{ending}" for ending in ("safetensors", "onnx", "xml")}
    image = str(blocks / "val" / "000.png")
    assert main(["deploy", str(detector.weights), "--output", *map(str, files.values()), "--image", image]) == 0
    return files


def test_random_weights_have_no_norms_to_freeze(
    blocks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = {**SMALL, "epochs": 1, "limit_train_batches": 1, "limit_val_batches": 1, "data": str(blocks)}
    del given["norm"], given["trainable_layers"]
    with pytest.raises(
        InputError, match=r"--norm frozen .* random weights.*; add --pretrained or --backbone-weights, or leave --norm"
    ):
        train(DetectionConfig(**given, norm="frozen", output=str(tmp_path / "frozen")))
    chosen = train(DetectionConfig(**given, output=str(tmp_path / "chosen")))
    said = capsys.readouterr().out
    assert (
        "the backbone starts from random weights: its norms are trained (--norm batch), all its layers are trained;"
        in said
    )
    model, metadata = load_model(chosen.weights)
    assert (metadata.model.norm, metadata.model.trainable_layers) == ("batch", 5)
    assert isinstance(model.backbone.body.bn1, torch.nn.BatchNorm2d)
    assert not {"--norm", "--trainable-layers"} & set(commands.train_flags(config_of(chosen)))


def config_of(result: TrainResult) -> DetectionConfig:
    """What a run says it was configured by."""
    return DetectionConfig.from_dict(json.loads((result.run_dir / "config.json").read_text(encoding="utf-8")))


@pytest.mark.parametrize(
    ("given", "norm", "layers"),
    [
        ({}, "batch", 5),
        ({"pretrained": True}, "frozen", 3),
        ({"backbone_weights": "weights.safetensors"}, "frozen", 3),
        ({"pretrained": True, "norm": "batch", "trainable_layers": 4}, "batch", 4),
        ({"trainable_layers": 2}, "batch", 2),
    ],
)
def test_norms_and_trained_layers_suit_the_weights(given: dict[str, Any], norm: str, layers: int) -> None:
    spec = detector_spec(DetectionConfig(**given), 3)
    assert (spec.norm, spec.trainable_layers) == (norm, layers)


def test_a_run_leaves_weights_history_and_figures(detector: TrainResult) -> None:
    assert detector.weights.exists()
    assert [row["epoch"] for row in detector.history] == [1, 2]
    assert {"train_loss", "val_box_ap", "val_mask_ap", "val_mask_ar100", "lr"} <= detector.history[0].keys()
    model, metadata = load_model(detector.weights)
    assert metadata.class_names == ["brick", "block"]
    assert metadata.category_ids == [3, 7]
    assert "xvolution" in json.dumps(metadata.provenance)
    assert not model.training


def test_a_detector_is_not_judged_by_images_that_it_learned_from(detector: TrainResult) -> None:
    with pytest.raises(InputError, match=r"held out none of the training part; here the images of --holdout 0.25"):
        evaluate(detector.weights, holdout=0.25)


def test_a_stopped_run_ends_where_the_whole_one_does(
    detector: TrainResult, blocks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = DetectionConfig(**SMALL, data=str(blocks), output=str(blocks.parent / "stopped"))
    begin = Detection.on_train_epoch_start

    def stop_in_the_second(self: Detection) -> None:
        begin(self)
        if self.current_epoch == 1:
            raise InterruptedError

    with monkeypatch.context() as patch:
        patch.setattr(Detection, "on_train_epoch_start", stop_in_the_second)
        with pytest.raises(InterruptedError):
            train(config)
    resumed = train(replace(config, resume="last"))
    expected, actual = (read_weights(result.checkpoint)[0] for result in (detector, resumed))
    for name, tensor in expected.items():
        assert torch.equal(tensor, actual[name]), name
    assert [row["val_mask_ap"] for row in resumed.history] == [row["val_mask_ap"] for row in detector.history]


def test_every_form_is_worth_the_same(detector: TrainResult, deployed: dict[str, Path]) -> None:
    expected = evaluate(detector.weights)
    assert expected.images == 8
    assert expected.seconds_per_image > 0
    for path in deployed.values():
        figures = evaluate(path).figures
        assert figures == pytest.approx(expected.figures, abs=1e-4), path


def test_evaluate_writes_results_and_pictures(detector: TrainResult, tmp_path: Path, capsys: Any) -> None:
    names = {flag: tmp_path / f"out.{flag}" for flag in ("json", "results", "page")}
    flags = [part for flag, path in names.items() for part in (f"--{flag}", str(path))]
    assert main(["evaluate", str(detector.weights), *flags, "--pictures", "2"]) == 0
    assert "mask  AP" in capsys.readouterr().out
    report, results = (json.loads(names[name].read_text()) for name in ("json", "results"))
    assert report["images"] == 8
    assert {"box_ap", "mask_ap50"} <= report["figures"].keys()
    assert {each["category_id"] for each in results} <= {3, 7}
    assert results, "a detector that finds nothing compares nothing"
    assert {"image_id", "category_id", "bbox", "score", "segmentation"} == set(results[0])
    page = names["page"].read_text()
    assert page.count("data:image/jpeg;base64,") == 4
    assert "http" not in page


@pytest.mark.parametrize("form", ["safetensors", "onnx", "xml"])
def test_predict_draws_and_writes(
    deployed: dict[str, Path], blocks: Path, tmp_path: Path, form: str, capsys: Any
) -> None:
    arguments = [str(deployed[form]), str(blocks / "val"), str(blocks / "train" / "000.png")]
    assert main(["predict", *arguments, "--output", str(tmp_path), "--score-threshold", "0.01"]) == 0
    assert len(list(tmp_path.glob("*.png"))) == 9
    assert Image.open(tmp_path / "000-2.png").size == (64, 48)
    results = json.loads((tmp_path / "results.json").read_text())
    assert {each["image_id"] for each in results} <= set(range(9))
    assert all(each["file_name"].endswith(".png") for each in results)
    pictures = len({each["image_id"] for each in results})
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith(f"{len(results)} objects on {pictures} of 9 pictures: ")
    assert main(["predict", *arguments, "--output", str(tmp_path / "none"), "--score-threshold", "1"]) == 0
    best = max(each["score"] for each in results)
    assert f"no object has a score of 1 or more on 9 pictures; the best score is {best:.2f}" in capsys.readouterr().out


def test_a_detector_is_ready_for_pictures(detector: TrainResult, deployed: dict[str, Path], blocks: Path) -> None:
    picture = blocks / "val" / "000.png"
    model, exported = xvolution.load(detector.weights, "cpu"), xvolution.load(deployed["onnx"])
    (expected,), (found,) = (each.predict(picture, score_threshold=0.01) for each in (model, exported))
    assert expected.classes
    assert set(expected.classes) <= set(model.classes)
    assert found.classes == expected.classes
    assert found.scores == pytest.approx(expected.scores, abs=1e-4)
    torch.testing.assert_close(found.boxes, expected.boxes, rtol=0, atol=1e-2)
    (objects,) = model([model.preprocess(picture)])
    assert len(objects["scores"]) >= len(expected.scores)
    assert tuple(objects["scores"].tolist()[: len(expected.scores)]) == expected.scores
    with pytest.raises(InputError, match="--score-threshold is 2; it must be between 0 and 1"):
        model.predict(picture, score_threshold=2)


def train_flags(blocks: Path, output: Path, **changes: Any) -> list[str]:
    """`train` of a small plain detector of boxes for one epoch."""
    flags = {
        "task": "detect",
        "data": blocks,
        "output": output,
        "backbone": "resnet18",
        "operator": "conv",
        "min_size": 64,
        "max_size": 96,
        "model_kwargs": json.dumps(SMALL["model_kwargs"]),
        "epochs": 1,
        "workers": 0,
        "progress": "off",
        "accelerator": "cpu",
        **changes,
    }
    return ["train", *(str(part) for name, value in flags.items() for part in (f"--{name.replace('_', '-')}", value))]


def test_boxes_train_with_jitter_moving_average_and_half_precision(blocks: Path, tmp_path: Path) -> None:
    options = {"batch_size": 2, "limit_train_batches": 2, "precision": "bf16", "ema_decay": 0.9, "clip_grad": 1.0}
    command = train_flags(blocks, tmp_path / "run", devices=1, **options)
    assert main([*command, "--large-scale-jitter", "--scale-jitter", "[0.8, 1.2]"]) == 0
    result = evaluate(tmp_path / "run" / "model.safetensors", limit_batches=2)
    assert not any(name.startswith("mask") for name in result.figures)


@pytest.mark.parametrize("architecture", ["fasterrcnn", "retinanet", "fcos"])
def test_every_detector_of_boxes_trains_over_a_classifiers_backbone(
    architecture: Any, blocks: Path, tmp_path: Path
) -> None:
    classifier = ModelSpec("resnet18", num_classes=2)
    weights = tmp_path / "classifier.safetensors"
    preprocessing = Preprocessing(32, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    metadata = ClassifierMetadata(model=classifier, preprocessing=preprocessing, class_names=["a", "b"], data="none")
    save_weights(weights, build_model(classifier), metadata)
    changes = {
        "task": "detect",
        "architecture": architecture,
        "model_kwargs": {},
        "epochs": 1,
        "limit_train_batches": 1,
    }
    config = DetectionConfig(
        **{**SMALL, **changes, "limit_val_batches": 1, "data": str(blocks), "output": str(tmp_path / "run")},
        backbone_weights=str(weights),
    )
    result = train(config)
    assert torch.isfinite(torch.tensor(result.history[0]["train_loss"]))
    _, metadata = load_model(result.weights)
    assert metadata.model.kwargs["image_mean"] == [0.1, 0.2, 0.3]


def test_two_processes_judge_every_image_once(blocks: Path, tmp_path: Path) -> None:
    flags = train_flags(blocks, tmp_path / "run", devices=2, strategy="ddp", batch_size=1)
    command = [sys.executable, "-m", "xvolution.cli", *flags]
    subprocess.run(command, check=True, timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1"})
    checkpoint = torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)
    figures = {name: value for name, value in checkpoint["history"][0].items() if name.startswith("val_box")}
    alone = evaluate(tmp_path / "run" / "last.ckpt").figures
    assert figures == pytest.approx({f"val_{name}": value for name, value in alone.items()}, abs=1e-4)


def test_weights_of_another_backbone_are_refused(trained: Any, blocks: Path, tmp_path: Path) -> None:
    config = DetectionConfig(
        **SMALL, data=str(blocks), output=str(tmp_path / "run"), backbone_weights=str(trained.weights)
    )
    with pytest.raises(ValueError, match=r"model\.safetensors"):
        train(config)


def test_a_task_is_found_in_flags_and_files(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("task: segment\nlr: 0.5\n")
    config = parse_run(["--config", str(tmp_path / "run.yaml"), "--epochs", "3"])
    assert isinstance(config, DetectionConfig)
    assert (config.architecture, config.lr, config.epochs) == ("maskrcnn", 0.5, 3)
    with pytest.raises(InputError, match="the tasks are classify, detect, segment"):
        parse_run(["--task", "pose"])
    with pytest.raises(InputError, match="maskrcnn with --task segment"):
        parse_run(["--task", "detect", "--architecture", "maskrcnn"])


def test_networks_of_the_other_kind_are_refused(
    detector: TrainResult, trained: Any, tmp_path: Path, capsys: Any
) -> None:
    assert main(["predict", str(trained.weights), str(tmp_path)]) == 2
    assert main(["evaluate", str(detector.weights), "--predictions", str(tmp_path / "p.csv")]) == 2
    assert main(["evaluate", str(trained.weights), "--page", str(tmp_path / "p.html")]) == 2
    assert main(["deploy", str(detector.weights), "--output", str(tmp_path / "model.pt2")]) == 2
    errors = capsys.readouterr().err
    for sentence in (
        "there are no images in",
        "--predictions cannot be used for a detector",
        "--page cannot be used",
        ".pt2",
    ):
        assert sentence in errors
    assert not list(tmp_path.iterdir())


def test_data_check_ends_by_what_it_finds(blocks: Path, tmp_path: Path, capsys: Any) -> None:
    assert main(["data", "check", str(blocks), "--masks", "--json", str(tmp_path / "report.json")]) == 0
    assert json.loads((tmp_path / "report.json").read_text())["refused"] == 0
    assert main(["data", "check", str(tmp_path)]) == 2
    assert main(["data", "check", str(tmp_path / "nowhere")]) == 2
    assert "there is no file or folder" in capsys.readouterr().err
