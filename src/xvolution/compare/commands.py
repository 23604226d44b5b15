"""The parser of `xvolution compare`."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from xvolution.compare.config import CompareConfig
from xvolution.compare.preset_files import preset, preset_names
from xvolution.compare.variants import parse_variants, variants_from
from xvolution.training.commands import configured, said, with_recipes
from xvolution.training.config import RunConfig
from xvolution.training.errors import InputError
from xvolution.training.flags.flag import Flag
from xvolution.training.flags.operators import flags_of, operator_names
from xvolution.training.flags.parser import Parser
from xvolution.training.flags.run import add_run_flags, operators_help
from xvolution.training.tasks import CLASSIFY, task_called

OF_THE_GRID = ("operator", "operator_options", "seed", "output", "resume", "progress")
#: What a recipe's file may say and a comparison says for each cell: the settings of the grid and of its one device.
OF_EACH_CELL = ("operator", "operator_options", "seed", "resume", "progress", "devices", "num_nodes", "strategy")
#: More are a slip of the hand.
MOST_SEEDS = 1000
OWN = ("jobs", "jobs_per_device", "threads", "launcher", "slurm", "latency_batch", "latency_rounds", "output", "folds")


def compare_command(arguments: Sequence[str]) -> None:
    """Run a comparison and say what it found."""
    config, dry = parse_compare(arguments)
    from xvolution.compare.run import compare, dry_run

    print(dry_run(config) if dry else compare(config))


def parse_compare(arguments: Sequence[str]) -> tuple[CompareConfig, bool]:
    """Parse presets, YAML files and flags, the later winning over the earlier; and whether it is a dry run.

    Raises:
        InputError: a flag is unknown, or a value is not allowed.
    """
    given = _preset_of(arguments)
    recipe = given.get("recipe") or {}
    defaults = task_called(said(arguments, "task") or str(recipe.get("task", CLASSIFY.name))).defaults()
    arguments = with_recipes(arguments, partial(_without_the_cells, defaults))
    parser = compare_parser(defaults, "--help-all" in arguments)
    parsed = parser.parse_args(["--config", json.dumps(recipe), *arguments])
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


def compare_parser(defaults: RunConfig, everything: bool = False) -> Parser:
    """The flags of a comparison, and those of `xvolution train` for its recipe, with the defaults of its task.

    Args:
        defaults: of the recipe.
        everything: whether its help lists the options of every operator too.
    """
    parser = Parser(
        "compare",
        "Which operator helps on my data, and what does it cost? Trains each with several seeds and reports.\n"
        "Each task has recipes of its own: see xvolution compare --task detect --help.",
        operators_help("--operators", everything),
    )
    operators = Flag(
        "operators",
        str,
        None,
        "what is compared, such as conv,xvolution:attention_ratio=0.5,window=5,acmix; label=, stages=, names= and "
        "new_lr_factor= work as options.",
    )
    parser.add_flag("comparison", operators, nargs="+", metavar="NAME,...")
    presets = f"a comparison that is written down: {', '.join(preset_names())}, or a YAML file; flags win."
    add = parser.add_flag
    add("comparison", Flag("preset", str | None, None, presets))
    add("comparison", Flag("seeds", str | None, None, "how many seeds, or a list such as [3,4,5]; 3 by default."))
    folds = "train so many networks a cell, each without one part of the images, which judges it; for few images."
    add("comparison", Flag("folds", int | None, None, folds))
    add(
        "comparison", Flag("baseline", str | None, None, "the label that others are measured against; conv by default.")
    )
    add("comparison", Flag("dry_run", bool, False, "print the grid and its commands, and train nothing."))
    add("comparison", Flag("latency_batch", int, 1, "images in the batch whose latency is measured."), rare=True)
    add("comparison", Flag("latency_rounds", int, 20, "samples of each latency; 0 measures none."))
    add("machine", Flag("jobs", int | None, None, "trainings at once; one for each device by default."))
    add("machine", Flag("jobs_per_device", int, 1, "trainings that share a GPU."), rare=True)
    add(
        "machine",
        Flag("threads", int | None, None, "threads of each training; cores are dealt out by default."),
        rare=True,
    )
    launcher = Flag("launcher", str, "local", "what the trainings are: processes here, or SLURM jobs.")
    add("machine", launcher, rare=True, choices=["local", "slurm"])
    add("machine", Flag("slurm", dict[str, Any], {}, "parameters of submitit's executor."), rare=True)
    add(
        "output", Flag("output", str | None, None, "the comparison's folder; by default runs/compare-<data>-<network>.")
    )
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
    options = {option.name for name in operator_names() for option in flags_of(name)} - fields
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
    if isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= MOST_SEEDS:
        return tuple(range(value))
    if isinstance(value, list) and len(value) <= MOST_SEEDS and all(isinstance(seed, int) for seed in value):
        return tuple(value)
    raise InputError(f"--seeds is {str(given)[:60]}; give how many, from 1 to {MOST_SEEDS}, or a list such as [3,4,5].")
