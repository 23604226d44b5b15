"""A comparison trains what is missing, survives what happens to its cells, and reports what it found."""

from __future__ import annotations

import csv
import json
import re
import shutil
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("lightning")
pytest.importorskip("matplotlib")

from tests.comparing import Inline, Text
from xvolution.cli import main
from xvolution.compare import CompareConfig, Comparison, Variant, cluster, compare, launch, run
from xvolution.compare import cell as cell_module
from xvolution.compare.cell import run_task
from xvolution.compare.grid import Cell, cells
from xvolution.compare.launch import LocalLauncher, run_cells
from xvolution.compare.page import render
from xvolution.compare.results import gather
from xvolution.compare.verdict import differs, headline, verdict
from xvolution.deploy.runtimes.onnx_sessions import OnnxSession
from xvolution.training import DetectionConfig, InputError, Interrupted, RunError, TrainConfig, evaluate

TINY: dict[str, Any] = {
    "model": "resnet18",
    "model_kwargs": {"layers": [1, 1, 1, 1], "channels": [4, 4, 8, 8]},
    "small_images": True,
    "data": "digits",
    "image_size": 16,
    "limit_train_batches": 6,
    "epochs": 1,
    "accelerator": "cpu",
    "workers": 0,
}
VARIANTS = (Variant("conv", "conv"), Variant("xvolution", "xvolution"))


@pytest.fixture
def inline(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Cells run here; answers the names of those that were started."""
    started: list[str] = []

    def launcher(config: CompareConfig) -> Inline:
        made = Inline(config)
        made.started = started
        return made

    monkeypatch.setattr(run, "launcher_for", launcher)
    return started


def configured(folder: Path, **changes: Any) -> CompareConfig:
    recipe = TrainConfig(**{**TINY, **changes.pop("recipe", {})})
    return CompareConfig(
        recipe, **{"variants": VARIANTS, "seeds": (0, 1), "output": str(folder), "latency_rounds": 2, **changes}
    )


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a comparison of two operators with two seeds."""
    folder = tmp_path_factory.mktemp("compared")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "launcher_for", Inline)
        compare(configured(folder))
    return folder


@pytest.mark.slow
def test_the_page_holds_every_figure_and_loads_nothing(compared: Path) -> None:
    figures = json.loads((compared / "results.json").read_text(encoding="utf-8"))
    source = (compared / "report.html").read_text(encoding="utf-8")
    page = Text()
    page.feed(source)
    text = " ".join("".join(page.shown).replace("\u00a0", " ").split())
    assert page.loads == []
    assert not re.search(r"@import|url\((?!#)", source)
    assert source.count("<svg") == 3
    assert figures["headline"] in text
    assert "not conclusive" in text
    for row in figures["variants"]:
        wanted = [row["label"], row["verdict"], f"{100 * row['score']['estimate']:.2f} %"]
        wanted += [f"{100 * row['metrics'][name]:.2f} %" for name in ("top1", "top5")]
        wanted += [
            f"{row['deployed_parameters']:,}",
            f"{row['flops'] / 1e6:.2f} M",
            f"{row['deployed_flops'] / 1e6:.2f} M",
        ]
        wanted += [f"{row['latency']['median_ms']:.2f} ms", f"× {row['latency']['ratio']:.2f}"]
        wanted += [f"{row['seconds_per_epoch']:.1f} s", f"{row['peak_memory_bytes'] / 2**20:.0f} MiB"]
        for interval in (row["difference"], row["bootstrap"]):
            wanted += [] if interval is None else [f"{100 * interval['low']:+.2f}".replace("-", "−")]
        assert [part for part in wanted if part not in text] == []
    for cell in figures["cells"]:
        assert f"{cell['loss']:.4f}" in text


@pytest.mark.slow
def test_latency_is_that_of_the_runtime_that_ships(
    compared: Path, inline: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each network is written and run there, and measured anew where another runtime was asked for before."""
    pytest.importorskip("onnxruntime")
    shutil.copytree(compared, tmp_path / "again")
    ran: list[tuple[int, ...]] = []
    run_there = OnnxSession._run

    def counted(self: OnnxSession, inputs: tuple[torch.Tensor, ...]) -> list[torch.Tensor]:
        ran.append(tuple(inputs[0].shape))
        return run_there(self, inputs)

    monkeypatch.setattr(OnnxSession, "_run", counted)
    config = configured(tmp_path / "again", latency_runtime="onnxruntime", latency_batch=3)
    latency = compare(config).figures["latency"]
    assert inline == []
    assert ran.count((3, 3, 16, 16)) >= 2 * 2
    assert latency["forms"].keys() == {"conv", "xvolution"}
    assert latency["runtime"] == "onnxruntime"
    assert latency["forms"]["conv"]["ratio"] == 1
    said = f"Latency is the median of the deployed form in ONNX Runtime {version('onnxruntime')} at batch 3, on "
    assert said in (tmp_path / "again" / "report.html").read_text(encoding="utf-8")
    ran.clear()
    assert compare(config).figures["latency"] == latency
    assert ran == []


@pytest.mark.slow
def test_the_files_say_how_they_were_made(compared: Path) -> None:
    figures = json.loads((compared / "results.json").read_text(encoding="utf-8"))
    assert {"command", "commit", "device", "versions"} <= figures["conditions"].keys()
    assert figures["recipe"]["epochs"] == 1
    assert [(cell["label"], cell["seed"]) for cell in figures["cells"]] == [
        ("conv", 0), ("xvolution", 0), ("conv", 1), ("xvolution", 1)
    ]  # fmt: skip
    for cell in figures["cells"]:
        assert cell["top1"] == pytest.approx(cell["history"][-1]["val_top1"], abs=1e-6)
        assert cell["peak_memory_bytes"] > 2**20
    plain, xvolution = figures["variants"]
    assert plain["verdict"] == "the baseline"
    assert xvolution["deployed_flops_ratio"] > 1
    assert isinstance(xvolution["deployed_parameters"], int)
    assert xvolution["bootstrap"]["estimate"] == pytest.approx(xvolution["difference"]["estimate"])
    with open(compared / "results.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["top1"]) for row in rows] == [cell["top1"] for cell in figures["cells"]]


@pytest.mark.slow
def test_done_cells_are_skipped_and_seeds_can_be_added(compared: Path, inline: list[str]) -> None:
    again = compare(configured(compared))
    assert inline == []
    assert len(again.figures["cells"]) == 4
    with pytest.raises(InputError, match="epochs was 1, is 2"):
        compare(configured(compared, recipe={"epochs": 2}))
    few = compare(configured(compared, seeds=(1,)))
    assert len(few.figures["cells"]) == 2
    assert inline == []


@pytest.mark.slow
def test_folds_judge_every_image_once_by_a_network_that_did_not_see_it(
    tmp_path: Path, inline: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    config = configured(tmp_path, folds=3, seeds=(0,))
    grid = cells(config)
    reporter = run.Reporter(config, grid)
    reporter.started(grid[0])
    found = compare(config)
    assert inline == ["conv seed 0", "xvolution seed 0"]
    capsys.readouterr()
    reporter.progress(grid[0])
    said = capsys.readouterr().out
    assert "conv seed 0: fold 1/3, epoch 1/1" in said
    assert "conv seed 0: fold 3/3, epoch 1/1" in said
    assert "2 trainings: 2 variants x 1 seeds, each of 3 folds, in this order" in run.dry_run(config)
    assert (found.figures["folds"], found.figures["images"]) == (3, 1797)
    assert "each image once, by that of 3 networks which was not trained on it" in found.page.read_text(
        encoding="utf-8"
    )
    for cell in cells(config):
        with np.load(cell.folder / "correct.npz") as file:
            index, correct = file["index"], file["correct"]
        assert index.tolist() == list(range(1797))
        result = cell.result()
        assert result is not None
        assert result["top1"] == pytest.approx(correct.mean())
        own = [evaluate(each.run_dir / "last.ckpt", holdout=each.holdout, seed=0) for each in cell.trainings]
        assert result["loss"] == pytest.approx(
            np.average([each.loss for each in own], weights=[each.images for each in own])
        )
        assert sum(each.images for each in own) == 1797
        assert correct.sum() == round(sum(each.top1 * each.images for each in own))
        assert len(result["history"]) == 1
        assert [each.holdout for each in cell.trainings] == ["1/3", "2/3", "3/3"]
    compare(config)
    assert len(inline) == 2
    with pytest.raises(InputError, match=r"comparison with another recipe \(folds was 3, is null\)"):
        compare(configured(tmp_path, seeds=(0,)))


def test_folds_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"the fold 1/1 cannot be; .* with 2 to 1000 parts"):
        configured(tmp_path, folds=1)
    with pytest.raises(InputError, match=r"--folds is 5 and --holdout 0.2; both say what judges: give one"):
        configured(tmp_path, folds=5, recipe={"holdout": 0.2})
    taught = (Variant("taught", "xvolution", training={"teacher": "a.ckpt"}),)
    with pytest.raises(InputError, match="a network has a teacher, which may have learned from the images that judge"):
        configured(tmp_path, folds=5, variants=taught)
    with pytest.raises(InputError, match="it is for classifiers, and the task is detect"):
        CompareConfig(DetectionConfig(), VARIANTS, folds=5)


@pytest.mark.slow
def test_a_failed_cell_is_reported_and_the_others_go_on(
    tmp_path: Path, inline: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    train_once = cell_module.train_once

    def fails(config: TrainConfig) -> Any:
        if config.operator == "xvolution":
            raise RunError("the loss became nan.")
        return train_once(config)

    monkeypatch.setattr(cell_module, "train_once", fails)
    flags = [
        "--model-kwargs",
        json.dumps(TINY["model_kwargs"]),
        "--small-images",
        "--image-size",
        "16",
        "--epochs",
        "1",
    ]
    flags += ["--limit-train-batches", "4", "--accelerator", "cpu", "--latency-rounds", "0", "--seeds", "1"]
    assert main(["compare", "--operators", "conv,xvolution,conv-conv", *flags, "--output", str(tmp_path)]) == 1
    captured = capsys.readouterr()
    assert "1 of 3 trainings failed (xvolution seed 0: the loss became nan.)" in captured.err
    assert "xvolution seed 0: failed: the loss became nan." in captured.out
    figures = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert [row["score"] is None for row in figures["variants"]] == [False, True, False]
    assert "the loss became nan." in (tmp_path / "report.html").read_text(encoding="utf-8")
    monkeypatch.setattr(cell_module, "train_once", train_once)
    inline.clear()
    assert main(["compare", "--operators", "conv,xvolution,conv-conv", *flags, "--output", str(tmp_path)]) == 0
    assert inline == ["xvolution seed 0"]


class Watch:
    """Interrupts, or kills the cell, when it has finished an epoch."""

    def __init__(self, config: CompareConfig, kill: bool = False) -> None:
        self.config, self.kill, self.launcher = config, kill, LocalLauncher(config)

    def started(self, cell: Cell) -> None: ...

    def progress(self, cell: Cell) -> None:
        if (cell.folder / "history.csv").exists():
            if not self.kill:
                raise KeyboardInterrupt
            for job in self.launcher._slots:
                if job is not None:
                    job.kill()

    def ended(self, cell: Cell) -> None: ...


@pytest.mark.slow
@pytest.mark.parametrize("kill", [False, True], ids=["ctrl-c", "killed"])
def test_an_interrupted_process_goes_on(tmp_path: Path, kill: bool) -> None:
    """The second time in this process, from the checkpoint that the first left."""
    config = configured(tmp_path, recipe={"epochs": 40}, seeds=(0,), threads=1)
    cell = cells(config)[0]
    watch = Watch(config, kill)
    if kill:
        run_cells([cell], watch.launcher, watch)
    else:
        with pytest.raises(Interrupted, match="interrupted with 1 trainings running and 0 waiting"):
            run_cells([cell], watch.launcher, watch)
    assert cell.result() is None
    state = torch.load(cell.folder / "last.ckpt", weights_only=True)
    seen = len(state["history"])
    assert 1 <= seen < 40
    assert ("Ctrl-C: writing a checkpoint" in (cell.folder / "log.txt").read_text()) is not kill
    task = cell.folder / "cell.json"
    task.write_text(task.read_text().replace('"epochs": 40', f'"epochs": {seen + 1}'))
    assert run_task(cell.folder) == 0
    result = json.loads((cell.folder / "result.json").read_text())
    assert [row["epoch"] for row in result["history"]] == list(range(1, seen + 2))
    assert [row["train_loss"] for row in result["history"][:seen]] == [row["train_loss"] for row in state["history"]]


@pytest.mark.slow
def test_cells_run_through_submitit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("submitit")
    monkeypatch.setattr(cluster, "CLUSTER", "local")
    config = configured(tmp_path, seeds=(0,), launcher="slurm", threads=1, slurm={"timeout_min": 5})
    cell = cells(config)[0]
    launcher = launch.launcher_for(config)

    class Quiet(Watch):
        def progress(self, cell: Cell) -> None: ...

    run_cells([cell], launcher, Quiet(config))
    assert cell.result() is not None


def test_slurm_parameters_that_submitit_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("submitit")
    monkeypatch.setattr(cluster, "CLUSTER", "local")
    with pytest.raises(InputError, match="submitit cannot use --slurm"):
        launch.launcher_for(configured(tmp_path, launcher="slurm", slurm={"no_such_parameter": 1}))


def test_two_comparisons_do_not_write_to_one_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def nested(self: run.Reporter) -> None:
        compare(configured(tmp_path))

    monkeypatch.setattr(run.Reporter, "run", nested)
    with pytest.raises(RunError, match=r"another process is writing to .* \(process \d+ on "):
        compare(configured(tmp_path))


def test_gpus_are_dealt_out_in_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    seen: list[str] = []

    class Process:
        def __init__(self, *arguments: Any, env: dict[str, str], **options: Any) -> None:
            seen.append(env["CUDA_VISIBLE_DEVICES"])

        def poll(self) -> None: ...

    monkeypatch.setattr(launch.subprocess, "Popen", Process)
    config = configured(tmp_path, recipe={"accelerator": "auto"}, jobs_per_device=2)
    launcher = LocalLauncher(config)
    assert launcher.capacity == 4
    for cell in cells(config):
        launcher.start(cell)
    assert seen == ["2", "5", "2", "5"]


def test_a_report_without_any_result(tmp_path: Path) -> None:
    config = configured(tmp_path)
    figures = gather(config, cells(config), {}, None)
    assert figures["headline"] == "No variant is finished for the same seeds as conv yet."
    assert [row["verdict"] for row in figures["variants"]] == ["the baseline", "not finished"]


def finish(cell: Cell, right: float) -> None:
    """Leave what a cell leaves that classified a share of 1,000 images rightly."""
    correct = np.random.default_rng(cell.train.seed).permutation(1000) < round(1000 * right)
    cell.folder.mkdir(parents=True)
    np.savez(cell.folder / "correct.npz", index=np.arange(1000), correct=correct)
    result = {
        "label": cell.variant.label, **cell.variant.to_dict(), "digest": cell.digest, "seed": cell.train.seed, "images": 1000,
        "command": cell.commands[0], "top1": right, "top5": right + 0.1, "loss": 2 - right, "parameters": 10, "flops": 100,
        "deployed_parameters": 9, "deployed_flops": 90, "seconds_per_epoch": 1.0, "peak_memory_bytes": 2**20,
        "peak_memory_of": "process", "device": "cpu", "threads": 1,
        "history": [{"epoch": 1, "train_loss": 1.0, "val_top1": right, "seconds": 1.0}],
    }  # fmt: skip
    (cell.folder / "result.json").write_text(json.dumps(result), encoding="utf-8")


def test_variants_are_compared_with_each_other_too(tmp_path: Path) -> None:
    variants = (*VARIANTS, Variant("control", "conv-conv"), Variant("late", "involution"))
    config = configured(tmp_path, variants=variants, seeds=(0, 1, 2))
    right = {"conv": 0.3, "xvolution": 0.5, "control": 0.45}
    grid = cells(config)
    for cell in grid:
        share = right.get(cell.variant.label)
        if share is not None and (cell.variant.label, cell.train.seed) != ("control", 1):
            finish(cell, share + 0.01 * cell.train.seed)
    conditions = {"command": ["xvolution"], "commit": None, "versions": {}}
    device = {"processor": "some", "cores": 2, "system": "a system"}
    figures = gather(config, grid, {**conditions, "device": device}, None)
    (pair,) = figures["pairs"]
    assert (pair["label"], pair["against"]) == ("control", "xvolution")
    assert pair["bootstrap"]["seeds"] == 2
    assert pair["bootstrap"]["estimate"] == pytest.approx(-0.05)
    assert pair["difference"] == pair["differences"]["top1"]
    assert pair["differences"]["loss"]["estimate"] == pytest.approx(0.05)
    conv, xvolution, _, late = figures["variants"]
    assert xvolution["differences"]["loss"]["estimate"] == pytest.approx(-0.2)
    assert conv["differences"] == late["differences"] == {}
    page = Text()
    page.feed(render(figures))
    text = " ".join(" ".join(page.shown).split())
    assert "row minus column xvolution control −5.00" in text
    assert "−0.2000 −0.2000 to −0.2000" in text


def test_attention_that_has_hardly_begun_to_speak_is_said_of_its_variant(tmp_path: Path) -> None:
    variants = (*VARIANTS, Variant("awake", "linear"), Variant("older", "global"))
    config = configured(tmp_path, variants=variants, seeds=(0, 1))
    grid = cells(config)
    shares = {"conv": {}, "xvolution": {"a": 1e-7, "b": 2e-4}, "awake": {"a": 1e-7, "b": 0.2}, "older": None}
    for cell in grid:
        finish(cell, 0.5)
        found = shares[cell.variant.label]
        if found is not None:
            path = cell.folder / "result.json"
            seeds = {name: share / (1 + cell.train.seed) for name, share in found.items()}
            result = {**json.loads(path.read_text(encoding="utf-8")), "attention_shares": seeds}
            path.write_text(json.dumps(result), encoding="utf-8")
    conditions = {"command": ["xvolution"], "commit": None, "versions": {}}
    device = {"processor": "some", "cores": 2, "system": "a system"}
    figures = gather(config, grid, {**conditions, "device": device}, None)
    sentences = {row["label"]: row["asleep"] for row in figures["variants"]}
    assert {label: sentence is not None for label, sentence in sentences.items()} == {
        "conv": False, "xvolution": True, "awake": False, "older": False
    }  # fmt: skip
    assert "it is at most 0.0002 of the variance" in sentences["xvolution"]
    assert figures["variants"][1]["verdict"].endswith("; its attention hardly contributes yet")
    assert figures["asleep"] == [f"xvolution: {sentences['xvolution']}"]
    page = Text()
    page.feed(render(figures))
    assert figures["asleep"][0] in " ".join(page.shown)
    result = Comparison(tmp_path / "page", tmp_path / "results", tmp_path / "table", figures)
    assert f"\n{figures['asleep'][0]}\npage " in str(result)


def row(
    label: str, score: float, flops: float, interval: tuple[float, float] | None = None, seeds: int = 3
) -> dict[str, Any]:
    """A row as `gather` makes it, with the difference from conv in points."""
    found = None
    if interval is not None:
        low, high = (end / 100 for end in interval)
        found = {"estimate": (low + high) / 2, "low": low, "high": high, "half": (high - low) / 2, "seeds": seeds}
    return {
        "label": label, "score": {"estimate": score}, "deployed_flops": flops, "deployed_flops_ratio": flops,
        "deployed_parameters_ratio": 1.0, "difference": found, "bootstrap": found, "latency": {"ratio": 1.2},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (row("x", 0.708, 1.06, (0.4, 1.2)), "+0.8 ± 0.4 points at 1.06 times the FLOPs; worth it"),
        (row("x", 0.708, 2.0, (0.4, 1.2)), "+0.8 ± 0.4 points at 2.00 times the FLOPs; better, at a higher cost"),
        (row("x", 0.702, 1.06, (-0.4, 0.8)), "no significant difference with 3 seeds (+0.2 ± 0.6 points)"),
        (row("x", 0.695, 1.06, (-0.7, -0.3)), "−0.5 ± 0.2 points: worse"),
        (row("x", 0.708, 1.06, (0.4, 1.2), seeds=2), "+0.8 ± 0.4 points: not conclusive with 2 seeds"),
    ],
)
def test_rows_in_words(given: dict[str, Any], sentence: str) -> None:
    assert verdict(given, "conv", [row("conv", 0.70, 1.0), given]) == sentence


@pytest.mark.parametrize(
    ("interval", "seeds", "shown"),
    [((0.4, 1.2), 3, True), ((-1.2, -0.4), 3, True), ((-0.4, 0.8), 3, False), ((0.4, 1.2), 2, False)],
)
def test_a_difference_is_shown_to_either_side_by_enough_seeds(
    interval: tuple[float, float], seeds: int, shown: bool
) -> None:
    assert differs(row("x", 0.7, 1.0, interval, seeds)["bootstrap"]) is shown


def test_a_gain_that_another_gives_for_less_is_not_worth_it() -> None:
    rows = [row("conv", 0.70, 1.0), row("x", 0.71, 1.1, (0.5, 1.5)), row("y", 0.72, 1.05, (1.5, 2.5))]
    assert verdict(rows[1], "conv", rows).endswith("; y is more accurate at no higher cost")
    assert verdict(rows[2], "conv", rows).endswith("; worth it")


def test_the_answer_on_top() -> None:
    plain, gain = row("conv", 0.70, 1.0), row("x", 0.708, 1.06, (0.4, 1.2))
    assert headline([plain, gain], "conv", 3, "top-1") == (
        "Yes: x gains +0.8 ± 0.4 points of top-1 over conv, at 1.00 times the parameters, 1.06 times the FLOPs and 1.20 times "
        "the latency once deployed."
    )
    assert "It was chosen as the best of 2, so the estimate is slightly too high" in headline(
        [plain, gain, replace_label(gain, "y", -0.1)], "conv", 3, "top-1"
    )
    wild = row("wild", 0.72, 1.0, (-3, 7))
    assert headline([plain, wild, gain], "conv", 3, "top-1").startswith("Yes: x gains +0.8")
    assert "This is not conclusive" in headline([plain, row("x", 0.75, 1.0, (4, 6), seeds=2)], "conv", 3, "top-1")
    assert headline([plain, row("x", 0.69, 1.0, (-2, -1))], "conv", 3, "top-1").startswith(
        "No: every variant is worse than conv;"
    )
    assert headline([plain, row("x", 0.70, 1.0, (-1, 1))], "conv", 3, "top-1").startswith(
        "No variant is significantly better than conv"
    )
    assert "points of mask AP over conv" in headline([plain, gain], "conv", 3, "mask AP")


def replace_label(given: dict[str, Any], label: str, estimate: float) -> dict[str, Any]:
    interval = {**given["bootstrap"], "estimate": estimate}
    return {**given, "label": label, "bootstrap": interval, "difference": interval}


def test_another_recipe_is_another_digest(tmp_path: Path) -> None:
    config = configured(tmp_path)
    other = replace(config, recipe=replace(config.recipe, lr=0.3))
    moved = replace(config, output=str(tmp_path / "elsewhere"), recipe=replace(config.recipe, workers=2))
    digests = [cell.digest for cell in cells(config)]
    assert len(set(digests)) == 4
    assert not set(digests) & {cell.digest for cell in cells(other)}
    assert digests == [cell.digest for cell in cells(moved)]


@pytest.mark.parametrize(("rounds", "left"), [(20, "about 3 min"), (0, "about 2 min")])
def test_the_time_that_is_left_counts_judging_and_timing(rounds, left):
    done = {"seconds_per_epoch": 10.0, "seconds_after_training": 30.0}
    grid = [
        SimpleNamespace(name=name, epochs=10, result=lambda found=found: found)
        for name, found in (("conv", done), ("xvolution", None))
    ]
    reporter = run.Reporter.__new__(run.Reporter)
    reporter.grid, reporter._epochs, reporter._jobs = grid, {}, 1
    reporter.config = SimpleNamespace(variants=grid, latency_rounds=rounds)
    # 10 epochs, judging, and twice as long as judging to deploy and to time both.
    assert reporter._remaining() == f"  [1 of 2 trainings, {left} left, including evaluation and latency]"
