"""The command line: parses and calls. Each subcommand names the function that builds its parser and runs it."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence

COMMANDS = {
    "train": (
        "xvolution.training.commands",
        "train_command",
        "train a classifier or a detector, with X-volution or without",
    ),
    "evaluate": (
        "xvolution.training.file_commands",
        "evaluate_command",
        "accuracy or average precision, and speed, of a checkpoint",
    ),
    "deploy": ("xvolution.training.file_commands", "deploy_command", "re-parameterize a checkpoint and export it"),
    "predict": ("xvolution.training.file_commands", "predict_command", "draw what a detector finds on images"),
    "data": ("xvolution.training.file_commands", "data_command", "check a folder in COCO's format"),
    "compare": ("xvolution.compare.commands", "compare_command", "which operator helps on my data, and what it costs"),
    "explain": ("xvolution.explain.command", "explain_command", "what the attention in a trained classifier does"),
    "bench": ("xvolution.bench.commands", "bench_command", "time, memory and operations against the convolution"),
    "demo": ("xvolution.demo.command", "demo_command", "train, deploy and compare on embedded data, on one page"),
}


def usage() -> str:
    """The text of `xvolution --help`."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {summary}" for name, (_, _, summary) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: xvolution [--version] [--help] COMMAND ...",
            "",
            "X-volution: convolution and self-attention in training, one convolution in deployment.",
            "",
            *lines,
            "",
            "xvolution COMMAND --help tells the options of a command.",
        ]
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        The exit code: 0; 1 where a run failed; 2 for bad input; 130 after Ctrl-C; 141 where whoever read the output has left.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    first = arguments[0] if arguments else "--help"
    if first in ("-h", "--help", "help"):
        print(usage())
        return 0
    if first == "--version":
        from xvolution import __version__

        print(f"xvolution {__version__}")
        return 0
    if first not in COMMANDS:
        print(f"xvolution: there is no command {first!r}; the commands are {', '.join(COMMANDS)}.", file=sys.stderr)
        return 2
    module, function, _ = COMMANDS[first]
    return _run(module, function, arguments[1:])


def _run(module: str, function: str, arguments: list[str]) -> int:
    try:
        getattr(importlib.import_module(module), function)(arguments)
        sys.stdout.flush()
    except KeyboardInterrupt:
        print("xvolution: interrupted.", file=sys.stderr)
        return 130
    except BrokenPipeError:
        if not _reader_left():
            raise
        return 141
    except ImportError as error:
        print(
            f"xvolution: {error.name or error} is missing; install it with pip install 'xvolution[all]'.",
            file=sys.stderr,
        )
        return 2
    except Exception as error:
        code = getattr(error, "exit_code", None)
        if code is None:
            raise
        print(f"xvolution: {error}", file=sys.stderr)
        return code
    return 0


def _reader_left() -> bool:
    """Whether the broken pipe is the output's, as when `head` has enough; what is left to print then goes nowhere."""
    try:
        print(flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return True
    return False


if __name__ == "__main__":
    sys.exit(main())
