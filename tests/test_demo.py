"""The demo writes what it promises, finds finished trainings again, and refuses a deployed form that differs."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
import torch
from torch import nn

from xvolution.cli import main
from xvolution.demo import measure, recipe
from xvolution.demo.measure import Equality, Images, Twin, compare_forms
from xvolution.demo.page import summary
from xvolution.demo.recipe import Recipe
from xvolution.training import InputError, RunError, once
from xvolution.training.once import train_once


class References(HTMLParser):
    """Collects what a page would load, and the text it shows."""

    def __init__(self):
        super().__init__()
        self.loads, self.text = [], []

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        loads = [values.get(name) for name in ("src", "href", "xlink:href") if tag != "a"]
        self.loads += [value for value in loads if value and not value.startswith(("data:", "#"))]

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    assert main(["demo", "--quick", "--epochs", "1", "--output", str(folder)]) == 0
    return folder


@pytest.mark.slow
def test_the_page_stands_alone(demo):
    text = (demo / "index.html").read_text(encoding="utf-8")
    page = References()
    page.feed(text)
    assert page.loads == []
    assert text.count("<svg") == 3
    assert not re.search(r"@import|url\((?!#)", text)
    assert "nothing about accuracy" in " ".join("".join(page.text).split())


@pytest.mark.slow
def test_results_say_how_they_were_made(demo):
    results = json.loads((demo / "results.json").read_text(encoding="utf-8"))
    conditions = results["conditions"]
    assert {"command", "commit", "data", "device", "recipe", "versions"} <= conditions.keys()
    assert results["seeds"] == [0]
    assert len(results["curves"]["conv"][0]) == 1
    assert all(found["predictions_that_differ"] == 0 for form in results["equality"].values() for found in form)
    assert results["largest_difference"] < 1e-3
    assert {row["form"] for row in results["latency"]} == {"conv", "training", "deployed"}
    assert results["cost"]["deployed"]["flops"] > results["cost"]["conv"]["flops"]


@pytest.mark.slow
def test_reported_accuracy_is_that_of_the_last_epoch(demo):
    results = json.loads((demo / "results.json").read_text(encoding="utf-8"))
    for operator in ("conv", "xvolution"):
        assert results["accuracy"][operator][0] == pytest.approx(results["curves"][operator][0][-1], abs=1e-6)


@pytest.mark.slow
def test_a_second_call_trains_nothing(demo, monkeypatch):
    def refuse(config):
        raise AssertionError("a finished training was trained again")

    monkeypatch.setattr(once, "train", refuse)
    for operator in recipe.OPERATORS:
        quick = Recipe.choose(quick=True, seeds=None, epochs=1)
        assert train_once(quick.training(operator, 0, demo / "runs")).reused


def test_another_recipe_is_another_folder(tmp_path):
    quick = Recipe.choose(quick=True, seeds=None, epochs=None)
    config = quick.training("conv", 0, tmp_path)
    assert config.run_dir != replace(quick, epochs=quick.epochs + 1).training("conv", 0, tmp_path).run_dir
    assert config.run_dir == quick.training("conv", 0, tmp_path).run_dir


def test_an_interrupted_training_goes_on(tmp_path, monkeypatch):
    config = Recipe.choose(quick=True, seeds=None, epochs=1).training("conv", 0, tmp_path)
    config.run_dir.mkdir()
    (config.run_dir / "last.ckpt").touch()
    seen = []

    def stop(given):
        seen.append(given.resume)
        raise KeyboardInterrupt

    monkeypatch.setattr(once, "train", stop)
    with pytest.raises(KeyboardInterrupt):
        train_once(config)
    assert seen == ["last"]


@pytest.mark.parametrize("seeds", [[], [1, 1]])
def test_bad_seeds_are_named(seeds):
    with pytest.raises(InputError, match="give at least one seed, and each seed only once"):
        Recipe.choose(quick=True, seeds=seeds, epochs=None)


def test_bad_epochs_end_with_a_sentence(tmp_path, capsys):
    assert main(["demo", "--epochs", "0", "--output", str(tmp_path)]) == 2
    assert "at least 1" in capsys.readouterr().err


def linear(scale: float) -> nn.Module:
    layer = nn.Linear(2, 3, bias=False)
    layer.weight.data = scale * torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    return layer


def test_equality_measures_the_logits():
    expected = torch.tensor([[4.0, 1.0], [0.0, 2.0]])
    actual = torch.tensor([[4.0, 1.0], [2.5, 2.0]])
    assert Equality.between(expected, actual) == Equality(1, 2.5, 2.5 / 4.0)


def test_a_deployed_form_that_differs_fails_the_demo():
    images = Images(torch.rand(5, 2), torch.zeros(5, dtype=torch.long), ["a"], 0)
    same = compare_forms(Twin(linear(1.0), linear(1.0), linear(1.0), {}), images)
    assert same["torch"] == Equality(0, 0.0, 0.0)
    with pytest.raises(RunError, match="in ONNX Runtime does not match the trained network"):
        compare_forms(Twin(linear(1.0), linear(1.0), linear(1.01), {}), images)


def test_the_summary_says_whether_seeds_overlap():
    cost = {form: {"parameters": 10, "flops": 20} for form in measure.FORMS}
    figures = {
        "cost": cost,
        "latency": [],
        "images": 200,
        "accuracy": {"conv": [0.90, 0.92], "xvolution": [0.93, 0.95]},
    }
    found = summary(figures)
    assert found["apart"]
    assert found["points"] == pytest.approx(3.0)
    assert found["images"] == pytest.approx(6.0)
    figures["accuracy"]["xvolution"] = [0.91, 0.95]
    assert not summary(figures)["apart"]
