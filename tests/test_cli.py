"""The command line parses, calls, and answers mistakes with one sentence and an exit code."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from xvolution import XVolutionConfig, __version__
from xvolution.attention import Global, Linear
from xvolution.cli import COMMANDS, main
from xvolution.conversion.config import Conversion, Placement
from xvolution.conversion.register import operator_config, operator_names, options_of
from xvolution.signals import ending_politely

pytest.importorskip("jsonargparse")

from xvolution.training import InputError
from xvolution.training.commands import parse_run

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.yaml"))
TINY = [
    "--model-kwargs",
    '{"layers": [1, 1, 1, 1], "channels": [8, 8, 16, 32]}',
    "--small-images",
    "--image-size",
    "16",
]


def test_version_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"xvolution {__version__}\n"
    for arguments in ([], ["--help"]):
        assert main(arguments) == 0
        text = capsys.readouterr().out
        assert all(command in text for command in COMMANDS)


def test_an_unknown_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tarin"]) == 2
    said = capsys.readouterr().err
    assert "there is no command 'tarin'" in said
    assert "Did you mean train?" in said


def test_flags_become_the_configuration() -> None:
    flags = ["--lr", "0.2", "--small-images", "--no-compile", "--precision", "bf16", "--devices", "2"]
    config = parse_run(
        [*flags, "--stages", "[2, 3]", "--operator", "linear", "--num-heads", "2", "--checkpoint-every", "9"]
    )
    assert (config.lr, config.small_images, config.compile, config.precision) == (0.2, True, False, "bf16")
    assert (config.devices, config.checkpoint_every) == (2, 9)
    assert config.conversion == Conversion(XVolutionConfig(attention=Linear(num_heads=2)), Placement(stages=(2, 3)))
    assert parse_run([]).stages == [3]


@pytest.mark.parametrize("name", [name for name in operator_names() if name != "conv"])
def test_each_operator_has_flags_of_its_own(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_run(["--operator", name, "--help-all"])
    text = capsys.readouterr().out
    listed = {option.name.replace("_", "-") for option in options_of(name)}
    assert {flag for flag in listed if f"--{flag} " in text or f"--[no-]{flag} " in text} == listed
    config = parse_run(["--operator", name, "--kernel-size", "3"])
    assert config.operator_options == {"kernel_size": 3}
    assert config.conversion == Conversion(operator_config(name, {"kernel_size": 3}), Placement(stages=(3,)))


def test_an_option_of_another_operator_is_answered_with_the_right_ones() -> None:
    with pytest.raises(
        InputError, match=r"linear has no option --window; its options are --attention-ratio, --num-heads"
    ):
        parse_run(["--operator", "linear", "--window", "5"])
    with pytest.raises(InputError, match=r"'linear' does not take window; its options are attention_ratio, num_heads"):
        _ = parse_run(["--operator", "linear", "--operator-options", '{"window": 5}']).conversion
    with pytest.raises(InputError, match=r"--operator is softmax; it must be one of xvolution, "):
        parse_run(["--operator", "softmax"])


def test_an_option_on_the_command_line_wins_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("operator: gated_depthwise\noperator_options: {window: 3, pooled_value: true}\nzero_init: false\n")
    config = parse_run(["--config", str(file), "--window", "5"])
    assert config.operator_options == {"window": 5, "pooled_value": True, "zero_init": False}


def test_flags_win_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("lr: 0.3\nepochs: 7\noperator: global\nstages: [1]\nnum_heads: 2\n")
    config = parse_run(["--config", str(file), "--epochs", "9", "--num-heads", "4"])
    assert (config.lr, config.epochs) == (0.3, 9)
    assert config.conversion == Conversion(XVolutionConfig(attention=Global(num_heads=4)), Placement(stages=(1,)))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_recipes_parse(path: Path) -> None:
    config = parse_run(["--config", str(path)])
    assert config.operator == "xvolution"
    assert config.stages == [3]
    assert (config.task != "classify") == path.stem.startswith(("coco", "penn"))
    if "imagenet1k" in path.stem:
        assert config.kernel_sizes == [3]


def test_there_are_recipes() -> None:
    assert {path.stem for path in CONFIGS} >= {"digits", "cifar10", "tiny_imagenet", "penn_fudan"}
    assert sum("coco" in path.stem for path in CONFIGS) == 4
    assert sum("imagenet1k" in path.stem for path in CONFIGS) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--data", "/no/such/folder"], "there is no file or folder /no/such/folder"),
        (["train", "--epochs", "0"], "--epochs is 0; it must be at least 1"),
        (["train", "--model", "resnet1850"], "timm knows no model called 'resnet1850'"),
        (["train", "--norm-layer", "NoSuchNorm"], "NoSuchNorm"),
        (["evaluate", "/no/such.ckpt"], "there is no file /no/such.ckpt"),
        (["deploy", "/no/such.ckpt", "--output", "m.onnx"], "there is no file /no/such.ckpt"),
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
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


def test_a_flag_of_the_wrong_type_exits_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--epochs", "many"]) == 2
    assert capsys.readouterr().err == "xvolution: --epochs is many; it must be a whole number.\n"


@pytest.mark.slow
def test_train_evaluate_deploy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, figures = tmp_path / "run", tmp_path / "figures.json"
    train = ["train", *TINY, "--epochs", "1", "--limit-train-batches", "4", "--output", str(run)]
    assert main([*train, "--accelerator", "cpu"]) == 0
    assert "best epoch 1: top-1" in capsys.readouterr().out
    assert main(train) == 2
    assert "--resume last" in capsys.readouterr().err
    deployed = run / "deployed.safetensors"
    assert main(["deploy", str(run / "last.ckpt"), "--output", str(deployed), "--fold-norms"]) == 0
    assert f"wrote {deployed}" in capsys.readouterr().out
    results = []
    for path in (run / "last.ckpt", deployed):
        assert main(["evaluate", str(path), "--json", str(figures), "--predictions", str(tmp_path / "p.csv")]) == 0
        assert "images/s" in capsys.readouterr().out
        results.append((json.loads(figures.read_text())["top1"], (tmp_path / "p.csv").read_text()))
    assert results[0] == results[1]


@pytest.mark.slow
def test_ctrl_c_exits_with_130(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys\n"
        "from xvolution.cli import main\n"
        "from xvolution.training.classification.module import Classification as C\n"
        "step = C.training_step\n"
        "def interrupted(self, batch, index):\n"
        "    if index == 1: os.kill(os.getpid(), signal.SIGINT)\n"
        "    return step(self, batch, index)\n"
        "C.training_step = interrupted\n"
        f"sys.exit(main(['train', *{TINY!r}, '--output', {str(tmp_path / 'run')!r}]))"
    )
    finished = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert finished.returncode == 130
    assert "with --resume last to continue" in finished.stderr
    assert "Traceback" not in finished.stderr
    assert (tmp_path / "run" / "last.ckpt").is_file()


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("library", ["torch.nn", "numpy", "xvolution.training.tasks"])
def test_a_request_to_end_inside_of_an_import_leaves_at_once(library: str, signum: signal.Signals) -> None:
    code = f"""
import os, sys
from xvolution.cli import main

class Asked:
    def find_spec(self, name, path=None, target=None):
        if name == {library!r}:
            os.kill(os.getpid(), {int(signum)})

sys.meta_path.insert(0, Asked())
sys.exit(main(["evaluate", "/no/such.ckpt"]))
"""
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert finished.returncode == 128 + signum
    assert finished.stderr == "xvolution: interrupted.\n"


def test_a_request_to_end_outside_of_an_import_is_an_exception() -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), ending_politely():
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_a_reader_that_leaves_ends_a_command_without_a_trace() -> None:
    code = "import sys; from xvolution.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", code, "compare", "--operators", "conv,xvolution", "--data", "digits", "--dry-run"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 141


def test_another_broken_pipe_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def loses_a_worker(arguments: object) -> None:
        raise BrokenPipeError("a worker is gone")

    monkeypatch.setattr("xvolution.training.commands.train_command", loses_a_worker)
    with pytest.raises(BrokenPipeError, match="a worker is gone"):
        main(["train"])


@pytest.mark.parametrize(
    "arguments",
    [
        ["evaluate", "a" * 5000],
        ["deploy", "a" * 5000, "--output", "model.onnx"],
        ["train", "--data", "digits", "--output", "a" * 5000],
        ["train", "--data", "digits", "--resume", "a" * 5000],
    ],
)
def test_a_path_that_no_file_can_have_is_a_sentence(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert "a... is longer than a path can be; give a shorter one" in said
    assert len(said) < 300


@pytest.mark.parametrize(
    ("block", "expected", "options"),
    [
        ("{stages: [3]}", "pixel_shift", {"attention_ratio": 0.25, "pooled_query": True, "window": "conv"}),
        ("{stages: [3], attention: linear, heads: 4}", "linear", {"num_heads": 4}),
        ("{stages: [3], attention: pssa, window: 5, num_conv_branches: 2}", "pixel_shift", {"window": 5}),
    ],
)
def test_recipes_of_0_1_0_are_read(tmp_path: Path, block: str, expected: str, options: dict[str, Any]) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"model: resnet18\noperator: xvolution\nxvolution: {block}\nepochs: 7\n")
    config = parse_run(["--config", str(recipe), "--epochs", "3"])
    assert (config.operator, config.stages, config.epochs, config.at_projections) == (expected, [3], 3, False)
    assert options.items() <= config.operator_options.items()
    assert parse_run([f"--config={recipe}"]).epochs == 7
