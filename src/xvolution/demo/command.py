"""The parser of `xvolution demo`."""

from __future__ import annotations

from collections.abc import Sequence

from xvolution.training.flags.flag import Flag
from xvolution.training.flags.parser import Parser


def demo_command(arguments: Sequence[str]) -> None:
    """Run the demo and say where its page is."""
    parser = Parser(
        "demo",
        "Train a convolutional network and its X-volution twin on embedded digits, deploy, compare, write a page.",
    )
    parser.add_flag("recipe", Flag("quick", bool, False, "take one seed and few epochs."))
    parser.add_flag(
        "recipe", Flag("seeds", int, None, "seeds to train both networks with; by default 0 1 2."), nargs="+", type=int
    )
    parser.add_flag(
        "recipe", Flag("epochs", int | None, None, "epochs of every training; by default those of the recipe.")
    )
    parser.add_flag("output", Flag("output", str, "demo", "a folder for the page and everything it rests on."))
    values = parser.parse_args(list(arguments))
    from xvolution.demo.run import run_demo

    print(run_demo(values.output, values.quick, seeds=values.seeds, epochs=values.epochs))
