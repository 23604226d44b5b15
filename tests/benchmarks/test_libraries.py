"""The run over networks of other libraries: what it says of one network, and of libraries that are not there."""

import json

import pytest
import torch
from torch import nn

from benchmarks.libraries import __main__ as command
from benchmarks.libraries.check import examine
from benchmarks.libraries.networks import Sample, image, samples
from benchmarks.libraries.page import render
from tests.core.networks import SmallNet


class ReadsWeight(SmallNet):
    def forward(self, x):
        return super().forward(x) * self.layer1.conv1.weight.mean()


def sample(build, name="net"):
    return Sample("torch", name, build, image(16))


def test_a_network_is_converted_deployed_and_compared():
    record = examine(sample(SmallNet))
    assert (record["status"], record["replaced"], record["norms_moved"], record["dtype"]) == (
        "converted",
        4,
        4,
        "float64",
    )
    assert record["left"] == {"the stem": 1}
    assert record["conversion_error"] == 0
    assert record["deployment_error"] <= 1e-12
    assert record["float32"] == "accepted"


@pytest.mark.parametrize(
    ("build", "status", "sentence"),
    [
        (lambda: nn.Sequential(nn.Conv2d(3, 3, 3)), "nothing to convert", "selects no convolution"),
        (ReadsWeight, "refused", "reads layer1.conv1.weight"),
        (lambda: nn.Sequential(nn.Linear(3, 3)), "unusable", "mat1 and mat2"),
        (lambda: torch.no_such_network, "unusable", "no attribute 'no_such_network'"),
    ],
)
def test_what_is_not_converted_has_a_reason(build, status, sentence):
    record = examine(sample(build))
    assert record["status"] == status
    assert sentence in record["reason"]


def test_names_are_their_own():
    names = [each.key for each in samples()]
    assert len(names) == len(set(names)) > 100


def test_the_record_counts_and_goes_on(tmp_path, monkeypatch, capsys):
    path = tmp_path / "libraries.json"
    missing = Sample("no_such_library", "net", SmallNet, image(16))
    monkeypatch.setattr(command, "samples", lambda: [sample(SmallNet), sample(ReadsWeight, "reads"), missing])
    monkeypatch.setattr(command, "_examined", lambda each, timeout, memory: examine(each))
    assert command.main(["--output", str(path)]) == 0
    assert "no_such_library is not installed; its 1 networks are skipped" in capsys.readouterr().out
    stored = json.loads(path.read_text())
    assert {
        name: stored["summary"][name] for name in ("networks", "converted", "refused", "convolutions_replaced")
    } == {
        "networks": 2,
        "converted": 1,
        "refused": 1,
        "convolutions_replaced": 4,
    }
    assert set(stored["libraries"]) == {"torch"}
    page = render(stored)
    assert "| all | 2 | 1 | 4 | 0 |" in page
    assert "| `torch/reads` | refused | ConversionError: the network reads layer1.conv1.weight" in page
    assert "<summary>torch (1 converted, 1 refused)</summary>" in page
    assert "<tr><td>net</td><td>4</td><td>1 the stem</td><td>0e+00</td>" in page
    monkeypatch.setattr(command, "_examined", lambda *_: pytest.fail("examined again"))
    assert command.main(["--output", str(path), "--resume"]) == 0
    assert command.main(["--output", str(path), "--only", "no_such_library/*"]) == 2
