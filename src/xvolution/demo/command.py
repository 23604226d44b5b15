"""The parser of `xvolution demo`."""

from __future__ import annotations

from collections.abc import Sequence

from xvolution.training.flags.flag import Flag
from xvolution.training.flags.parser import Parser


def demo_command(arguments: Sequence[str]) -> None:
    """Run the demo and print where its page is."""
    parser = Parser(
        "demo",
        "Train a convolutional network, and the same network with X-volution, on embedded digits.\n"
        "Deploy both, compare them, and write one page.",
    )
    parser.add_flag("recipe", Flag("quick", bool, False, "train with one seed and few epochs."))
    parser.add_flag(
        "recipe",
        Flag("seeds", int, None, "seeds with which both networks are trained; by default 0 1 2."),
        nargs="+",
        type=int,
    )
    parser.add_flag(
        "recipe",
        Flag("epochs", int | None, None, "number of epochs of every training; by default those of the recipe."),
    )
    parser.add_flag(
        "output", Flag("output", str, "demo", "folder for the page, the trainings and the deployed networks.")
    )
    values = parser.parse_args(list(arguments))
    from xvolution.demo.run import run_demo

    print(run_demo(values.output, values.quick, seeds=values.seeds, epochs=values.epochs))
