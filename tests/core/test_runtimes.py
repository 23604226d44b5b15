"""One file a runtime: what is registered exports, compares and times with nothing else changed."""

import re

import pytest
import torch
from torch import nn

from tests.core.networks import SmallNet, randomize
from xvolution import ExportError, XVolution2d, XVolutionConfig, choose_layouts, convert, export, reparameterize
from xvolution.attention import PixelShift
from xvolution.conversion.outputs import tensors_in
from xvolution.deploy.latency import measure_latency
from xvolution.deploy.runtimes import RUNTIMES, Labels, LoadedFile, OnnxRuntime, Runtime, base, register
from xvolution.deploy.runtimes.onnx_files import write_labels

#: The runtimes that are registered; those whose packages are missing are skipped.
WRITTEN = ["onnxruntime", "openvino", "torch_export", "ncnn", "mnn", "executorch", "litert", "coreml", "tensorrt"]


def installed(name):
    runtime = RUNTIMES[name]
    for package in (*runtime.packages, *runtime.writer_packages):
        pytest.importorskip(package)
    if runtime.unrunnable():
        pytest.skip(runtime.unrunnable())
    return runtime


class ToyFile(LoadedFile):
    def __init__(self, runtime, path, module):
        super().__init__(runtime, path)
        self.module = module

    def _run(self, inputs):
        with torch.no_grad():
            return tensors_in(self.module(*inputs))


class Toy(Runtime):
    """Writes the weights and runs the captured module with what it reads."""

    name = "toy"
    title = "Toy"
    ending = ".toy"
    packages = ()
    computes_in = {torch.float32: torch.float32}  # noqa: RUF012

    def version(self):
        return "1.0"

    def _write(self, program, path, opset_version):
        self.module = program.module()
        torch.save(self.module.state_dict(), path)

    def _load(self, path, threads, input_shapes):
        self.module.load_state_dict(torch.load(path, weights_only=True))
        return ToyFile(self, path, self.module)


@pytest.fixture
def toy():
    register(Toy)
    yield RUNTIMES["toy"]
    del RUNTIMES["toy"]


@pytest.fixture
def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 3, padding=1)).eval()


@pytest.fixture
def x():
    return torch.randn(2, 3, 12, 12)


def test_a_runtime_is_its_class_and_its_registration(tmp_path, toy, network, x):
    report = export(network, tmp_path / "model.toy", x)
    assert (report.format, report.dynamic, report.reason) == ("toy", "batch and image size", "")
    assert torch.load(report.path, weights_only=True).keys() == network.state_dict().keys()
    (y,) = toy.load(report.path)(x)
    torch.testing.assert_close(y, network(x))
    with pytest.raises(ExportError, match="Toy cannot run float16"):
        export(network.half(), tmp_path / "half.toy", x.half())
    with pytest.raises(
        ValueError,
        match=r"must end in \.mlpackage, \.mnn, \.ncnn\.param, \.onnx, \.pt2, \.pte, \.tensorrt\.onnx, \.tflite, "
        r"\.toy, \.xml",
    ):
        export(network, tmp_path / "model.h5", x)


def test_names_and_endings_differ(toy):
    with pytest.raises(ValueError, match=r"runtime 'toy' for \.toy collides"):
        register(Toy)
    with pytest.raises(ValueError, match=r"runtime 'other' for \.onnx collides with 'onnxruntime'"):
        register(type("Other", (Toy,), {"name": "other", "ending": ".onnx"}))


@pytest.mark.parametrize(
    ("owner", "method", "sentence"),
    [
        (Toy, "_write", r"the exporter to \.toy cannot write model\.toy: of a kind of its own"),
        (Toy, "_load", r"Toy cannot open model\.toy: of a kind of its own"),
        (ToyFile, "_run", r"Toy cannot run model\.toy: of a kind of its own"),
    ],
)
def test_whatever_a_runtime_raises_is_one_sentence(tmp_path, toy, network, x, monkeypatch, owner, method, sentence):
    class ForeignError(Exception):
        pass

    def fail(*arguments):
        raise ForeignError("of a kind of its own\nand a trace")

    monkeypatch.setattr(owner, method, fail)
    with pytest.raises(ExportError, match=f"^{sentence}; nothing was written$"):
        export(network, tmp_path / "model.toy", x)
    assert not list(tmp_path.iterdir())


def test_an_exporter_that_fails_says_why(tmp_path):
    """torch's exporter names a step, in colours and with a list of advice; the reason is in the error behind it."""

    class FiveDimensions(nn.Module):
        def forward(self, x):
            return torch.nn.functional.scaled_dot_product_attention(x, x, x)

    with pytest.raises(ExportError, match=r"cannot convert the model: .* \(only 4D query, .*\); nothing was") as caught:
        export(FiveDimensions().eval(), tmp_path / "model.onnx", torch.randn(2, 3, 2, 5, 4))
    assert "\x1b" not in str(caught.value)
    assert "Next steps" not in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("refused", "dynamic"), [("size", "batch"), ("batch", "none")])
@pytest.mark.parametrize("wrong", [False, True])
def test_a_graph_of_fewer_sizes_stays_with_fewer_open_axes(
    tmp_path, toy, network, x, monkeypatch, refused, dynamic, wrong
):
    run = ToyFile._run

    def run_known_sizes(self, inputs):
        (images,) = inputs
        known = images.shape[2:] == x.shape[2:] if refused == "size" else images.shape == x.shape
        if not known and not wrong:
            raise RuntimeError("no such size")
        return [y if known else y + 1 for y in run(self, inputs)]

    monkeypatch.setattr(ToyFile, "_run", run_known_sizes)
    report = export(network, tmp_path / "model.toy", x)
    assert report.dynamic == dynamic
    assert ("does not compute the same as the model" if wrong else "no such size") in report.reason
    assert "nothing was written" not in report.reason
    assert [file.name for file in tmp_path.iterdir()] == ["model.toy"]


@pytest.mark.parametrize("name", WRITTEN)
def test_files_are_loaded_for_some_threads_and_timed(tmp_path, network, x, name):
    runtime = installed(name)
    path = tmp_path / f"model{runtime.ending}"
    export(network, path, x)
    threads = torch.get_num_threads()
    loaded = {
        "one": runtime.load(path, threads=1),
        "fixed": runtime.load(path, threads=1, input_shapes=[x.shape]),
        "any": runtime.load(path),
    }
    for run in loaded.values():
        (y,) = run(x)
        torch.testing.assert_close(y, network(x).detach(), rtol=1e-4, atol=1e-5)
    assert torch.get_num_threads() == threads
    measured = measure_latency({key: lambda run=run: run(x) for key, run in loaded.items()}, rounds=2)
    assert set(measured.latencies) == set(loaded)
    assert runtime.version()[0].isdigit()


@pytest.mark.parametrize("name", WRITTEN)
def test_what_cannot_be_loaded_is_said(tmp_path, network, x, name):
    runtime = installed(name)
    path = tmp_path / f"model{runtime.ending}"
    with pytest.raises(FileNotFoundError, match="there is no file"):
        runtime.load(path)
    path.write_text("no network")
    with pytest.raises(ExportError, match=rf"{runtime.title} cannot open {re.escape(path.name)}: "):
        runtime.load(path)
    with pytest.raises(ValueError, match="threads is 0; give at least 1"):
        runtime.load(path, threads=0)
    export(network, path, x)
    with pytest.raises(ExportError, match=rf"{runtime.title} cannot run {re.escape(path.name)}: "):
        runtime.load(path)(torch.randn(2, 5, 12, 12))


def test_opening_needs_no_exporter(tmp_path, network, x, monkeypatch):
    pytest.importorskip("onnxruntime")
    path = tmp_path / "model.onnx"
    export(network, path, x)
    find_spec = base.find_spec
    monkeypatch.setattr(base, "find_spec", lambda package: find_spec(package) if package == "onnxruntime" else None)
    assert len(OnnxRuntime().load(path)(x)) == 1
    with pytest.raises(ExportError, match=r"exporting to \.onnx needs onnx, onnxscript; install xvolution\[export\]"):
        export(network, path, x)
    monkeypatch.setattr(base, "find_spec", lambda package: None)
    with pytest.raises(ExportError, match=r"opening \.onnx needs onnxruntime; install xvolution\[export\]"):
        OnnxRuntime().load(path)


def test_an_onnx_file_tells_names_shapes_and_metadata_and_keeps_its_data_file(tmp_path, network, x):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    path = tmp_path / "model.onnx"
    export(network, path, x)
    onnx.save(onnx.load(path), path, save_as_external_data=True, location="model.onnx.data", size_threshold=0)
    write_labels(path, Labels(properties={"about": "dogs"}))
    write_labels(path, Labels(properties={"about": "cats"}))
    assert sorted(file.name for file in tmp_path.iterdir()) == ["model.onnx", "model.onnx.data"]
    session = OnnxRuntime().load(path)
    assert session.properties == {"about": "cats"}
    assert session.input_shapes == ((None, 3, None, None),)
    assert (len(session.input_names), len(session.output_names)) == (1, 1)
    torch.testing.assert_close(session(x)[0], network(x).detach(), rtol=1e-4, atol=1e-5)


def test_every_runtime_is_tested():
    assert set(WRITTEN) == set(RUNTIMES)


class TwoInputs(nn.Module):
    """Two outputs that tell the inputs and each other apart."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(5, 8, 1)

    def forward(self, z, a):
        first, second = self.first(z).sigmoid(), self.second(a).tanh()
        return (first * second).mean((2, 3)), first - second


@pytest.mark.parametrize("name", WRITTEN)
def test_inputs_and_outputs_keep_their_order(tmp_path, name):
    runtime = installed(name)
    torch.manual_seed(0)
    network, inputs = TwoInputs().eval(), (torch.randn(1, 3, 9, 7), torch.randn(1, 5, 9, 7))
    report = export(network, tmp_path / f"model{runtime.ending}", inputs)
    found, expected = runtime.load(report.path)(*inputs), network(*inputs)
    assert [y.shape for y in found] == [y.shape for y in expected]
    for y, e in zip(found, expected, strict=True):
        torch.testing.assert_close(y, e.detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("layout", ["single", "split", "parts"])
@pytest.mark.parametrize("name", WRITTEN)
def test_deployed_networks_compute_the_same(tmp_path, name, layout):
    runtime = installed(name)
    torch.manual_seed(0)
    attention = PixelShift(pooled_key=True, gate="sigmoid")
    trained = randomize(convert(SmallNet(), XVolutionConfig(attention=attention, zero_init=False))).eval()
    deployed = reparameterize(trained, layout=layout)
    example = torch.randn(3, 3, 16, 20)
    report = export(deployed, tmp_path / f"model{runtime.ending}", example)
    fixed = name in ("executorch", "litert", "coreml")
    assert report.dynamic == ("none" if fixed else "batch and image size")
    x = torch.randn_like(example) if fixed else torch.randn(2, 3, 24, 17)
    (y,) = runtime.load(report.path)(x)
    torch.testing.assert_close(y, trained(x).detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["ncnn", "mnn", "executorch", "litert"])
def test_layouts_are_timed_in_it(name):
    installed(name)
    torch.manual_seed(0)
    trained = randomize(convert(SmallNet(), XVolutionConfig(zero_init=False))).eval()
    choice = choose_layouts(trained, torch.randn(2, 3, 12, 12), name, threads=1)
    assert (choice.timed_in, choice.reason) == (name, "")
    assert all(set(seconds) == {"split", "parts", "single"} for seconds in choice.seconds.values())


def test_a_layout_that_ncnn_lacks_an_operator_for_is_left_out():
    installed("ncnn")
    trained = randomize(nn.Sequential(XVolution2d(3, 8, 3, stride=2, padding=1, zero_init=False))).eval()
    choice = choose_layouts(trained, torch.randn(1, 3, 12, 12), "ncnn", threads=1)
    assert choice.layouts == {"0": "single"}
    assert set(choice.seconds["0"]) == {"single"}


def test_ncnn_files_say_the_sizes_of_their_inputs(tmp_path, network, x):
    runtime = installed("ncnn")
    open_path, fixed_path = tmp_path / "open.ncnn.param", tmp_path / "fixed.ncnn.param"
    assert export(network, open_path, x).dynamic == "batch and image size"
    assert export(network, fixed_path, x, dynamic=False).dynamic == "none"
    assert runtime.load(open_path).input_shapes == ((None, 3, None, None),)
    assert runtime.load(fixed_path).input_shapes == ((None, 3, 12, 12),)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f"{name}.ncnn.{ending}" for name in ("fixed", "open") for ending in ("bin", "param")
    ]
    with pytest.raises(ExportError, match=r"input in0 takes images \(3, 12, 12\), but got \(3, 12, 20\)"):
        runtime.load(fixed_path)(torch.randn(1, 3, 12, 20))
    fixed_path.with_name("fixed.ncnn.bin").unlink()
    with pytest.raises(ExportError, match=r"the weights are missing: there is no file .*fixed\.ncnn\.bin"):
        runtime.load(fixed_path)


@pytest.mark.parametrize(
    ("name", "ending"),
    [("ncnn", ".ncnn.param"), ("executorch", ".pte"), ("litert", ".tflite"), ("torch_export", ".pt2")],
)
def test_an_opset_is_refused_where_there_is_none(tmp_path, network, x, name, ending):
    installed(name)
    with pytest.raises(ExportError, match="opset_version is 18, but only ONNX files"):
        export(network, tmp_path / f"model{ending}", x, opset_version=18)


def test_executorch_does_not_change_the_threads_of_open_files(tmp_path, network, x):
    runtime = installed("executorch")
    path = tmp_path / "model.pte"
    export(network, path, x)
    run = runtime.load(path, threads=1)
    with pytest.raises(ExportError, match="threads is 2, but files that are already open use 1 threads"):
        runtime.load(path, threads=2)
    torch.testing.assert_close(run(x)[0], network(x).detach(), rtol=1e-4, atol=1e-5)
