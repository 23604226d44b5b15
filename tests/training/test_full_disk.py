"""A full disk leaves all of an export or nothing, in every format."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.training.test_bad_input import largest_file
from xvolution.deploy.runtimes import runtime_for
from xvolution.training import RunError, deploy
from xvolution.training.fit import TrainResult


@pytest.mark.parametrize("ending", [".safetensors", ".onnx", ".pt2", ".xml"])
def test_an_export_is_whole_or_not_there(trained: TrainResult, tmp_path: Path, ending: str) -> None:
    pytest.importorskip("openvino")
    path = tmp_path / f"network{ending}"
    with largest_file(20_000), pytest.raises(RunError, match=r"could not be written|was not written"):
        deploy(trained.weights, [path], layout="split")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("ending", [".pt2", ".xml"])
def test_what_describes_an_export_comes_with_it(trained: TrainResult, tmp_path: Path, ending: str) -> None:
    pytest.importorskip("openvino")
    path = tmp_path / "models" / f"network{ending}"
    result = deploy(trained.weights, [path], layout="split")
    assert [report.path for report in result.reports] == [path]
    assert json.loads(runtime_for(path).properties(path)["xvolution"]) == result.metadata.to_dict()
    runtime_for(path).load(path)(torch.zeros(1, 3, 16, 16))
    assert {each.name for each in path.parent.iterdir()} <= {path.name, "network.bin"}


def test_an_export_into_a_link_replaces_what_it_leads_to(trained: TrainResult, tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    link = tmp_path / "network.onnx"
    link.symlink_to(tmp_path / "far" / "network.onnx")
    deploy(trained.weights, [link], layout="split")
    assert link.is_symlink()
    assert (tmp_path / "far" / "network.onnx").is_file()
