"""`xvolution bench`: cases, results that stay, the page."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from rich.console import Console
from torch import nn

from benchmarks.mechanisms import write_page as write_mechanisms
from xvolution.bench import bars, network_forms, networks, written
from xvolution.bench.forms import SLOW_ROUNDS, peak_bytes, refusal, timed, training
from xvolution.bench.mechanisms import MECHANISMS, MechanismBench
from xvolution.bench.network_forms import PLAIN, NetworkForm
from xvolution.bench.networks import NetworkBench, forms_of
from xvolution.bench.operators import RESNET, OperatorBench
from xvolution.bench.options import CHANGES, OptionBench
from xvolution.bench.page import write_page
from xvolution.bench.results import Case, Results, measure_all, read_results
from xvolution.bench.scaling import ScalingBench, exponent, exponents
from xvolution.cli import main
from xvolution.conversion.config import XVolutionConfig
from xvolution.deploy.latency import cpu_threads
from xvolution.operator import XVolution2d, fold
from xvolution.training.errors import InputError


def form(ratio: float, flops: int = 100, peak: int = 100) -> dict[str, Any]:
    times = {"median_ms": ratio, "quartiles_ms": [ratio, ratio], "ratio": ratio, "rounds": 3}
    return {**times, "flops": flops, "parameters": 1, "peak_bytes": peak}


def operator_case(what: str, shape: str, batch: int, dtype: str, **forms: Any) -> dict[str, Any]:
    where = {"mode": "eager", "threads": 1, "device": "cpu", "memory_format": "contiguous"}
    return {
        "pass": what,
        "shape": shape,
        "size": list(RESNET[shape]),
        "batch": batch,
        "dtype": dtype,
        **where,
        "forms": forms,
    }


def stored(kind: str, cases: list[dict[str, Any]]) -> str:
    machine = {"processor": "a processor", "cores": 2}
    values = {"kind": kind, "machine": machine, "versions": {"torch": "2"}, "cases": dict(enumerate(cases))}
    return json.dumps(values)


def test_records_of_version_0_1_0_are_read_by_the_names_of_today(tmp_path: Path) -> None:
    forms = {"conv": 1, "conv and norm": 2, "global": 3, "xvolution-global split": 4, "xvolution single": 5}
    record = json.loads(stored("operators", [{"forms": forms}]))
    path = tmp_path / "bench.json"
    path.write_text(json.dumps(record))
    assert read_results(path)["cases"]["0"]["forms"] == forms
    path.write_text(json.dumps(record | {"versions": {"xvolution": "0.1.0"}}))
    renamed = {"conv": 1, "conv and norm": 2, "global-attention": 3, "global split": 4, "xvolution single": 5}
    assert read_results(path)["cases"]["0"]["forms"] == renamed


def test_an_operator_is_measured_in_every_form(tmp_path: Path) -> None:
    bench = OperatorBench(("xvolution", "sasa"), ("resnet-4",), (2,), ("bfloat16",), rounds=1)
    results = Results(tmp_path / "bench.json", "operators")
    measure_all(bench.cases(), results, Console(quiet=True))
    inference, trained = read_results(results.path)["cases"].values()
    layouts = fold(XVolution2d(4, 4, 3, padding=1).eval()).layouts
    assert list(inference["forms"]) == ["conv", *(f"xvolution {layout}" for layout in layouts), "sasa"]
    assert list(trained["forms"]) == ["conv", "conv and norm", "xvolution", "sasa"]
    for case in (inference, trained):
        assert case["forms"]["conv"]["ratio"] == 1
        assert all(record["median_ms"] > 0 and record["peak_bytes"] > 0 for record in case["forms"].values())
    assert inference["forms"]["conv"]["flops"] == 2 * 9 * 512 * 512 * 49
    assert inference["forms"]["conv"]["parameters"] == 9 * 512 * 512


def test_peak_memory_counts_what_is_held_at_once() -> None:
    def call() -> None:
        first = torch.empty(1000)
        del first
        second = torch.empty(2000)
        third = torch.empty(500)
        del second, third

    assert peak_bytes(call, torch.device("cpu")) == 10_000


def test_training_reaches_every_parameter() -> None:
    module = nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3))
    gradients: Any = training(module, torch.randn(2, 2, 4, 4))()
    assert [gradient.shape for gradient in gradients] == [(2, 2, 4, 4), (3, 2, 1, 1), (3,), (3,), (3,)]


def test_what_takes_too_long_is_not_run() -> None:
    conv = nn.Conv2d(64, 64, 3, padding=1)
    assert refusal(conv, (1, 64, 56, 56)) is None
    assert "GFLOPs" in (refusal(conv, (1, 64, 4000, 4000)) or "")
    assert "GiB" in (refusal(nn.Conv2d(1, 2000, 1), (1, 1, 10000, 10000)) or "")


def test_slow_forms_take_turns_of_their_own() -> None:
    small, large = torch.randn(16, 16), torch.randn(1500, 1500)
    figures = timed({"conv": lambda: small @ small, "large": lambda: large @ large}, "conv", 5)
    assert figures["conv"]["rounds"] == 5
    assert figures["large"]["rounds"] == SLOW_ROUNDS
    assert figures["large"]["ratio"] > 1


def test_an_interrupted_bench_keeps_what_is_done_and_goes_on(tmp_path: Path) -> None:
    ran: list[str] = []

    def case(name: str, error: type[BaseException] | None = None) -> Case:
        def measure() -> dict[str, dict[str, Any]]:
            ran.append(name)
            if error is not None:
                raise error
            return {"conv": form(1.0)}

        return Case(name, {"shape": name}, measure)

    path = tmp_path / "bench.json"
    with pytest.raises(KeyboardInterrupt):
        measure_all([case("a"), case("b", KeyboardInterrupt)], Results(path, "operators"), Console(quiet=True))
    measure_all([case("a"), case("b")], Results(path, "operators"), Console(quiet=True))
    assert ran == ["a", "b", "b"]
    cases = read_results(path)["cases"]
    assert list(cases) == ["a", "b"]
    assert cases["a"].keys() == {"shape", "commit", "command", "forms"}


def test_results_of_another_machine_or_bench_are_not_mixed(tmp_path: Path) -> None:
    path = tmp_path / "bench.json"
    path.write_text(stored("operators", []))
    with pytest.raises(InputError, match=r"another machine: .*a processor there"):
        Results(path, "operators")
    with pytest.raises(InputError, match="holds the bench 'operators', not 'scaling'"):
        Results(path, "scaling")
    path.write_text("{")
    with pytest.raises(InputError, match="not a results file"):
        Results(path, "operators")


def test_exponents_are_slopes() -> None:
    assert exponent([10, 100, 1000], [3 * n**1.5 for n in (10, 100, 1000)]) == pytest.approx(1.5)
    with pytest.raises(ValueError, match="two points"):
        exponent([1], [1.0])
    cases = [
        {"side": side, "forms": {"conv": {"median_ms": side**4}, "global": {"skipped": "no"}}} for side in (7, 28, 56)
    ]
    assert exponents(cases, "median_ms") == {"conv": pytest.approx(2.0)}


def test_scaling_measures(tmp_path: Path) -> None:
    results = Results(tmp_path / "scaling.json", "scaling")
    measure_all(ScalingBench(("xvolution",), (5, 9), 8, rounds=1).cases(), results, Console(quiet=True))
    assert [case["side"] for case in results.cases.values()] == [5, 9]


def test_networks_are_measured_in_each_layout_and_in_training(tmp_path: Path) -> None:
    bench = NetworkBench(("resnet10t",), ("training", "torch"), (2,), ("auto", "split", "triple"), ("channels_last",))
    results = Results(tmp_path / "networks.json", "networks")
    measure_all(replace(bench, image_size=32, rounds=1).cases(), results, Console(quiet=True))
    trained, deployed = (case["forms"] for case in results.cases.values())
    names = ["conv", "se", "stage 3", "last two stages", "all stages"]
    assert list(trained) == names
    assert list(deployed) == [*names, *(f"{name} {layout}" for layout in ("split", "triple") for name in names[2:])]
    assert "triple" in deployed["stage 3 triple"]["skipped"]
    assert sum(deployed["stage 3"]["layouts"].values()) == 2
    assert list(deployed["all stages split"]["layouts"]) == ["split"]
    for forms in (trained, deployed):
        assert forms["all stages"]["flops"] > forms["last two stages"]["flops"] > forms["stage 3"]["flops"]
        assert forms["stage 3"]["flops"] > forms["conv"]["flops"]
        assert all(record["ratio"] > 0 for record in forms.values() if "skipped" not in record)


def test_networks_are_measured_in_the_runtimes_of_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(networks, "forms_of", lambda network, layouts: forms_of(network, layouts)[:2])
    bench = NetworkBench(("resnet10t",), ("onnxruntime", "openvino"), (1,), ("split",), image_size=32, rounds=1)
    results = Results(tmp_path / "networks.json", "networks")
    measure_all(bench.cases(), results, Console(quiet=True))
    assert [case["runtime"] for case in results.cases.values()] == ["onnxruntime", "openvino"]
    for case in results.cases.values():
        assert list(case["forms"]) == ["conv", "se", "stage 3 split"]
        assert all(record["median_ms"] > 0 for record in case["forms"].values())
        assert case["memory_format"] == "contiguous"


def test_the_last_two_stages_are_those_of_the_network() -> None:
    assert [form.stages for form in forms_of("resnet18", ["auto"])] == [None, (3,), (3, 4), None]
    assert [form.stages for form in forms_of("mobilenetv3_large_100", ["auto"])][2] == (4, 5)


def test_the_layouts_of_a_network_are_those_of_its_stages(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    reparameterize = network_forms.reparameterize

    def recorded(model: nn.Module, inputs: Any, layout: Any, **options: Any) -> nn.Module:
        asked.append(layout)
        return reparameterize(model, inputs, "split", **options)

    monkeypatch.setattr(network_forms, "reparameterize", recorded)
    bench = NetworkBench(("resnet18",), ("torch",), image_size=32, memory_formats=("contiguous",), rounds=1)
    bench.cases()[0].measure()
    assert asked[:3] == ["auto"] * 3  # plain, squeeze-and-excitation, all stages
    assert [len(layouts) for layouts in asked[3:]] == [16, 16]


def test_no_form_has_layers_that_a_converter_leaves_out() -> None:
    """timm's ResNets begin with scales of zero, behind which a file needs no convolution."""
    for form in (PLAIN, NetworkForm("ours", XVolutionConfig())):
        scales = [
            p for name, p in form.build("resnet10t").named_parameters() if name.endswith("weight") and p.dim() == 1
        ]
        assert scales
        assert all(scale.any() for scale in scales)


def test_one_file_serves_the_runtimes_that_read_it(monkeypatch: pytest.MonkeyPatch) -> None:
    exported: list[str] = []
    export = written.export

    def recorded(model: nn.Module, path: Path, **options: Any) -> Any:
        exported.append(path.name)
        return export(model, path, **options)

    monkeypatch.setattr(written, "export", recorded)
    files, conv = written.WrittenFiles(), nn.Conv2d(3, 4, 3).eval()
    for runtime in ("openvino", "onnxruntime", "openvino"):
        (y,) = cast(Any, files.runner(runtime, conv, torch.ones(1, 3, 8, 8), "conv", 1))()
        torch.testing.assert_close(y, conv(torch.ones(1, 3, 8, 8)), rtol=1e-4, atol=1e-5)
    assert exported == ["0.onnx"]
    files.runner("onnxruntime", conv, torch.ones(1, 3, 9, 9), "conv", 1)
    assert exported == ["0.onnx", "2.onnx"]


def test_an_operator_is_measured_in_files_too() -> None:
    bench = OperatorBench(
        ("xvolution", "se"), ("resnet-4",), (1,), runtimes=("torch", "onnxruntime", "openvino"), rounds=1
    )
    bench = replace(bench, memory_formats=("contiguous", "channels_last"), dtypes=("float32",), passes=("inference",))
    cases = bench.cases()
    ways = [(case.settings["runtime"], case.settings["memory_format"]) for case in cases]
    torchs = [("torch", "contiguous"), ("torch", "channels_last")]
    assert ways == [*torchs, ("onnxruntime", "contiguous"), ("openvino", "contiguous")]
    for case in cases[2:]:
        forms = case.measure()
        assert {"conv", "se", "xvolution split", "xvolution single"} <= forms.keys()
        assert all(form["median_ms"] > 0 for form in forms.values())


def test_every_option_has_its_price(tmp_path: Path) -> None:
    bench = OptionBench(("mobilenetv2_050",), ("torch",), image_size=32, memory_formats=("contiguous",), rounds=1)
    results = Results(tmp_path / "bench-options.json", "options")
    measure_all(bench.cases(), results, Console(quiet=True))
    (case,) = results.cases.values()
    forms = case["forms"]
    assert len(forms) == 2 + len(CHANGES)
    assert {"conv", "default", "attention_ratio=0.125", "attention_channels=8", "gate=tanh", "window=5"} <= forms.keys()
    assert forms["window=5"]["flops"] > forms["default"]["flops"] > forms["attention_ratio=0.125"]["flops"]
    write_page(tmp_path, tmp_path / "performance.md")
    text = (tmp_path / "performance.md").read_text()
    assert "mobilenetv2_050, all stages, 1 image of 32x32, 1 thread:" in text
    assert f"| window=5 | {forms['window=5']['ratio']:.2f} |" in text


def test_every_mechanism_has_its_price_and_the_page_says_it(tmp_path: Path) -> None:
    bench = MechanismBench(("mobilenetv2_050",), ("torch",), image_size=32, memory_formats=("contiguous",), rounds=1)
    assert list(bench.forms()) == list(MECHANISMS)
    results = Results(tmp_path / "bench-mechanisms.json", "mechanisms")
    measure_all(bench.cases(), results, Console(quiet=True))
    (case,) = results.cases.values()
    forms = case["forms"]
    assert forms.keys() == {"conv", *MECHANISMS}
    plain = forms["conv"]
    assert (forms["conv-diverse"]["flops"], forms["conv-diverse"]["parameters"]) == (
        plain["flops"],
        plain["parameters"],
    )
    write_mechanisms(tmp_path, tmp_path / "mechanisms.md")
    text = (tmp_path / "mechanisms.md").read_text()
    figures = forms["odconv"]
    assert (
        f"| odconv | {figures['parameters']:,} | {figures['flops'] / 1e6:,.0f} | {figures['median_ms']:.2f} |" in text
    )
    assert "Not run yet." in text


def test_the_page_of_mechanisms_says_what_annealing_keeps(tmp_path: Path) -> None:
    row = {"seeds": [0, 1, 2], "score": {"estimate": 0.34567}, "deployed_flops_ratio": 1.0, "latency": None}
    gain = {"estimate": 0.0061, "low": -0.0012, "high": 0.0133}
    rows = [
        row | {"label": "conv", "bootstrap": None, "differences": {}},
        row | {"label": "annealed", "bootstrap": gain, "differences": {"loss": {"estimate": -0.0234}}},
    ]
    (tmp_path / "tiny-imagenet").mkdir()
    (tmp_path / "tiny-imagenet" / "annealing.json").write_text(json.dumps({"variants": rows}))
    write_mechanisms(tmp_path, tmp_path / "mechanisms.md")
    text = (tmp_path / "mechanisms.md").read_text()
    assert "| conv | 3 | 34.57% |  |  | 1.00 |  |" in text
    assert "| annealed | 3 | 34.57% | +0.61 (-0.12 to +1.33) | -0.023 | 1.00 |  |" in text


def operator_results() -> list[dict[str, Any]]:
    cases = []
    for shape, ratio in zip(RESNET, (1.4, 1.1, 1.1, 1.2), strict=True):
        layouts = {"xvolution split": form(ratio, 109), "xvolution single": form(1.6, 150)}
        cases.append(operator_case("inference", shape, 1, "float32", conv=form(1.0), **layouts))
        plain = {"conv": form(1.0), "conv and norm": form(1.1, peak=110)}
        cases.append(operator_case("training", shape, 32, "float32", **plain, xvolution=form(1.65, 109, 220)))
    files = [
        case | {"runtime": "openvino", "forms": {"conv": form(1.0), "xvolution split": form(1.08, 109)}}
        for case in cases
        if case["pass"] == "inference"
    ]
    return cases + files[:4]


def network_case(network: str, runtime: str, batch: int = 1, **forms: Any) -> dict[str, Any]:
    return {
        "network": network,
        "runtime": runtime,
        "batch": batch,
        "image_size": 224,
        "threads": 1,
        "device": "cpu",
        "dtype": "float32",
        "mode": "eager",
        "memory_format": "contiguous",
        "forms": {"conv": form(1.0), **forms},
    }


def network_results() -> list[dict[str, Any]]:
    ours = {"stage 3": form(1.02), "last two stages": form(1.05), "all stages": form(1.2, 109)}
    return [
        network_case("resnet50", "onnxruntime", se=form(1.1), **ours),
        network_case("mobilenetv2_100", "openvino", se=form(1.1), **{**ours, "all stages": form(1.11)}),
        network_case("resnet18", "training", 8, **ours),
        network_case("resnet18", "training", 16, **{**ours, "stage 3": form(1.07)}),
        network_case("resnet18", "torch", **ours) | {"memory_format": "channels_last"},
    ]


def test_bars_of_operators_are_computed_from_the_results() -> None:
    found = {bar.what: bar for bar in bars.operator_bars(operator_results())}
    mean = found["deployed operator / conv, PyTorch, contiguous: geometric mean"]
    assert (mean.measured, mean.allowed, mean.floor, mean.met) == ("1.19", "1.20", "1.09", True)
    largest = found["deployed operator / conv, PyTorch, contiguous: largest"]
    assert (largest.measured, largest.allowed, largest.met) == ("1.40", "1.30", False)
    assert found["deployed operator / conv, OpenVINO: geometric mean"].measured == "1.08"
    for way in ("PyTorch, channels_last", "ONNX Runtime"):
        bar = found[f"deployed operator / conv, {way}: largest"]
        assert (bar.measured, bar.met) == (bars.NOT_MEASURED, None)
    assert bars.operator_bars(operator_results()[2:])[4].measured == bars.NOT_MEASURED  # a shape is missing


def test_bars_of_networks_are_computed_from_the_results() -> None:
    found = {bar.what: bar for bar in bars.all_bars({"networks": network_results()})}
    bar = found["ResNet-50, all stages, ONNX Runtime"]
    assert (bar.allowed, bar.measured, bar.floor, bar.met) == ("1.05", "1.20", "1.09", False)
    assert found["ResNet-18, all stages, ONNX Runtime"].met is None
    bar = found["MobileNetV2, all stages, OpenVINO"]
    assert (bar.allowed, bar.measured, bar.met) == ("1.12", "1.11", True)
    bar = found["MobileNetV2, all stages, OpenVINO / with squeeze-and-excitation"]
    assert (bar.allowed, bar.measured, bar.met) == ("1.00", "1.01", False)
    bar = found["training step, ResNet-18, stage 3, CPU"]
    assert (bar.allowed, bar.measured, bar.met) == ("1.05", "1.07", False)
    assert found["training step, ResNet-18, stage 3, GPU"].measured == bars.NOT_MEASURED


def test_the_page_does_without_the_operator(tmp_path: Path) -> None:
    forms = {"conv": form(1.0), "acmix": form(4.0)}
    case = operator_case("inference", "resnet-1", 1, "float32", **forms)
    (tmp_path / "bench-operators.json").write_text(stored("operators", [case]))
    side = {"side": 56, "channels": 64, "threads": 1, "forms": {"conv": form(1.0), "global": form(9.0)}}
    (tmp_path / "bench-scaling.json").write_text(stored("scaling", [side]))
    write_page(tmp_path, tmp_path / "performance.md")
    text = (tmp_path / "performance.md").read_text()
    assert "| 64 x 56x56, batch 1, threads 1 | 1.00 | 4.00 |" in text
    assert "Highest cost" not in text


def test_all_threads_are_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 6)
    torch_threads = torch.get_num_threads()
    threads = {case.settings["threads"] for case in OperatorBench(threads=(1, 0)).cases()}
    assert threads == {1, 6}
    with cpu_threads(torch_threads + 1):
        assert torch.get_num_threads() == torch_threads + 1
    assert torch.get_num_threads() == torch_threads


def test_the_page_says_what_was_measured_and_what_was_not(tmp_path: Path) -> None:
    sides = (28, 56, 112)
    scaling = [
        {
            "side": n,
            "channels": 64,
            "threads": 1,
            "forms": {"conv": form(n**2), "xvolution": form(n**2), "global": form(n**4)},
        }
        for n in sides
    ]
    scaling[-1]["forms"]["global"] = {"skipped": "one call takes 9 GFLOPs"}
    for kind, cases in (("operators", operator_results()), ("scaling", scaling), ("networks", network_results())):
        (tmp_path / f"bench-{kind}.json").write_text(stored(kind, cases))
    page = tmp_path / "docs" / "performance.md"
    write_page(tmp_path, page)
    text = page.read_text()
    assert text.index("## Networks by runtime") < text.index("## The bars") < text.index("## One operator")
    assert "| network | form | ONNX Runtime | OpenVINO | PyTorch, channels_last | FLOPs |" in text
    assert "|  | squeeze-and-excitation | 1.10 |  |  | 1.00 |" in text
    assert "| ResNet-50, all stages, ONNX Runtime | 1.05 | 1.20 | 1.09 | no |" in text
    assert f"| ResNet-50, all stages, OpenVINO | 1.05 | {bars.NOT_MEASURED} |  |  |" in text
    assert "The most expensive place is 64 x 56x56, batch 1" in text
    assert "global at 112x112 (one call takes 9 GFLOPs)" in text
    assert "| xvolution | 1.00 | 0.00 |" in text
    assert "| global | 2.00 | 0.00 |" in text
    assert "<svg" in (page.parent / "images" / "performance-scaling.svg").read_text()


def test_each_machine_has_its_part_of_the_page(tmp_path: Path) -> None:
    (tmp_path / "bench-networks.json").write_text(stored("networks", network_results()))
    other = json.loads(stored("networks", network_results()[:1]))
    other["machine"] = {"processor": "another", "cores": 8, "instruction_sets": ["amx_tile", "avx2", "avx512f"]}
    (tmp_path / "bench-networks-amx.json").write_text(json.dumps(other))
    write_page(tmp_path, tmp_path / "performance.md")
    here, there = (tmp_path / "performance.md").read_text().split("## Networks by runtime (amx)")
    assert "- networks: a processor, 2 cores; torch 2" in here
    assert "- networks: another, 8 cores, AVX2, AVX-512, AMX; torch 2" in there
    assert bars.NOT_MEASURED in here
    assert bars.NOT_MEASURED not in there


def test_a_page_of_nothing_says_so(tmp_path: Path) -> None:
    write_page(tmp_path / "nowhere", tmp_path / "performance.md")
    text = (tmp_path / "performance.md").read_text()
    assert f"| ResNet-18, all stages, ONNX Runtime | 1.08 | {bars.NOT_MEASURED} |  |  |" in text
    assert "Networks by runtime" not in text


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["memory"], "there is no bench 'memory'"),
        (["operators", "--shapes", "resnet-9"], "--shapes is resnet-9; allowed are resnet-1"),
        (["operators", "--operators", "nothing"], "--operators is nothing; allowed are"),
        (["operators", "--batches", "0"], "--batches is 0; it must be at least 1"),
        (["networks", "--rounds", "0"], "--rounds is 0; it must be at least 1"),
        (["scaling", "--channels", "0"], "--channels is 0; it must be at least 1"),
        (["networks", "--networks", "resnet19"], "timm has no such model"),
        (["networks", "--runtimes", "training"], "batch norms need at least 2 images"),
        (["networks", "--memory-formats", "rows"], "--memory-formats is rows; allowed are contiguous, channels_last"),
        (["networks", "--image-size", "31"], "--image-size is 31; it must be at least 32"),
        (
            ["operators", "--runtimes", "ncnn9"],
            "--runtimes is ncnn9; allowed are torch, coreml, executorch, litert, mnn, ncnn, onnxruntime",
        ),
        (
            ["options", "--runtimes", "training"],
            "--runtimes is training; allowed are torch, coreml, executorch, litert, mnn, ncnn, onnxruntime",
        ),
        (["scaling", "--sides", "1"], "at least 3"),
        (["page", "--results", "nowhere"], "run `xvolution bench` first"),
    ],
)
def test_bad_input_is_answered_in_a_sentence(
    arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", *arguments]) == 2
    assert sentence in capsys.readouterr().err


@pytest.mark.parametrize("installed", [True, False])
def test_detectors_are_not_trained_here_and_need_their_package(
    installed: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("xvolution.bench.networks.find_spec", lambda name: object() if installed else None)
    assert main(["bench", "networks", "--networks", "yolo11n", "--runtimes", "training", "--batches", "2"]) == 2
    said = capsys.readouterr().err
    assert ("training, which measures classifiers only" if installed else "needs the package ultralytics") in said


def test_the_command_measures_prints_and_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "bench.json"
    arguments = [
        "scaling",
        "--sides",
        "5",
        "--channels",
        "8",
        "--operators",
        "xvolution",
        "--rounds",
        "1",
        "--output",
        str(output),
    ]
    assert main(["bench", *arguments]) == 0
    assert main(["bench", *arguments]) == 0
    printed = capsys.readouterr().out
    assert "xvolution" in printed
    assert "1 of 1 cases are in" in printed
    assert read_results(output)["kind"] == "scaling"
