"""The command line: parses and calls. Each subcommand names the function that builds its parser and runs it."""

from __future__ import annotations

import errno
import importlib
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from difflib import get_close_matches

from xvolution.signals import ending_politely, status

COMMANDS = {
    "train": (
        "xvolution.training.commands",
        "train_command",
        "train a classifier or a detector, with or without X-volution",
    ),
    "convert": (
        "xvolution.training.convert_command",
        "convert_command",
        "put X-volution into a network and list what was converted",
    ),
    "evaluate": (
        "xvolution.training.file_commands",
        "evaluate_command",
        "measure accuracy or average precision, and speed, of a checkpoint",
    ),
    "deploy": (
        "xvolution.training.file_commands",
        "deploy_command",
        "merge the branches of a checkpoint and export it",
    ),
    "quantize": (
        "xvolution.training.quantize_command",
        "quantize_command",
        "write a classifier in 8-bit integers and evaluate it before and after",
    ),
    "predict": ("xvolution.training.predict_command", "predict_command", "classify pictures or detect objects on them"),
    "data": ("xvolution.training.data_command", "data_command", "check a data set: broken pictures, duplicates, sizes"),
    "compare": (
        "xvolution.compare.commands",
        "compare_command",
        "train several operators on your data and report accuracy and cost",
    ),
    "explain": ("xvolution.explain.command", "explain_command", "show what attention does in a trained classifier"),
    "bench": (
        "xvolution.bench.commands",
        "bench_command",
        "measure time, memory and operations against the convolution",
    ),
    "demo": ("xvolution.demo.command", "demo_command", "train, deploy and compare on embedded data; writes one page"),
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
            "xvolution COMMAND --help lists the options of a command.",
        ]
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        The exit code: 0 for success, 1 if a run failed, 2 for bad input, 128 plus the signal's number if a signal ended the
        command (130 after Ctrl-C), 141 if the reader of the output has closed it.
    """
    _open_standard_files()
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    failure: BaseException | None = None
    code: int | None
    try:
        with ending_politely():
            code = _run(arguments)
    except KeyboardInterrupt as request:
        code = status(request)
        _say("interrupted.")
    except ImportError as error:
        code = 2
        _say(f"{error.name or error} is missing; install it with pip install 'xvolution[all]'.")
    except (Exception, SystemExit) as error:  # parsers exit when they have said what is wrong
        failure, code = error, getattr(error, "exit_code", None)
    lost = _output_failure(failure)
    if lost is not None and (failure is None or _is_of(failure, lost)):
        return _lost_output(lost)
    if isinstance(failure, OSError) and failure.errno == errno.ENAMETOOLONG:
        _say(f"{str(failure.filename)[:60]}... is longer than a path can be; give a shorter one.")
        return 2
    if failure is not None:
        if code is None:
            raise failure
        _say(str(failure))
    return code or 0


def _run(arguments: list[str]) -> int:
    first = arguments[0] if arguments else "--help"
    if first in ("-h", "--help", "help"):
        print(usage())
    elif first == "--version":
        from xvolution import __version__

        print(f"xvolution {__version__}")
    elif first not in COMMANDS:
        near = get_close_matches(first, COMMANDS, n=1)
        meant = f" Did you mean {near[0]}?" if near else ""
        _say(f"there is no command {first!r}; the commands are {', '.join(COMMANDS)}.{meant}")
        return 2
    else:
        module, function, _ = COMMANDS[first]
        getattr(importlib.import_module(module), function)(arguments[1:])
    return 0


def _open_standard_files() -> None:
    """Open standard input, output and errors if the caller closed them, so that no other file takes their number."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
            os.set_inheritable(opened, True)
            if number == 1:
                _say("the standard output is closed; printed text is lost.")


def _say(sentence: str) -> None:
    with suppress(OSError, AttributeError):  # standard errors may be closed or full as well
        print(f"xvolution: {sentence}", file=sys.stderr, flush=True)


def _output_failure(failure: BaseException | None) -> OSError | None:
    """The error of writing to the standard output, if there is one; the rest of the output is then discarded."""
    try:
        if isinstance(failure, OSError) or isinstance(getattr(failure, "__cause__", None), OSError):
            print()  # what failed before may be gone from the buffer
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return error
    return None


def _is_of(error: BaseException, failed: OSError) -> bool:
    """Whether an error is the output's own error, or was raised from it."""
    return any(isinstance(each, OSError) and each.errno == failed.errno for each in (error, error.__cause__))


def _lost_output(failed: OSError) -> int:
    if isinstance(failed, BrokenPipeError):
        return 141  # as when `head` has enough
    _say(f"the standard output could not be written ({failed.strerror}); send it elsewhere.")
    return 1


if __name__ == "__main__":
    sys.exit(main())
