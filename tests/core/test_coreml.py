"""CoreML: what is written is read back; it is run on macOS alone, where nothing of this was tried."""

import math
import platform

import pytest
import torch
from torch import nn

from tests.core.networks import SmallNet, randomize
from xvolution import ExportError, XVolutionConfig, choose_layouts, convert, export, reparameterize
from xvolution.attention import PixelShift
from xvolution.deploy.runtimes import RUNTIMES, CoreMl, Runtime, base
from xvolution.deploy.runtimes.coreml_runtime import CoreMlModel

needs_coremltools = pytest.mark.skipif(base.find_spec("coremltools") is None, reason="coremltools is not installed")


@pytest.fixture
def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.ConvTranspose2d(8, 4, 2, 2)).eval()


@pytest.fixture
def x():
    return torch.randn(2, 3, 12, 12)


@pytest.fixture
def linux(monkeypatch):
    monkeypatch.setattr(platform, "system", lambda: "Linux")


@needs_coremltools
def test_a_package_is_written_read_back_and_not_run(tmp_path, network, x, linux):
    path = tmp_path / "model.mlpackage"
    report = export(network, path, x, input_names=["images"], output_names=["maps"], properties={"about": "dogs"})
    assert (report.format, report.dynamic) == ("mlpackage", "none")
    assert "its open axes could not be tried without macOS" in report.reason
    assert report.not_run == "its packages run on macOS alone, and this is Linux"
    assert math.isnan(report.max_difference)
    runtime = RUNTIMES["coreml"]
    assert runtime.properties(path) == {"about": "dogs"}
    assert [file.name for file in tmp_path.iterdir()] == ["model.mlpackage"]
    assert {"Manifest.json", "model.mlmodel", "weight.bin"} <= {file.name for file in runtime.files_of(path)}
    with pytest.raises(ExportError, match="CoreML cannot run here: its packages run on macOS alone, and this is Linux"):
        runtime.load(path)
    export(network, path, x, dynamic=False)
    assert runtime.properties(path) == {}
    with pytest.raises(FileNotFoundError, match="there is no file"):
        runtime.properties(tmp_path / "none.mlpackage")


@needs_coremltools
@pytest.mark.parametrize("layout", ["single", "split", "parts"])
def test_deployed_networks_have_their_convolutions(tmp_path, linux, layout):
    torch.manual_seed(0)
    attention = PixelShift(pooled_key=True, gate="sigmoid")
    trained = randomize(convert(SmallNet(), XVolutionConfig(attention=attention, zero_init=False))).eval()
    deployed = reparameterize(trained, layout=layout)
    report = export(deployed, tmp_path / "model.mlpackage", torch.randn(1, 3, 16, 20), dynamic=False)
    assert set(report.layouts.values()) == {layout}
    assert report.not_run


@needs_coremltools
def test_another_network_is_found_out(tmp_path, network, x, linux, monkeypatch):
    path = tmp_path / "model.mlpackage"
    write = CoreMl._write

    def write_another(self, program, *rest):
        write(self, torch.export.export(nn.Conv2d(3, 4, 1).eval(), (x,)), *rest)

    monkeypatch.setattr(CoreMl, "_write", write_another)
    with pytest.raises(ExportError, match="its transposed convolutions are 0, and those of the network 1"):
        export(network, path, x, dynamic=False)
    monkeypatch.setattr(CoreMl, "_write", write)
    with pytest.raises(ExportError, match="opset_version is 18, but only ONNX files have one"):
        export(network, path, x, opset_version=18)
    assert not list(tmp_path.iterdir())


@needs_coremltools
def test_nothing_is_timed_where_nothing_runs(linux):
    trained = randomize(convert(SmallNet(), XVolutionConfig(zero_init=False))).eval()
    choice = choose_layouts(trained, torch.randn(1, 3, 12, 12), "coreml")
    assert choice.seconds == {}
    assert choice.reason == "its packages run on macOS alone, and this is Linux"


class Feature:
    def __init__(self, name, shape=()):
        self.name = name
        self.type = self
        self.multiArrayType = self
        self.shape = shape


class StandIn:
    """In the place of ``MLModel`` on macOS: outputs in another order than the description's."""

    description = None

    def get_spec(self):
        self.description = self
        self.input = [Feature("x", (1, 3, 4, 4)), Feature("y", (1, 2))]
        self.output = [Feature("first"), Feature("second")]
        return self

    def predict(self, inputs):
        return {"second": inputs["y"] + 1, "first": inputs["x"] * 2}


def test_inputs_are_given_by_name_and_outputs_keep_their_order(tmp_path):
    model = CoreMlModel(CoreMl(), tmp_path / "model.mlpackage", StandIn())
    x, y = torch.randn(1, 3, 4, 4), torch.randn(1, 2)
    first, second = model(x, y)
    assert model.input_shapes == ((1, 3, 4, 4), (1, 2))
    assert torch.equal(first, 2 * x)
    assert torch.equal(second, y + 1)


def test_a_runtime_that_cannot_read_back_writes_nothing_that_it_cannot_run(tmp_path, monkeypatch, network, x):
    monkeypatch.setattr(Runtime, "unrunnable", lambda self: "the machine is too small")
    with pytest.raises(ExportError, match=r"^torch\.export cannot run here: the machine is too small$"):
        export(network, tmp_path / "model.pt2", x)
