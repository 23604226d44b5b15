"""The coverage run: real architectures, its limits, resuming, and the page."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks.coverage import __main__ as command
from benchmarks.coverage import check
from benchmarks.coverage.__main__ import main
from benchmarks.coverage.check import examine
from benchmarks.coverage.networks import Architecture, architectures
from benchmarks.coverage.outlook import left_behind
from benchmarks.coverage.page import render
from benchmarks.coverage.run import Limits, Results, examine_all

ROOT = Path(__file__).parents[2]
RESNET = Architecture("timm", "test_resnet")
VIT = Architecture("timm", "test_vit")


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """A results file with a convolutional network, a transformer and a segmentation network."""
    path = tmp_path_factory.mktemp("coverage") / "coverage.json"
    # In a process of its own, as users start it: a fork of one that has trained, as other tests do, cannot run a backward pass.
    start = [sys.executable, "-m", "benchmarks.coverage", "--output", str(path), "--jobs", "1", "--only"]
    for name in ("timm/test_resnet", "timm/test_vit", "torchvision/lraspp_mobilenet_v3_large"):
        subprocess.run([*start, name], check=True, cwd=ROOT)
    return path


def _run(wanted, examination, limits):
    records = {}
    examine_all(wanted, lambda a, record: records.update({a.key: record}), limits, 2, examination)
    return records


def test_every_name_but_the_quantizable_ones():
    names = architectures()
    assert len({architecture.key for architecture in names}) == len(names) > 1000
    assert {architecture.task for architecture in names} == {
        "classification",
        "segmentation",
        "detection",
        "video",
        "optical_flow",
    }
    assert not any("quantized" in architecture.name for architecture in names)


def test_convolutions_are_replaced_and_equal(results):
    records = json.loads(results.read_text())["architectures"]
    for key in ("timm/test_resnet", "torchvision/lraspp_mobilenet_v3_large"):
        record = records[key]
        assert record["status"] == "equal"
        assert record["replaced"] > 0
        assert record["unreached"] == 0
        assert record["conversion_error"] == 0
        assert 0 < record["deployment_error"] < 1e-4
    assert records["torchvision/lraspp_mobilenet_v3_large"]["family"] == "segmentation.lraspp"


def test_a_transformer_has_nothing_to_convert(results):
    record = json.loads(results.read_text())["architectures"]["timm/test_vit"]
    assert record["status"] == "nothing to convert"
    assert record["reason"] == "no spatial convolution behind the stem"


def test_finished_names_are_not_repeated(results, monkeypatch, capsys):
    monkeypatch.setattr(command, "examine_all", lambda wanted, *rest: print("wanted", [a.key for a in wanted]))
    main(["--output", str(results), "--only", "test_resnet"])
    main(["--output", str(results), "--only", "timm/test_*net"])
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "wanted []"
    assert "timm/test_resnet" not in printed[2]
    assert "timm/test_efficientnet" in printed[2]


def test_failed_names_are_repeated_on_request(tmp_path, monkeypatch, capsys):
    path = tmp_path / "coverage.json"
    failed = {"family": "resnet", "task": "classification", "status": "failed", "reason": "killed"}
    Results(path).add(RESNET, failed)
    monkeypatch.setattr(command, "examine_all", lambda wanted, *rest: print([a.key for a in wanted]))
    assert main(["--output", str(path), "--only", "test_resnet"]) == 1
    assert main(["--output", str(path), "--only", "test_resnet", "--retry"]) == 1
    assert capsys.readouterr().out.splitlines()[::2] == ["[]", "['timm/test_resnet']"]


def test_other_versions_are_not_mixed(tmp_path, capsys):
    path = tmp_path / "coverage.json"
    Results(path).add(VIT, {"status": "equal"})
    stored = json.loads(path.read_text())
    stored["versions"]["timm"] = "0.0.1"
    path.write_text(json.dumps(stored))
    assert main(["--output", str(path), "--only", "test_vit"]) == 2
    assert "was measured with timm 0.0.1" in capsys.readouterr().err


def test_a_pattern_without_a_match(tmp_path, capsys):
    assert main(["--output", str(tmp_path / "c.json"), "--only", "nothing*"]) == 2
    assert "matches no architecture" in capsys.readouterr().err


def _sleep_unless_vit(architecture):
    if architecture is not VIT:
        time.sleep(600)
    return {"status": "equal"}


def test_a_slow_one_is_killed_and_the_others_go_on():
    records = _run([RESNET, VIT], _sleep_unless_vit, Limits(timeout=2))
    assert records["timm/test_resnet"]["reason"] == "took longer than 2 s"
    assert records["timm/test_vit"]["status"] == "equal"


def _allocate(architecture):
    torch.ones(2**33)
    return {"status": "equal"}


def _crash(architecture):
    os._exit(7)


@pytest.mark.parametrize(
    ("examination", "reason"),
    [(_allocate, "needs more than 4 GiB of memory"), (_crash, "the process ended with exit code 7")],
)
def test_what_goes_wrong_is_a_sentence(examination, reason):
    record = _run([RESNET], examination, Limits(memory_gib=4))["timm/test_resnet"]
    assert (record["status"], record["reason"]) == ("failed", reason)


def test_a_deployed_form_that_differs_fails(monkeypatch):
    def wrong(network, **options):
        deployed = original(network, **options)
        with torch.no_grad():
            next(m for m in deployed.modules() if hasattr(m, "layout")).conv.bias += 0.1
        return deployed

    original = check.reparameterize
    monkeypatch.setattr(check, "reparameterize", wrong)
    record = examine(RESNET)
    assert record["status"] == "failed"
    assert "outputs differ in float64" in record["reason"]


def test_what_stays_is_told_by_class():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 1), nn.ConvTranspose2d(4, 4, 2))
    assert left_behind(network, ["1"]) == {"1x1": 1, "ConvTranspose2d": 1, "stem": 1}


def test_the_page_counts_and_repeats_itself(results):
    stored = json.loads(results.read_text())
    stored["architectures"]["timm/broken"] = {
        "family": "a<b",
        "task": "classification",
        "status": "failed",
        "reason": "x | y",
    }
    page = render(stored)
    assert page == render(dict(reversed(stored.items())))
    assert "| all | 2 | 1 | 0 | 1 | 4 |" in page
    assert "| `timm/broken` | x \\| y |" in page
    assert "<summary>timm: a&lt;b (1 failed)</summary>" in page
    assert "## Failing" not in render(json.loads(results.read_text()))


@pytest.mark.parametrize(
    ("operator", "network", "equal"), [(1e-14, 1e-9, True), (1e-11, 1e-9, False), (1e-14, 1e-6, False)]
)
def test_in_float64_every_operator_has_to_agree(operator, network, equal):
    errors = {"conversion_error": 0.0, "deployment_error": network, "operator_error": operator}
    assert check._is_equal({"dtype": "float64", **errors}) is equal
