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
#: Settings that a recipe's file may have and that the comparison sets itself for each cell.
OF_EACH_CELL = ("operator", "operator_options", "seed", "resume", "progress", "devices", "num_nodes", "strategy")
#: A larger number is a typing mistake.
MOST_SEEDS = 1000
OWN = (
    *("jobs", "jobs_per_device", "threads", "launcher", "slurm"),
    *("latency_batch", "latency_rounds", "latency_runtime", "output", "folds"),
)


def compare_command(arguments: Sequence[str]) -> None:
    """Run a comparison and print its result."""
    config, dry = parse_compare(arguments)
    from xvolution.compare.run import compare, dry_run

    print(dry_run(config) if dry else compare(config))


def parse_compare(arguments: Sequence[str]) -> tuple[CompareConfig, bool]:
    """Parse presets, YAML files and flags; later ones take precedence. Also returns whether it is a dry run.

    Raises:
        InputError: a flag is unknown, or a value is not allowed.
    """
    given = _preset_of(arguments)
    recipe = given.get("recipe") or {}
    defaults = task_called(said(arguments, "task") or str(recipe.get("task", CLASSIFY.name))).defaults()
    arguments = with_recipes(arguments, partial(_without_the_cells, defaults))
    parser = compare_parser(defaults, "--help-all" in arguments)
    parsed = parser.parse_args(["--config", json.dumps(recipe | {"folds": given.get("folds")}), *arguments])
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
        defaults: the default settings of the recipe.
        everything: whether the help also lists the options of every operator.
    """
    parser = Parser(
        "compare",
        "Train each operator with several seeds, and report which one helps on your data and what it costs.\n"
        "Each task has its own recipes: see xvolution compare --task detect --help.",
        operators_help("--operators", everything),
    )
    operators = Flag(
        "operators",
        str,
        None,
        "operators to compare, each with its options, such as conv,xvolution:attention_ratio=0.5,window=5,acmix; label=, "
        "stages=, names=, lr= and new_lr_factor= are options of each.",
    )
    parser.add_flag("comparison", operators, nargs="+", metavar="NAME,...")
    presets = (
        f"a prepared comparison: {', '.join(preset_names())}, or a YAML file; flags take precedence. None by default."
    )
    add = parser.add_flag
    add("comparison", Flag("preset", str | None, None, presets))
    add("comparison", Flag("seeds", str | None, None, "number of seeds, or a list such as [3,4,5]; 3 by default."))
    folds = (
        "number of networks of each cell, each trained without one part of the images and judged by it; for few images."
    )
    add("comparison", Flag("folds", int | None, None, folds))
    baseline = "label of the baseline that the others are compared with; conv by default."
    add("comparison", Flag("baseline", str | None, None, baseline))
    add("comparison", Flag("dry_run", bool, False, "print the trainings and their commands, and train nothing."))
    add("comparison", Flag("latency_batch", int, 1, "number of images in the batch for measuring latency."), rare=True)
    add("comparison", Flag("latency_rounds", int, 20, "number of times each latency is measured; 0 measures none."))
    runtimes = "where latency is measured: torch, or a runtime for exported networks, such as onnxruntime or openvino."
    add("comparison", Flag("latency_runtime", str, "torch", runtimes))
    add("machine", Flag("jobs", int | None, None, "number of trainings at once; by default one for each device."))
    add("machine", Flag("jobs_per_device", int, 1, "number of trainings that share a GPU."), rare=True)
    threads = "number of CPU threads of each training; by default the trainings share the cores evenly."
    add("machine", Flag("threads", int | None, None, threads), rare=True)
    launcher = Flag(
        "launcher", str, "local", "where trainings run: local for processes on this machine, or SLURM jobs."
    )
    add("machine", launcher, rare=True, choices=["local", "slurm"])
    add("machine", Flag("slurm", dict[str, Any], {}, "parameters of submitit's executor, as a JSON object."), rare=True)
    folder = "folder of the comparison; by default runs/compare-<data>-<network>."
    add("output", Flag("output", str | None, None, folder))
    add_run_flags(parser, defaults, leave_out=OF_THE_GRID)
    return parser


def _preset_of(arguments: Sequence[str]) -> dict[str, Any]:
    """The preset that the flags name, read before the flags are parsed, because they take precedence."""
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    finder.add_argument("--preset")
    name = finder.parse_known_args(list(arguments))[0].preset
    return {} if name is None else preset(name)


def _without_the_cells(defaults: RunConfig, path: str, settings: dict[str, Any]) -> Mapping[str, Any]:
    """A recipe's settings without those that the comparison sets for each cell; a message names the latter."""
    fields = {field.name for field in dataclasses.fields(defaults)}
    options = {option.name for name in operator_names() for option in flags_of(name)} - fields
    left_out = [name for name in settings if name in OF_EACH_CELL or name in options]
    if left_out:
        names = ", ".join(left_out)
        print(f"{path}: ignored {names}, because the comparison sets this for each training", file=sys.stderr)
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
    raise InputError(f"--seeds is {str(given)[:60]}; give a number from 1 to {MOST_SEEDS}, or a list such as [3,4,5].")
