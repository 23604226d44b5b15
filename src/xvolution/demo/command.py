"""The parser of `xvolution demo`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence


def demo_command(arguments: Sequence[str]) -> None:
    """Run the demo and say where its page is."""
    parser = argparse.ArgumentParser(
        prog="xvolution demo",
        description="Train a convolutional network and its X-volution twin on embedded digits, deploy, compare, write a page.",
    )
    parser.add_argument(
        "--output", default="demo", help="folder for the page and everything it rests on (default: demo)"
    )
    parser.add_argument("--quick", action="store_true", help="one seed and few epochs")
    parser.add_argument("--seeds", type=int, nargs="+", help="seeds to train both networks with")
    parser.add_argument("--epochs", type=int, help="epochs of every training")
    values = parser.parse_args(list(arguments))
    from xvolution.demo.run import run_demo

    print(run_demo(values.output, values.quick, seeds=values.seeds, epochs=values.epochs))
