"""TensorRT by ONNX Runtime's provider, with a stand-in for its sessions: nothing of this was run on a GPU."""

import pytest
import torch
from torch import nn

from xvolution import ExportError, XVolution2d, choose_layouts, export
from xvolution.deploy.runtimes import RUNTIMES, runtime_for
from xvolution.deploy.runtimes.tensorrt_runtime import PROVIDER

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

CPU = "CPUExecutionProvider"
InferenceSession = onnxruntime.InferenceSession


class StandIn:
    """ONNX Runtime's own CPU session, which says that TensorRT computes it."""

    used = (PROVIDER, CPU)

    def __init__(self, model, options, providers):
        assert providers == [PROVIDER]
        assert options.get_session_config_entry("session.disable_cpu_ep_fallback") == "1"
        self.session = InferenceSession(model, providers=[CPU])
        self.fallback = True

    def disable_fallback(self):
        self.fallback = False

    def get_providers(self):
        return list(self.used)

    def run(self, *arguments):
        assert not self.fallback
        return self.session.run(*arguments)

    def __getattr__(self, name):
        return getattr(self.session, name)


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "0")
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [PROVIDER, CPU])
    monkeypatch.setattr(onnxruntime, "InferenceSession", StandIn)


@pytest.fixture
def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU()).eval()


def test_a_file_is_written_and_run_where_the_provider_is(tmp_path, network, gpu):
    x, path = torch.randn(2, 3, 12, 12), tmp_path / "model.tensorrt.onnx"
    report = export(network, path, x, properties={"about": "dogs"})
    assert (report.format, report.dynamic, report.not_run) == ("tensorrt.onnx", "batch and image size", "")
    runtime = runtime_for(path)
    assert runtime.name == "tensorrt"
    assert runtime_for(tmp_path / "model.onnx").name == "onnxruntime"
    assert runtime.is_intact(path)
    assert runtime.properties(path) == {"about": "dogs"}
    torch.testing.assert_close(runtime.load(path)(x)[0], network(x).detach())


def test_without_the_provider_nothing_is_written_and_timed(tmp_path, network, monkeypatch):
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CPU])
    sentence = (
        f"this ONNX Runtime has {CPU} and no {PROVIDER}; on a machine with an NVIDIA GPU, install onnxruntime-gpu"
    )
    with pytest.raises(ExportError, match=f"^TensorRT cannot run here: {sentence}"):
        export(network, tmp_path / "model.tensorrt.onnx", torch.randn(2, 3, 12, 12))
    assert not list(tmp_path.iterdir())
    export(network, tmp_path / "model.onnx", torch.randn(2, 3, 12, 12))
    (tmp_path / "model.onnx").rename(tmp_path / "model.tensorrt.onnx")
    with pytest.raises(ExportError, match=r"^TensorRT cannot run here"):
        RUNTIMES["tensorrt"].load(tmp_path / "model.tensorrt.onnx")
    operator = XVolution2d(8, 8, 3, padding=1).eval()
    choice = choose_layouts(operator, torch.randn(1, 8, 9, 9), "tensorrt")
    assert choice.seconds == {}
    assert PROVIDER in choice.reason


def test_another_provider_in_its_place_is_refused(tmp_path, network, gpu, monkeypatch):
    other = type("Other", (StandIn,), {"used": ("CUDAExecutionProvider", CPU)})
    monkeypatch.setattr(onnxruntime, "InferenceSession", other)
    assert RUNTIMES["tensorrt"].unrunnable() == (
        f"{PROVIDER} does not start: ONNX Runtime took CUDAExecutionProvider, {CPU} in its place; it needs an NVIDIA GPU with "
        "its driver, CUDA and TensorRT"
    )
    with pytest.raises(ExportError, match="TensorRT cannot run here"):
        export(network, tmp_path / "model.tensorrt.onnx", torch.randn(2, 3, 12, 12))


def test_a_listed_provider_that_fails_is_said(gpu, monkeypatch):
    def fail(*arguments, **options):
        raise RuntimeError("libnvinfer.so.10: cannot open shared object file\nand more")

    monkeypatch.setattr(onnxruntime, "InferenceSession", fail)
    said = RUNTIMES["tensorrt"].unrunnable()
    assert said == f"{PROVIDER} does not start: libnvinfer.so.10: cannot open shared object file"


def test_this_machine_says_whether_it_runs_it():
    assert RUNTIMES["tensorrt"].is_installed()
    reason = RUNTIMES["tensorrt"].unrunnable()
    assert (PROVIDER in reason) == bool(reason)
