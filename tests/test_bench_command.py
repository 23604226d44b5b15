"""`xvolution bench`: cases, results that stay, the page."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import nn

from xvolution.bench import bars
from xvolution.bench.forms import SLOW_ROUNDS, peak_bytes, refusal, timed, training
from xvolution.bench.networks import NetworkBench
from xvolution.bench.operators import RESNET, OperatorBench
from xvolution.bench.page import write_page
from xvolution.bench.results import Case, Results, measure_all, read_results
from xvolution.bench.scaling import ScalingBench, exponent, exponents
from xvolution.cli import main
from xvolution.deploy.latency import cpu_threads
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
    assert list(inference["forms"]) == ["conv", "xvolution split", "xvolution single", "sasa"]
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
    with pytest.raises(InputError, match="no results file"):
        Results(path, "operators")


def test_exponents_are_slopes() -> None:
    assert exponent([10, 100, 1000], [3 * n**1.5 for n in (10, 100, 1000)]) == pytest.approx(1.5)
    with pytest.raises(ValueError, match="two points"):
        exponent([1], [1.0])
    cases = [
        {"side": side, "forms": {"conv": {"median_ms": side**4}, "global": {"skipped": "no"}}} for side in (7, 28, 56)
    ]
    assert exponents(cases, "median_ms") == {"conv": pytest.approx(2.0)}


def test_scaling_and_networks_measure(tmp_path: Path) -> None:
    results = Results(tmp_path / "scaling.json", "scaling")
    measure_all(ScalingBench(("xvolution",), (5, 9), 8, rounds=1).cases(), results, Console(quiet=True))
    assert [case["side"] for case in results.cases.values()] == [5, 9]
    bench = NetworkBench(("resnet18",), ("training", "torch"), (2,), 32, rounds=1)
    results = Results(tmp_path / "networks.json", "networks")
    measure_all(bench.cases(), results, Console(quiet=True))
    for case in results.cases.values():
        assert list(case["forms"]) == ["conv", "stage 3", "all stages"]
        assert case["forms"]["all stages"]["flops"] > case["forms"]["stage 3"]["flops"] > case["forms"]["conv"]["flops"]


def operator_results() -> list[dict[str, Any]]:
    cases = []
    for shape, ratio in zip(RESNET, (1.4, 1.1, 1.1, 1.2), strict=True):
        layouts = {"xvolution split": form(ratio, 109), "xvolution single": form(1.6, 150)}
        cases.append(operator_case("inference", shape, 1, "float32", conv=form(1.0), **layouts))
        plain = {"conv": form(1.0), "conv and norm": form(1.1, peak=110)}
        cases.append(operator_case("training", shape, 32, "float32", **plain, xvolution=form(1.65, 109, 220)))
    return cases


def test_bars_are_computed_from_the_results() -> None:
    found = {bar.what: bar for bar in bars.operator_bars(operator_results())}
    mean = found["deployed operator / conv, float32, batch 1: geometric mean"]
    assert (mean.measured, mean.allowed, mean.floor, mean.met) == ("1.19", "1.15", "1.09", False)
    assert found["deployed operator / conv, float32, batch 1: largest"].measured == "1.40"
    assert found["deployed operator / conv, float32, batch 32: largest"].measured == bars.NOT_MEASURED
    assert found["forward and backward / conv and norm, float32, batch 32: geometric mean"].measured == "1.50"
    memory = found["peak memory of training / conv, float32, batch 32"]
    assert (memory.measured, memory.met) == ("2.20", False)


def test_the_page_does_without_the_operator(tmp_path: Path) -> None:
    forms = {"conv": form(1.0), "acmix": form(4.0)}
    case = operator_case("inference", "resnet-1", 1, "float32", **forms)
    (tmp_path / "bench-operators.json").write_text(stored("operators", [case]))
    side = {"side": 56, "channels": 64, "threads": 1, "forms": {"conv": form(1.0), "global": form(9.0)}}
    (tmp_path / "bench-scaling.json").write_text(stored("scaling", [side]))
    write_page(tmp_path, tmp_path / "performance.md")
    text = (tmp_path / "performance.md").read_text()
    assert "| 64 x 56x56, batch 1, float32, threads 1 | 1.00 | 4.00 |" in text
    assert "Where it loses" not in text


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
    forms = {"conv": form(1.0), "stage 3": form(1.02), "all stages": form(1.2)}
    networks = [
        {"network": "resnet50", "runtime": "onnxruntime", "batch": 1, "image_size": 224, "threads": 1, "forms": forms}
    ]
    for kind, cases in (("operators", operator_results()), ("scaling", scaling), ("networks", networks)):
        (tmp_path / f"bench-{kind}.json").write_text(stored(kind, cases))
    page = tmp_path / "docs" / "performance.md"
    write_page(tmp_path, page)
    text = page.read_text()
    assert "| ResNet-50, stage 3, deployed in ONNX Runtime | 1.05 | 1.02 | 1.00 | yes |" in text
    assert "| ResNet-50, all stages, deployed in ONNX Runtime | 1.12 | 1.20 | 1.00 | no |" in text
    assert f"| ResNet-50, stage 3, deployed in OpenVINO | 1.05 | {bars.NOT_MEASURED} |  |  |" in text
    assert "| faster than the global branch, 56x56 and up (least) | 20 times | 3136 times |  | yes |" in text
    assert "The dearest place is 64 x 56x56, batch 1" in text
    assert "global at 112x112 (one call takes 9 GFLOPs)" in text
    assert "<svg" in (page.parent / "images" / "performance-scaling.svg").read_text()


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
        (["scaling", "--sides", "1"], "at least 3"),
        (["page", "--results", "nowhere"], "run `xvolution bench` first"),
    ],
)
def test_bad_input_is_answered_in_a_sentence(
    arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", *arguments]) == 2
    assert sentence in capsys.readouterr().err


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
