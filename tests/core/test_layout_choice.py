"""The runtime that ships chooses the layout: each distinct operator is timed there once, in every layout that it takes."""

import pytest
import torch
from torch import nn

from tests.core.execution import relative_error
from tests.core.networks import SmallNet, randomize
from xvolution import (
    ExportError,
    LayoutChoice,
    ReparameterizationError,
    XVolution2d,
    choose_layouts,
    convert,
    export,
    layouts_of,
    reparameterize,
)
from xvolution.attention import ChannelGate
from xvolution.conversion.outputs import tensors_in
from xvolution.deploy import measure
from xvolution.deploy.latency import Latency, LatencyComparison
from xvolution.deploy.measure import LayoutTimer
from xvolution.deploy.runtimes import RUNTIMES, LoadedFile, Runtime, base, register

NAMES = ("layer1.conv1", "layer1.conv2", "layer2.conv1", "layer2.conv2")


class SlowFile(LoadedFile):
    def __init__(self, runtime, path, module, seconds):
        super().__init__(runtime, path)
        self.module, self.seconds = module, seconds

    def _run(self, inputs):
        with torch.no_grad():
            return tensors_in(self.module(*inputs))


class Slow(Runtime):
    """Runs captured modules, and says that files of some names take longer; it counts what is written."""

    name = "slow"
    title = "Slow"
    ending = ".slow"
    packages = ()
    computes_in = {torch.float32: torch.float32}  # noqa: RUF012

    def __init__(self):
        self.modules, self.written, self.threads, self.shapes = {}, [], [], []
        self.slow, self.refused = (), ()

    def version(self):
        return "1.0"

    def _write(self, program, path, opset_version):
        if path.stem in self.refused:
            raise ValueError(f"{path.stem} is not for me")
        self.modules[path.name] = program.module()
        self.written.append(path)
        path.write_text(program.graph_module.code)

    def _load(self, path, threads, input_shapes):
        self.threads.append(threads)
        self.shapes.append(None if input_shapes is None else [tuple(shape) for shape in input_shapes])
        return SlowFile(self, path, self.modules[path.name], 2e-3 if path.stem in self.slow else 1e-3)


def said_by_the_files(calls, rounds):
    """The time that each file says it takes: a busy machine is no part of what is tested here."""
    for call in calls.values():
        call()
    return LatencyComparison({layout: Latency((call.func.seconds,) * rounds) for layout, call in calls.items()})


@pytest.fixture
def runtime(monkeypatch):
    register(Slow)
    monkeypatch.setattr(measure, "measure_latency", said_by_the_files)
    yield RUNTIMES["slow"]
    del RUNTIMES["slow"]


@pytest.fixture
def network():
    torch.manual_seed(0)
    return randomize(convert(SmallNet())).eval()


@pytest.fixture
def x():
    return torch.randn(1, 3, 16, 16)


@pytest.mark.parametrize(
    ("slow", "expected"),
    [(("split", "parts"), "single"), (("split", "single"), "parts"), (("parts", "single"), "split")],
)
def test_the_layout_that_the_runtime_runs_fastest(runtime, network, x, slow, expected):
    runtime.slow = slow
    told = []
    choice = choose_layouts(network, x, "slow", threads=1, progress=told.append)
    assert dict(choice.layouts) == dict.fromkeys(NAMES, expected)
    assert (choice.timed_in, choice.reason) == ("slow", "")
    assert [path.stem for path in runtime.written] == ["split", "parts", "single"], "four operators that are alike"
    assert (set(runtime.threads), runtime.shapes) == ({1}, [[(1, 8, 16, 16)]] * 3)
    assert list(choice.seconds) == ["layer1.conv1"]
    assert min(choice.seconds["layer1.conv1"], key=choice.seconds["layer1.conv1"].get) == expected
    assert len(told) == 1
    assert told[0].startswith(f"operator 1 of 1, layer1.conv1 and 3 like it: {expected} (split ")
    assert str(choice) == f"layouts {expected} (4); distinct operators timed in Slow: 1"
    assert not any(path.exists() for path in runtime.written), "the files were temporary"
    deployed = reparameterize(network, x, runtime="slow", threads=1)
    assert layouts_of(deployed) == dict.fromkeys(NAMES, expected)
    assert relative_error(network(x), deployed(x)) <= 1e-5


def test_each_distinct_operator_is_timed_once(runtime, x):
    torch.manual_seed(0)
    operators = nn.Sequential(
        XVolution2d(3, 8, 3, padding=1),
        XVolution2d(8, 8, 3, padding=1),
        XVolution2d(8, 8, 3, padding=1),
        XVolution2d(8, 8, 3, padding=1, stride=2),
        XVolution2d(8, 8, 3, padding=1),
        XVolution2d(8, 8, 3, padding=1, attention="pixel_shift_dot"),
    ).eval()
    told = []
    choice = choose_layouts(operators, x, "slow", progress=told.append)
    assert list(choice.seconds) == ["0", "1", "3", "4"], "another size is another operator; one layout is no choice"
    assert [line.split(":")[0] for line in told] == [
        "operator 1 of 4, 0",
        "operator 2 of 4, 1 and 1 like it",
        "operator 3 of 4, 3",
        "operator 4 of 4, 4",
    ]
    assert len(runtime.written) == 3 + 3 + 2 + 3
    assert choice.layouts["5"] == "split"
    assert set(runtime.threads) == {torch.get_num_threads()}


def test_torch_times_in_this_process(network, x, monkeypatch):
    given = []

    def fewest(calls, rounds):
        given.append((list(calls), torch.get_num_threads()))
        return measure_latency(calls, 1)

    measure_latency = measure.measure_latency
    monkeypatch.setattr(measure, "measure_latency", fewest)
    before = torch.get_num_threads()
    choice = choose_layouts(network, x, threads=before + 1)
    assert given == [(["split", "parts", "single"], before + 1)]
    assert torch.get_num_threads() == before
    assert choice.timed_in == "torch"
    assert not any(module.training for module in network.modules())


def test_what_is_hardly_faster_does_not_win_over_fewer_multiplications():
    assert measure._fastest({"split": 1.0, "parts": 0.99}, "split") == "split"
    assert measure._fastest({"split": 1.0, "parts": 0.9}, "split") == "parts"
    assert measure._fastest({"single": 1.0, "parts": 0.9}, "split") == "parts"


def test_a_missing_package_leaves_the_rule_of_thumb(network, x, monkeypatch):
    monkeypatch.setattr(base, "find_spec", lambda package: None)
    choice = choose_layouts(network, x, "openvino")
    assert dict(choice.layouts) == dict.fromkeys(NAMES, "split")
    assert (choice.timed_in, dict(choice.seconds)) == ("", {})
    assert "openvino; install xvolution[export]" in choice.reason
    assert str(choice).startswith(
        "layouts split (4); those with the fewest multiplications, because exporting to .xml needs"
    )
    with pytest.warns(UserWarning, match="fewest multiplications"):
        deployed = reparameterize(network, x, runtime="openvino")
    assert layouts_of(deployed) == dict.fromkeys(NAMES, "split")


def test_a_layout_that_the_runtime_refuses_is_left_out(runtime, network, x):
    runtime.refused, runtime.slow = ("split",), ("single",)
    choice = choose_layouts(network, x, "slow")
    assert set(choice.layouts.values()) == {"parts"}
    assert (list(choice.seconds["layer1.conv1"]), choice.reason) == (["parts", "single"], "")


def test_an_operator_that_the_runtime_refuses_follows_the_rule_of_thumb(runtime, network, x):
    runtime.refused = ("split", "parts", "single")
    told = []
    choice = choose_layouts(network, x, "slow", progress=told.append)
    assert set(choice.layouts.values()) == {"split"}
    assert choice.timed_in == ""
    assert choice.reason.endswith("single is not for me")
    assert told == [f"operator 1 of 1, layer1.conv1 and 3 like it: split, not timed: {choice.reason}"]


def test_operators_that_no_input_reaches_follow_the_rule_of_thumb(runtime):
    operator = XVolution2d(8, 8, 3, padding=1).eval()
    choice = LayoutTimer("slow").choose({"there": operator, "unused": operator}, {"there": torch.randn(1, 8, 9, 9)})
    assert choice.reason == "no input reached unused"
    assert list(choice.seconds) == ["there"]
    assert choice.layouts["unused"] == "split"
    assert set(reparameterize(operator, runtime="torch").state_dict())  # without inputs there is nothing to time


def test_an_empty_batch_is_timed_on_noise(runtime):
    operator = XVolution2d(8, 8, 3, padding=1).eval()
    LayoutTimer("slow").choose({"": operator}, {"": torch.zeros(0, 8, 9, 9)})
    assert runtime.shapes == [[(1, 8, 9, 9)]] * 3


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (
            {"runtime": "tvm"},
            "runtime is 'tvm'; allowed are 'torch', 'coreml', 'executorch', 'litert', 'mnn', 'ncnn', 'onnxruntime',",
        ),
        ({"threads": 0}, "threads is 0; give at least 1"),
    ],
)
def test_bad_arguments_are_refused_with_a_sentence(network, x, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        choose_layouts(network, x, **options)
    with pytest.raises(ValueError, match=sentence):
        reparameterize(network, x, **options)
    with pytest.raises(ReparameterizationError, match="train mode"):
        choose_layouts(network.train(), x)


def test_a_layout_of_a_mapping_may_be_chosen(runtime, network, x):
    runtime.slow = ("split", "parts")
    layouts = {**dict.fromkeys(NAMES, "split"), "layer2.conv1": "auto"}
    deployed = reparameterize(network, x, layout=layouts, runtime="slow")
    assert layouts_of(deployed) == {**layouts, "layer2.conv1": "single"}


def test_the_training_form_is_exported_in_the_layouts_of_its_runtime(tmp_path, runtime, network, x):
    runtime.slow = ("split", "parts")
    report = export(network, tmp_path / "model.slow", x, threads=1)
    assert report.layouts == dict.fromkeys(NAMES, "single")
    assert (report.timed_in, type(report.choice)) == ("slow", LayoutChoice)
    assert [file.name for file in tmp_path.iterdir()] == ["model.slow"]
    assert any(isinstance(module, XVolution2d) for module in network.modules()), "the model is as it was"
    (y,) = runtime.load(report.path)(x)
    torch.testing.assert_close(y, network(x).detach(), rtol=1e-4, atol=1e-5)
    given = export(network, tmp_path / "given.slow", x, layout=report.layouts | {"layer1.conv2": "split"})
    assert given.layouts == report.layouts | {"layer1.conv2": "split"}
    assert (given.choice, given.timed_in) == (None, "")
    again = export(reparameterize(network, layout="parts"), tmp_path / "again.slow", x)
    assert (again.layouts, again.choice) == (dict.fromkeys(NAMES, "parts"), None)
    as_it_is = export(network, tmp_path / "training.slow", x, layout=None)
    assert (as_it_is.layouts, as_it_is.choice) == ({}, None)
    with pytest.raises(ExportError, match=r"call model\.eval"):
        export(network.train(), tmp_path / "train.slow", x)


@pytest.mark.parametrize("name", ["onnxruntime", "openvino", "torch_export", "ncnn", "mnn", "litert"])
def test_real_runtimes_time_and_run_the_training_form(tmp_path, name):
    runtime = RUNTIMES[name]
    for package in (*runtime.packages, *runtime.writer_packages):
        pytest.importorskip(package)
    torch.manual_seed(0)
    model = randomize(
        nn.Sequential(XVolution2d(3, 8, 3, padding=1), XVolution2d(8, 8, 3, padding=1, attention=ChannelGate())).eval()
    )
    report = export(model, tmp_path / f"model{runtime.ending}", torch.randn(1, 3, 16, 16), threads=1)
    assert report.timed_in == name
    assert report.relative_error <= 1e-4
    assert set(report.layouts) == {"0", "1"}
    assert {name: set(times) for name, times in report.choice.seconds.items()} == {
        "0": {"split", "parts", "single"},
        "1": {"split", "single"},
    }
