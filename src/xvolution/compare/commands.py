"""The parser of `xvolution compare`."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from jsonargparse import ActionYesNo, ArgumentParser

from xvolution.compare.config import CompareConfig
from xvolution.compare.preset_files import preset, preset_names
from xvolution.compare.variants import parse_variants, variants_from
from xvolution.conversion.register import operator_names, options_of
from xvolution.training.commands import HelpFormatter, add_run_flags, configured, operators_help, said, with_recipes
from xvolution.training.config import RunConfig
from xvolution.training.errors import InputError
from xvolution.training.tasks import CLASSIFY, task_called

OF_THE_GRID = ("operator", "operator_options", "seed", "output", "resume", "progress")
#: What a recipe's file may say and a comparison says for each cell: the settings of the grid and of its one device.
OF_EACH_CELL = ("operator", "operator_options", "seed", "resume", "progress", "devices", "num_nodes", "strategy")
OWN = ("jobs", "jobs_per_device", "threads", "launcher", "slurm", "latency_batch", "latency_rounds", "output")


def compare_command(arguments: Sequence[str]) -> None:
    """Run a comparison and say what it found."""
    config, dry = parse_compare(arguments)
    from xvolution.compare.run import compare, dry_run

    print(dry_run(config) if dry else compare(config))


def parse_compare(arguments: Sequence[str]) -> tuple[CompareConfig, bool]:
    """Parse presets, YAML files and flags, the later winning over the earlier; and whether it is a dry run.

    Raises:
        InputError: a value is not allowed.
        SystemExit: a flag is unknown or of the wrong type; the parser has said so.
    """
    given = _preset_of(arguments)
    recipe = given.get("recipe") or {}
    defaults = task_called(said(arguments, "task") or str(recipe.get("task", CLASSIFY.name))).defaults()
    arguments = with_recipes(arguments, partial(_without_the_cells, defaults))
    parsed = compare_parser(defaults).parse_args(["--config", json.dumps(recipe), *arguments])
    values: dict[str, Any] = parsed.as_dict()
    values.pop("preset")
    dry = values.pop("dry_run")
    operators, seeds, baseline = values.pop("operators"), values.pop("seeds"), values.pop("baseline")
    if operators is None and "variants" not in given:
        raise InputError("there is nothing to compare; give --operators conv,xvolution,... or a --preset.")
    own = {name: values.pop(name) for name in OWN}
    config = CompareConfig(
        recipe=configured(defaults, values),
        variants=parse_variants(",".join(operators)) if operators is not None else variants_from(given["variants"]),
        seeds=_seeds(seeds if seeds is not None else given.get("seeds", 3)),
        baseline=baseline or given.get("baseline", "conv"),
        **own,
    )
    return config, dry


def compare_parser(defaults: RunConfig) -> ArgumentParser:
    """The flags of a comparison, and those of `xvolution train` for its recipe, with the defaults of its task."""
    parser = ArgumentParser(
        prog="xvolution compare",
        description="Which operator helps on my data, and what does it cost? Trains each with several seeds and reports. "
        "Each task has recipes of its own: see xvolution compare --task detect --help.",
        epilog=operators_help("--operators"),
        formatter_class=HelpFormatter,
        default_env=False,
        allow_abbrev=False,
    )
    parser.add_argument("--preset", type=str | None, help=f"{', '.join(preset_names())}, or a YAML file; flags win.")
    parser.add_argument(
        "--operators",
        nargs="+",
        help="variants, such as conv,xvolution:window=5,acmix; label=, stages=, names=, new_lr_factor= too are options.",
    )
    parser.add_argument("--seeds", type=str | None, help="how many, or a list such as [3,4,5]; 3 by default.")
    parser.add_argument("--baseline", type=str | None, help="label the others are measured against; conv by default.")
    parser.add_argument("--jobs", type=int | None, help="trainings at once; one for each device by default.")
    parser.add_argument("--jobs-per-device", type=int, default=1, help="trainings that share a GPU.")
    parser.add_argument("--threads", type=int | None, help="of each training; cores are dealt out by default.")
    parser.add_argument(
        "--launcher", choices=["local", "slurm"], default="local", help="processes here, or SLURM jobs."
    )
    parser.add_argument("--slurm", type=dict[str, Any], default={}, help="parameters of submitit's executor, as JSON.")
    parser.add_argument("--latency-batch", type=int, default=1, help="images in the batch whose latency is measured.")
    parser.add_argument("--latency-rounds", type=int, default=20, help="samples of each latency; 0 measures none.")
    parser.add_argument(
        "--dry-run", action=ActionYesNo(no_prefix="no-"), default=False, help="print the grid and its commands."
    )
    parser.add_argument("--output", type=str | None, help="folder; by default runs/compare-<data>-<network>.")
    add_run_flags(parser, defaults, leave_out=OF_THE_GRID)
    return parser


def _preset_of(arguments: Sequence[str]) -> dict[str, Any]:
    """The preset that the flags name, read before they are parsed so that they can win over it."""
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    finder.add_argument("--preset")
    name = finder.parse_known_args(list(arguments))[0].preset
    return {} if name is None else preset(name)


def _without_the_cells(defaults: RunConfig, path: str, settings: dict[str, Any]) -> Mapping[str, Any]:
    """What a recipe says, but for what is said for each cell, which is named."""
    fields = {field.name for field in dataclasses.fields(defaults)}
    options = {option.name for name in operator_names() for option in options_of(name)} - fields
    left_out = [name for name in settings if name in OF_EACH_CELL or name in options]
    if left_out:
        print(f"{path}: {', '.join(left_out)} left out, which the comparison says for each cell", file=sys.stderr)
    return {name: value for name, value in settings.items() if name not in left_out}


def _seeds(given: Any) -> tuple[int, ...]:
    """A number of seeds, or the seeds themselves."""
    try:
        value = json.loads(given) if isinstance(given, str) else given
    except json.JSONDecodeError:
        value = None
    if isinstance(value, int) and value >= 1:
        return tuple(range(value))
    if isinstance(value, list) and all(isinstance(seed, int) for seed in value):
        return tuple(value)
    raise InputError(f"--seeds is {given}; give how many, such as 3, or a list such as [3,4,5].")
