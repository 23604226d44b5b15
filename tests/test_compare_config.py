"""Variants, presets and flags become a grid; what cannot is answered with one sentence."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

pytest.importorskip("jsonargparse")

from xvolution.cli import main
from xvolution.compare import CompareConfig, Variant, parse_variants, preset, preset_names
from xvolution.compare.commands import parse_compare
from xvolution.compare.grid import cells, claim
from xvolution.compare.variants import variants_from
from xvolution.conversion.register import operator_names
from xvolution.models import build_model
from xvolution.training import InputError, TrainConfig
from xvolution.training.classification.train import model_spec
from xvolution.training.commands import parse_run


def test_options_follow_a_colon() -> None:
    options = "attention_ratio=0.5,window=5,gate=tanh"
    last = "xvolution:dilation=[1,2,4],label=far,stages=[2,3]"
    plain, several, both, far = parse_variants(f"conv,xvolution:{options},conv-conv,{last}")
    assert plain == Variant("conv", "conv")
    assert several.options == {"attention_ratio": 0.5, "window": 5, "gate": "tanh"}
    assert several.label == f"xvolution:{options}"
    assert both.operator == "conv-conv"
    assert far == Variant("far", "xvolution", {"dilation": [1, 2, 4]}, {"stages": [2, 3]})


def test_a_variant_can_be_trained_in_its_own_way() -> None:
    (fast,) = parse_variants("xvolution:window=5,new_lr_factor=4,label=fast")
    assert fast == Variant("fast", "xvolution", {"window": 5}, {}, {"new_lr_factor": 4})
    (slow,) = parse_variants("conv:lr=0.01,weight_decay=0")
    config = CompareConfig(TrainConfig(new_lr_factor=2.0, lr=0.5, weight_decay=0.1), (fast, slow), seeds=(0,))
    assert [cell.train.new_lr_factor for cell in cells(config)] == [2.0, 4, 2.0]
    assert [(cell.train.lr, cell.train.weight_decay) for cell in cells(config)] == [(0.5, 0.1), (0.5, 0.1), (0.01, 0)]
    assert Variant("fast", **fast.to_dict()) == fast


def test_a_training_starts_from_the_file_of_its_seed(tmp_path: Path) -> None:
    text = "xvolution:weights=runs/a/seed{seed}/last.ckpt,label=on,xvolution:teacher=b{seed}.ckpt,label=taught"
    config = CompareConfig(TrainConfig(), parse_variants(text), seeds=(3, 4), output=str(tmp_path))
    grid = cells(config)
    files = [(cell.train.weights, cell.train.teacher) for cell in grid if cell.variant.label != "conv"]
    assert files == [
        ("runs/a/seed3/last.ckpt", None),
        (None, "b3.ckpt"),
        ("runs/a/seed4/last.ckpt", None),
        (None, "b4.ckpt"),
    ]
    claim(config, grid)
    more = replace(config, seeds=(3, 4, 5))
    claim(more, cells(more))


def test_the_grid_is_seed_major_with_the_baseline_first() -> None:
    config = CompareConfig(TrainConfig(), parse_variants("xvolution,conv-conv"), seeds=(3, 5))
    assert [cell.name for cell in cells(config)] == [
        f"{label} seed {seed}" for seed in (3, 5) for label in ("conv", "xvolution", "conv-conv")
    ]
    assert {cell.train.holdout_seed for cell in cells(config)} == {0}


def test_the_command_of_a_cell_trains_the_cell() -> None:
    recipe = parse_run(["--small-images", "--lr", "0.3", "--stages", "[2]", "--no-pretrained"])
    config = CompareConfig(recipe, parse_variants("xvolution:window=5,stages=[3,4]"), output="some where")
    for cell in cells(config):
        words = shlex.split(shlex.join(cell.commands[0]))
        assert words[:2] == ["xvolution", "train"]
        assert parse_run(words[2:]) == cell.train


@pytest.mark.parametrize("name", preset_names())
def test_every_variant_of_a_preset_builds_a_network(name: str) -> None:
    config, dry = parse_compare(["--preset", name, "--data", "digits", "--seeds", "1"])
    assert not dry
    assert len({cell.digest for cell in cells(config)}) == len(config.variants)
    small = {"layers": [1, 1, 1, 1], "channels": [8, 8, 8, 8]}
    for cell in cells(config):
        spec = model_spec(replace(cell.train, model_kwargs=small, small_images=True), 10)
        build_model(spec, example_inputs=torch.zeros(1, 3, 16, 16))


def test_there_are_the_presets_of_the_paper() -> None:
    assert set(preset_names()) == {"operators", "stage", "kernel-size", "branches", "attention", "shifts", "defaults"}
    assert {variant.operator for variant in variants_from(preset("operators")["variants"])} == set(operator_names())


def test_flags_win_over_a_preset_of_ones_own(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(
        "recipe: {lr: 0.3, epochs: 7, stages: [2]}\nseeds: [4, 5]\nfolds: 3\n"
        "variants:\n  wide: {operator: xvolution, attention_ratio: 1.0}\n  acmix: acmix\n"
    )
    config, _ = parse_compare(["--preset", str(file), "--epochs", "9", "--backbone", "resnet34"])
    assert (config.recipe.lr, config.recipe.epochs, config.recipe.model) == (0.3, 9, "resnet34")
    assert config.recipe.stages == [2]
    assert (config.seeds, config.folds) == ((4, 5), 3)
    assert [variant.label for variant in config.variants] == ["conv", "wide", "acmix"]
    config, _ = parse_compare(["--preset", str(file), "--operators", "conv-conv", "--seeds", "[7]", "--folds", "5"])
    assert [variant.label for variant in config.variants] == ["conv", "conv-conv"]
    assert (config.seeds, config.folds) == ((7,), 5)


def test_variants_and_seeds_may_be_added_but_nothing_changed(tmp_path: Path) -> None:
    config = CompareConfig(TrainConfig(lr=0.1), parse_variants("xvolution"), output=str(tmp_path))
    claim(config, cells(config))
    more = replace(config, variants=parse_variants("xvolution,conv-conv"), seeds=(0, 1, 2, 3))
    claim(more, cells(more))
    elsewhere = replace(config, recipe=replace(config.recipe, accelerator="cpu", workers=3))
    claim(elsewhere, cells(elsewhere))
    other = replace(config, recipe=replace(config.recipe, lr=0.2))
    with pytest.raises(InputError, match=r"another recipe \(conv: lr was 0.1, is 0.2; xvol.*\); give another --output"):
        claim(other, cells(other))
    longer = replace(config, recipe=replace(config.recipe, epochs=31))
    with pytest.raises(InputError, match=r"another recipe \(epochs was 10, is 31\); give another --output"):
        claim(longer, cells(longer))
    path = tmp_path / "comparison.json"
    stored = json.loads(path.read_text())
    stored["recipe"]["lr"] = stored["variants"]["conv"].pop("lr")
    path.write_text(json.dumps(stored))
    with pytest.raises(InputError, match=r"another recipe \(conv: lr was 0.1, is 0.2; xvol.*\); give another --output"):
        claim(other, cells(other))
    redefined = replace(config, variants=(Variant("xvolution", "xvolution", {"window": 5}),))
    with pytest.raises(InputError, match="xvolution: operator_options was"):
        claim(redefined, cells(redefined))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "there is nothing to compare"),
        (["--operators", "acmics"], "there is no operator 'acmics'; the operators are "),
        (["--operators", "xvolution:windows=5"], "the variant 'xvolution:windows=5' cannot be used"),
        (["--operators", "window=5,xvolution"], "has no operator before it"),
        (["--operators", "xvolution:lr=fast"], "cannot be used: --lr is fast; it must be a number"),
        (["--operators", "xvolution:lr=true"], "cannot be used: --lr is True; it must be a number"),
        (["--operators", "xvolution:anneal_to_conv=1.5"], "--anneal-to-conv is 1.5; it must be a whole number"),
        (["--operators", "xvolution:lr=-1"], "cannot be used: --lr is -1; it must be more than 0"),
        (["--operators", "xvolution,xvolution"], "two variants have the label 'xvolution'"),
        (["--operators", "conv"], "there is only the baseline 'conv'"),
        (["--operators", "xvolution", "--baseline", "plain"], "the baseline is 'plain'"),
        (
            ["--operators", "xvolution", "--latency-runtime", "tensorflow"],
            "--latency-runtime is tensorflow; allowed are",
        ),
        (["--operators", "xvolution", "--latency-runtime", "coreml"], "--latency-runtime is coreml, but "),
        (
            ["--operators", "xvolution", "--latency-runtime", "ncnn", "--task", "detect"],
            "does not take whole detectors; allowed with --task detect are torch, onnxruntime, openvino",
        ),
        (
            ["--operators", "xvolution", "--latency-runtime=onnxruntime", "--task=segment", "--latency-batch=2"],
            "an exported detector takes one image at a time; give 1",
        ),
        (
            ["--operators", "xvolution", "--latency-runtime", "ncnn", "--latency-batch", "2"],
            "takes one image at a time",
        ),
        (["--operators", "xvolution", "--seeds", "none"], "--seeds is none"),
        (["--operators", "xvolution", "--seeds", "1000000000"], "--seeds is 1000000000; give a number from 1 to 1000"),
        (["--operators", "xvolution", "--seeds", "true"], "--seeds is true; give a number"),
        (["--operators", "xvolution", "--seeds", "[1, 1]"], "give at least one seed, and each seed only once"),
        (["--operators", "xvolution", "--jobs", "0"], "--jobs is 0; it must be at least 1"),
        (["--operators", "xvolution", "--devices", "2"], "each training on one device"),
        (["--operators", "xvolution", "--task", "pose"], "--task is pose; the tasks are classify, detect, segment"),
        (["--operators", "xvolution", "--epochs", "0"], "--epochs is 0"),
        (["--preset", "everything"], "there is no preset 'everything'; the presets are attention"),
        (["--operators", "xvolution", "--data", "/no/such/folder"], "there is no file or folder /no/such/folder"),
        (["--operators", "xvolution:stages=[9]"], "the variant 'xvolution:stages=[9]' cannot be built"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistakes_are_answered_with_one_sentence(
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["compare", "--latency-rounds", "0", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--operator", "conv"], "there is no flag --operator; did you mean --operators?"),
        (["--epochs", "many"], "--epochs is many; it must be a whole number."),
        (["--no-such-flag"], "there is no flag --no-such-flag."),
    ],
)
def test_a_flag_that_is_not_there_exits_with_2(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", "--operators", "xvolution", *arguments]) == 2
    assert said in capsys.readouterr().err


def test_a_preset_that_is_something_else(tmp_path: Path) -> None:
    for text, message in (
        ("a: [", "is not valid YAML"),
        ("- conv", "has list"),
        ("epochs: 3", "has epochs; allowed are"),
        ("recipe: fast", "recipe of the preset .* is 'fast'"),
    ):
        file = tmp_path / "preset.yaml"
        file.write_text(text)
        with pytest.raises(InputError, match=message):
            preset(str(file))


@pytest.mark.parametrize(
    ("variants", "said"),
    [
        ([{"operator": "conv"}], "list of variants has the entry {'operator': 'conv'}"),
        ({"plain": ""}, "the variant 'plain' is ''; it must be one operator"),
        ({"plain": "conv,xvolution"}, "it must be one operator"),
        (
            {"wide": {"operator": "xvolution", "options": [5]}},
            "options of the variant 'wide' are [5]; they must be a mapping",
        ),
    ],
)
def test_variants_that_cannot_be_read(variants: object, said: str) -> None:
    with pytest.raises(InputError, match=re.escape(said)):
        variants_from(variants)


@pytest.mark.parametrize("command", [parse_run, parse_compare])
def test_recipes_that_are_no_text_and_settings_that_are_null(tmp_path: Path, command: Callable[..., object]) -> None:
    recipe = tmp_path / "recipe.yaml"
    grid = ["--operators", "conv,xvolution"] if command is parse_compare else []
    recipe.write_bytes(b"epochs: 3\n\xff\xfe")
    with pytest.raises(InputError, match=r"recipe\.yaml is not UTF-8 text"):
        command([*grid, "--config", str(recipe)])
    recipe.write_text("epochs: null\n", encoding="utf-8")
    with pytest.raises(InputError, match="--epochs is null; give a value, or leave it out for the default, 10"):
        command([*grid, "--config", str(recipe)])


def test_a_dry_run_prints_the_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "out"
    flags = ["--operators", "xvolution", "--seeds", "2", "--output", str(output), "--dry-run"]
    assert main(["compare", *flags]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("4 trainings: 2 variants x 2 seeds")
    assert printed.count("xvolution train ") == 4
    assert "# xvolution seed 1 (new)" in printed
    assert not output.exists()


def test_a_configuration_survives_json() -> None:
    config = parse_run(["--dilation", "[1, 2]", "--model-kwargs", '{"drop_rate": 0.1}'])
    assert TrainConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(
    "recipe", sorted((Path(__file__).parents[1] / "configs").glob("*.yaml")), ids=lambda path: path.stem
)
def test_every_recipe_that_is_shipped_can_be_compared(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = yaml.safe_load(recipe.read_text())
    small = ["--backbone", "resnet18", "--operators", "xvolution", "--seeds", "1", "--latency-rounds", "0"]
    data = ["--data", "digits", "--image-size", "32"]
    if "task" in settings:
        coco_folder = pytest.importorskip("tests.training.coco_folder")
        data = ["--data", str(coco_folder.write_folder(tmp_path / "blocks"))]
    flags = ["--config", str(recipe), *data, *small, "--output", str(tmp_path / "out"), "--dry-run"]
    assert main(["compare", *flags]) == 0
    printed, said = capsys.readouterr()
    assert printed.startswith("2 trainings: 2 variants x 1 seeds")
    for cell in printed.splitlines()[2::2]:
        config = parse_run(shlex.split(cell)[2:])
        assert (config.lr, config.epochs, config.devices) == (settings["lr"], settings["epochs"], "auto")
    of_each_cell = [name for name in ("operator", "devices", "strategy") if name in settings]
    line = f"{recipe}: ignored {', '.join(of_each_cell)}, because the comparison sets this for each training\n"
    assert said == (line if of_each_cell else "")


def test_a_recipe_keeps_its_numbers_and_loses_the_options_of_its_operator(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(
        "operator: linear\nnum_heads: 2\nlr: 1e-3\nmodel_kwargs: {drop_rate: 0.1}\nhflip: 0\nprecision: '32'\n"
    )
    for flags in (["--config", str(file)], [f"--config={file}"]):
        config, _ = parse_compare([*flags, "--operators", "xvolution", "--lr", "2e-3"])
        assert (config.recipe.lr, config.recipe.hflip, config.recipe.precision) == (0.002, 0, "32")
        assert config.recipe.model_kwargs == {"drop_rate": 0.1}
        assert parse_compare([*flags, "--operators", "xvolution"])[0].recipe.lr == 0.001
    file.write_text("no_such_setting: 1\n")
    with pytest.raises(
        InputError, match="--config has the setting 'no_such_setting', which xvolution compare does not"
    ):
        parse_compare(["--config", str(file), "--operators", "xvolution"])
