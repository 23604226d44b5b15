"""The table of files: what is counted, run and said of each."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from tests.core.networks import SmallNet, randomize
from xvolution import XVolutionConfig, convert, export
from xvolution.deploy.runtimes import RUNTIMES, base
from xvolution.deploy.shipping import ShippingTable, absent_runtimes, compare_file, predicted, without_zero_scales


@pytest.fixture
def trained() -> nn.Module:
    torch.manual_seed(0)
    return randomize(convert(SmallNet(), XVolutionConfig(zero_init=False))).eval()


@pytest.mark.parametrize("dynamic", [True, False])
@pytest.mark.parametrize("name", ["onnxruntime", "torch_export", "ncnn"])
def test_a_file_is_weighed_run_and_compared(trained: nn.Module, tmp_path: Path, name: str, dynamic: bool) -> None:
    runtime = RUNTIMES[name]
    for package in (*runtime.packages, *runtime.writer_packages):
        pytest.importorskip(package)
    example = torch.randn(3, 3, 16, 16)
    batches = [torch.randn(4, 3, 16, 16), torch.randn(6, 3, 16, 16)]
    predictions = predicted(trained, batches)
    assert torch.equal(predictions, torch.cat([trained(batch).argmax(1) for batch in batches]))
    predictions = predictions + torch.zeros(10, dtype=torch.int64).index_fill(0, torch.tensor([0, 5, 9]), 1)
    path = tmp_path / f"model{runtime.ending}"
    report = export(trained, path, example, layout="split", dynamic=dynamic)
    found = compare_file(report, SmallNet().eval(), example, batches, predictions, threads=1, rounds=2)
    assert found.agreement == pytest.approx(0.7)
    assert found.bytes == sum(file.stat().st_size for file in tmp_path.iterdir())
    assert (found.path, found.runtime, found.version) == (path, name, runtime.version())
    assert found.layouts == {"split": 4}
    assert found.max_difference == report.max_difference
    assert min(found.seconds, found.plain_seconds, found.ratio) > 0
    assert compare_file(report, SmallNet().eval(), example, rounds=1).agreement is None


def test_the_plain_network_is_timed_without_scales_of_zero() -> None:
    plain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.BatchNorm2d(4))
    nn.init.zeros_(plain[1].weight)
    nn.init.constant_(plain[2].weight, 0.5)
    alive = without_zero_scales(plain)
    assert [layer.weight.tolist() for layer in alive[1:]] == [[1] * 4, [0.5] * 4]
    assert not alive[1].bias.any()
    assert not plain[1].weight.any()


def test_what_is_not_installed_is_named_with_its_command(
    trained: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = export(trained, tmp_path / "model.pt2", torch.randn(2, 3, 16, 16))
    file = compare_file(report, SmallNet().eval(), torch.randn(2, 3, 16, 16), rounds=1)
    monkeypatch.setattr(base, "find_spec", lambda package: None)
    absent = absent_runtimes(["torch_export", "ncnn", "onnxruntime"])
    assert absent == {"ncnn": 'pip install "xvolution[ncnn]"', "onnxruntime": 'pip install "xvolution[export]"'}
    said = str(ShippingTable([file], 1, 0, {"mnn": "it has no such operator"}, absent)).splitlines()
    assert said[0].split()[:3] == ["file", "MB", "runtime"]
    assert said[1].startswith(str(tmp_path / "model.pt2"))
    assert (
        said[2]
        == "latency by 1 thread: medians, measured in turns with the plain network; predictions were not compared; give --data"
    )
    assert said[3:] == [
        "MNN: not written, because it has no such operator",
        'ncnn: not installed; pip install "xvolution[ncnn]"',
        'ONNX Runtime: not installed; pip install "xvolution[export]"',
    ]
