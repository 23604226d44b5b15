"""`predict` and `xvolution.load`: every form answers the same, with names."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import xvolution
from xvolution.cli import main
from xvolution.explain.run import explain
from xvolution.training import InputError, deploy, evaluate, predict
from xvolution.training.classification.predict import ClassifierPredictor
from xvolution.training.data.reading import BadImage
from xvolution.training.exported_file import read_exported_header
from xvolution.training.fit import TrainResult
from xvolution.training.predictor import picture_files

ENDINGS = ("safetensors", "onnx", "xml", "pt2")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Three photographs, one of them in a folder below."""
    generator = np.random.default_rng(0)
    for name in ("a.jpg", "b.jpg", "below/c.jpg"):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 255, (24, 31, 3), dtype=np.uint8)).save(path)
    return tmp_path / "photos"


def test_the_answers_are_the_softmax_of_the_networks_logits(trained: TrainResult, photos: Path) -> None:
    model = xvolution.load(trained.weights, "cpu")
    images = torch.stack([model.preprocess(photos / name) for name in ("a.jpg", "b.jpg")])
    probabilities = model.model(images).softmax(1)
    assert torch.equal(model(images).softmax(1), probabilities)
    answers = model.predict([photos / "a.jpg", Image.open(photos / "b.jpg")], top=3)
    assert [answer.picture for answer in answers] == [str(photos / "a.jpg"), str(photos / "b.jpg")]
    for answer, expected in zip(answers, probabilities, strict=True):
        order = expected.argsort(descending=True)[:3]
        assert answer.classes == tuple(model.classes[index] for index in order)
        assert answer.probabilities == pytest.approx(expected[order].tolist(), rel=1e-5)
    assert len(model.predict(photos / "a.jpg", top=99)[0].classes) == len(model.classes) == 10
    with pytest.raises(InputError, match="at least 1"):
        model.predict(photos / "a.jpg", top=0)


@pytest.mark.slow
@pytest.mark.parametrize("ending", ENDINGS)
def test_every_form_answers_the_same(
    trained: TrainResult, exported: dict[str, Path], photos: Path, tmp_path: Path, ending: str
) -> None:
    expected, found = predict(trained.weights, photos), predict(exported[ending], photos)
    assert len(expected.answers) == 3
    for wanted, answer in zip(expected.answers, found.answers, strict=True):
        assert answer.classes == wanted.classes
        assert answer.probabilities == pytest.approx(wanted.probabilities, abs=1e-5)
    judged, again = evaluate(trained.weights), evaluate(exported[ending])
    assert torch.equal(judged.predictions, again.predictions)
    assert again.loss == pytest.approx(judged.loss, rel=1e-4)
    with pytest.raises(InputError, match=r"is in deployed form.*training form"):
        explain(exported[ending])
    with pytest.raises(InputError, match="already in deployed form"):
        deploy(exported[ending], [tmp_path / "again.safetensors"])


@pytest.mark.slow
def test_exported_files_say_how_they_are_used(trained: TrainResult, exported: dict[str, Path]) -> None:
    onnx, openvino = pytest.importorskip("onnx"), pytest.importorskip("openvino")
    network = onnx.load(exported["onnx"])
    axes = [dim.dim_param or dim.dim_value for dim in network.graph.input[0].type.tensor_type.shape.dim]
    assert axes == ["batch", xvolution.load(trained.weights).metadata.preprocessing.channels, "height", "width"]
    assert [value.name for value in (*network.graph.input, *network.graph.output)] == ["images", "logits"]
    (logits,) = network.graph.output
    assert logits.type.tensor_type.shape.dim[0].dim_param == "batch"
    onnx.checker.check_model(network)
    model = openvino.Core().read_model(exported["xml"])
    assert [model.input(0).any_name, model.output(0).any_name] == ["images", "logits"]
    assert model.input(0).node.layout == openvino.Layout("NCHW")
    headers = [json.loads(model.get_rt_info("xvolution").astype(str))]
    headers.append(json.loads({entry.key: entry.value for entry in network.metadata_props}["xvolution"]))
    extra = {"xvolution": ""}
    torch.export.load(exported["pt2"], extra_files=extra)
    headers.append(json.loads(extra["xvolution"]))
    for header in headers:
        assert header["class_names"] == [str(digit) for digit in range(10)]
        assert header["preprocessing"]["image_size"] == 16
        assert header["form"] == "deployed"
    assert not list(exported["xml"].parent.glob("*.json"))


@pytest.mark.slow
def test_files_with_their_metadata_beside_them_are_read(exported: dict[str, Path], tmp_path: Path) -> None:
    """As versions before 0.2.0 wrote them."""
    from xvolution.deploy.runtimes import Labels, OpenVino

    path = tmp_path / "model.xml"
    described = json.dumps(read_exported_header(exported["xml"], OpenVino()))
    for ending in (".xml", ".bin"):
        path.with_suffix(ending).write_bytes(exported["xml"].with_suffix(ending).read_bytes())
    text = path.read_text(encoding="utf-8")
    path.write_text("\n".join(line for line in text.splitlines() if "<xvolution" not in line), encoding="utf-8")
    OpenVino().label(path, Labels(["x"], ["linear"]))
    with pytest.raises(InputError, match="does not say how to prepare its images"):
        xvolution.load(path)
    (tmp_path / "model.xml.json").write_text(described)
    images = torch.randn(2, 3, 16, 16)[:, : xvolution.load(path).metadata.preprocessing.channels]
    torch.testing.assert_close(
        xvolution.load(path)(images), xvolution.load(exported["onnx"])(images), rtol=0, atol=1e-4
    )


@pytest.mark.slow
def test_a_damaged_archive_is_refused(exported: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "model.pt2"
    content = bytearray(exported["pt2"].read_bytes())
    content[content.find(b"data/weights/weight_0") + 200] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(InputError, match="damaged"):
        xvolution.load(path)


def test_the_command_writes_a_table_json_and_a_page(
    trained: TrainResult, photos: Path, tmp_path: Path, capsys: Any
) -> None:
    (photos / "broken.jpg").write_text("no image")
    names = {flag: tmp_path / f"out.{flag}" for flag in ("csv", "json", "page")}
    flags = [part for flag, path in names.items() for part in (f"--{flag}", str(path))]
    command = ["predict", str(trained.weights), str(photos), *flags, "--top", "2", "--pictures-on-page", "2"]
    assert main(command) == 2
    assert "broken.jpg is not a readable image" in capsys.readouterr().err
    with pytest.warns(UserWarning, match=r"skipped: .*broken\.jpg"):
        assert main([*command, "--on-bad-image", "skip"]) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    assert last.startswith("3 pictures: ")
    assert last.endswith(", 1 unreadable picture left out")
    rows = list(csv.DictReader(names["csv"].open(encoding="utf-8")))
    answers = json.loads(names["json"].read_text())
    assert [(row["picture"], row["rank"]) for row in rows[:3]] == [
        (str(photos / "a.jpg"), "1"),
        (str(photos / "a.jpg"), "2"),
        (str(photos / "b.jpg"), "1"),
    ]
    for row, (answer, found) in zip(rows, ((a, c) for a in answers for c in a["classes"]), strict=True):
        assert (row["picture"], row["class"]) == (answer["picture"], found["name"])
        assert float(row["probability"]) == found["probability"]
    assert lines[0] == f"{photos / 'a.jpg'}        " + "  ".join(
        f"{found['name']} {found['probability']:.1%}" for found in answers[0]["classes"]
    )
    page = names["page"].read_text(encoding="utf-8")
    assert page.count("data:image/jpeg;base64,") == 2
    assert "The first 2 of 3 pictures are shown" in page
    assert "broken.jpg" in page
    assert "http" not in page


def test_files_folders_and_patterns_name_pictures(photos: Path) -> None:
    assert picture_files([photos / "b.jpg", photos]) == [
        photos / name for name in ("b.jpg", "a.jpg", "b.jpg", "below/c.jpg")
    ]
    assert picture_files([f"{photos}/*.jpg"]) == [photos / "a.jpg", photos / "b.jpg"]
    assert picture_files([f"{photos}/**/c.*"]) == [photos / "below" / "c.jpg"]
    for given, sentence in (
        (photos / "d.jpg", "there is no file"),
        (f"{photos}/*.png", "no image matches"),
        (photos / "nothing", "there are no images in"),
    ):
        (photos / "nothing").mkdir(exist_ok=True)
        with pytest.raises(InputError, match=sentence):
            picture_files([given])


def test_options_of_other_tasks_and_numbers_out_of_range_are_refused(trained: TrainResult, photos: Path) -> None:
    for options, sentence in (
        ({"score_threshold": 0.5}, "--score-threshold cannot be used for a classifier"),
        ({"batch_size": 0}, "--batch-size is 0"),
        ({"on_bad_image": "guess"}, "it must be error or skip"),
        ({"pictures_on_page": -1}, "--pictures-on-page is -1"),
        ({"max_pixels": 0}, "--max-pixels is 0"),
    ):
        with pytest.raises(InputError, match=sentence):
            predict(trained.weights, photos, device="cpu", **options)  # type: ignore[arg-type]
    (photos / "a.jpg").write_text("no image")
    with pytest.raises(BadImage, match=r"a\.jpg is not a readable image"):
        xvolution.load(trained.weights).predict(photos / "a.jpg")
    with pytest.raises(InputError, match="there was no readable picture"), pytest.warns(UserWarning, match="skipped"):
        predict(trained.weights, photos / "a.jpg", on_bad_image="skip")


def test_logits_that_are_no_numbers_are_refused(trained: TrainResult, photos: Path) -> None:
    model = xvolution.load(trained.weights, "cpu")
    assert isinstance(model, ClassifierPredictor)
    with torch.no_grad():
        model.model.fc.bias.fill_(float("nan"))  # type: ignore[union-attr, operator]
    with pytest.raises(InputError, match="with NaN values"):
        model.predict(photos / "a.jpg")


def test_loading_says_which_extra_is_missing() -> None:
    program = (
        "import sys\n"
        "sys.modules['lightning'] = None\n"
        "import xvolution\n"
        "assert 'timm' not in sys.modules\n"
        "try:\n    xvolution.load('model.onnx')\n"
        "except ImportError as error:\n    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("xvolution.load needs lightning")
    assert "pip install 'xvolution[train]'" in done.stdout


def test_real_photographs_get_names(test_data: Path, trained: TrainResult, capsys: Any) -> None:
    folder = test_data / "clothing" / "validation" / "hat"
    if not folder.is_dir():
        pytest.skip(f"there is no {folder}")
    assert main(["predict", str(trained.weights), str(folder)]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(list(folder.iterdir())) + 1
