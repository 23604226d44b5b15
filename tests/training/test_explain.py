"""The explanation of a trained network is what its forms answer, on a page that needs nothing else."""

import json
import re

import pytest
import torch

from xvolution.analysis import branch_statistics, silenced
from xvolution.cli import main
from xvolution.explain import explain
from xvolution.training import InputError, deploy, load_model, open_data, train
from xvolution.training.data import evaluation_loader


@pytest.fixture(scope="module")
def explained(trained, tmp_path_factory):
    folder = tmp_path_factory.mktemp("explained")
    arguments = [str(trained.checkpoint), "--output", str(folder), "--images", "100", "--batch-size", "40"]
    assert main(["explain", *arguments]) == 0
    return folder


def test_figures_are_what_the_forms_answer(trained, explained):
    figures = json.loads((explained / "results.json").read_text(encoding="utf-8"))
    model, metadata = load_model(trained.checkpoint)
    part = open_data(metadata.data).val
    chosen = part.subset(torch.linspace(0, len(part) - 1, 100, dtype=torch.float64).round().long().numpy())
    images = next(iter(evaluation_loader(chosen, metadata.preprocessing, 100)))
    averages = {name: found.mean for name, found in branch_statistics(model, [images["image"]]).items()}
    with torch.inference_mode():
        expected = model(images["image"])
        with silenced(model, averages):
            silent = model(images["image"])
    labels = images["target"]
    assert figures["data"] | {"images": 100, "of": len(part), "split": "val"} == figures["data"]
    assert figures["trained"]["top1"] == pytest.approx((expected.argmax(1) == labels).double().mean().item())
    assert figures["silent"]["loss"] == pytest.approx(
        torch.nn.functional.cross_entropy(silent, labels).item(), rel=1e-5
    )
    assert figures["silent"]["changed"] == int((silent.argmax(1) != expected.argmax(1)).sum())
    assert [row["operator"] for row in figures["operators"]] == list(averages)
    assert {"command", "commit", "device", "trained", "versions"} <= figures["conditions"].keys()


def test_the_page_stands_alone(explained):
    text = (explained / "index.html").read_text(encoding="utf-8")
    assert text.count("<svg") == 3
    assert not re.search(r"@import|url\((?!#)|<script|<link", text)
    assert not re.search(r'(?:src|href)="(?!#|data:)', text)


def test_a_branch_without_a_kernel_is_explained_too(tiny, tmp_path):
    run = train(tiny(epochs=1, operator="global", operator_options={"zero_init": False}))
    found = explain(run.checkpoint, images=20, output=tmp_path / "page", say=lambda line: None)
    assert all(row["kurtosis"] is None for row in found.figures["operators"])
    assert found.page.is_file()


def test_attention_that_has_hardly_begun_to_speak_is_said_after_training_and_on_the_page(tiny, tmp_path, capsys):
    run = train(tiny(epochs=1, limit_train_batches=1, lr=1e-6))
    assert "attention hardly contributes yet: it is at most " in capsys.readouterr().out
    found = explain(run.checkpoint, images=20, output=tmp_path / "page", say=lambda line: None)
    assert found.figures["asleep"].startswith("attention hardly contributes yet: it is at most ")
    assert "of the variance of an operator's output, on 20 images. Train longer" in found.figures["asleep"]
    assert found.figures["asleep"] in str(found)
    assert "Attention hardly contributes yet" in found.page.read_text(encoding="utf-8")
    assert max(row["share"] for row in found.figures["operators"]) < 1e-3


def test_attention_that_speaks_is_not_called_asleep(trained, explained):
    figures = json.loads((explained / "results.json").read_text(encoding="utf-8"))
    assert figures["asleep"] is None
    assert max(row["share"] for row in figures["operators"]) > 0.01
    assert "Attention hardly contributes" not in (explained / "index.html").read_text(encoding="utf-8")
    assert deploy(trained.checkpoint, [], layout="split").asleep is None


def test_what_cannot_be_explained_is_refused(trained, tiny, tmp_path):
    def refused(match, checkpoint=trained.checkpoint, **options):
        with pytest.raises(InputError, match=match):
            explain(checkpoint, output=tmp_path / "page", say=lambda line: None, **options)
        assert not (tmp_path / "page").exists()

    refused("number of images is 0", images=0)
    refused("there is no operator 'head' with attention in this network; it has layer2", operator="head")
    refused("there is no file", checkpoint=tmp_path / "none.ckpt")
    deployed = tmp_path / "deployed.safetensors"
    deploy(trained.checkpoint, [deployed])
    refused("is in deployed form, where attention is merged into convolutions", checkpoint=deployed)
    plain = train(tiny(epochs=1, limit_train_batches=1, operator="conv"))
    refused("this network has no X-volution with attention", checkpoint=plain.checkpoint)
