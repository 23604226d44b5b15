"""The flags of a run, which `train` and `compare` share: the fields of its configuration, and the options of its operator."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from xvolution.training.config import RunConfig
from xvolution.training.errors import InputError
from xvolution.training.flags.flag import Flag, flag_of, flags_of_fields
from xvolution.training.flags.mistakes import did_you_mean
from xvolution.training.flags.operators import flags_of, operator_names, summary_of
from xvolution.training.flags.parser import Parser
from xvolution.training.tasks import TASKS

ALIASES = {"model": ("--backbone",)}

#: The fields of every configuration by group: first the important ones, then those that only `--help-all` shows.
FIELDS: dict[str, tuple[str, str]] = {
    "data": (
        "data holdout image_size min_size max_size crop hflip auto_augment on_bad_image",
        "in_chans in_memory crop_scale color_jitter random_erase scale_jitter large_scale_jitter aspect_groups split_seed "
        "max_pixels outside_images limit_train_batches limit_val_batches",
    ),
    "network": (
        "architecture backbone model pretrained weights backbone_weights small_images norm",
        "version trainable_layers model_kwargs",
    ),
    "operator": ("operator stages names parts", "operator_options kernel_sizes at_projections"),
    "recipe": (
        "epochs batch_size lr optimizer weight_decay schedule warmup_epochs mixup cutmix label_smoothing clip_grad ema_decay "
        "seed",
        "accumulate momentum new_lr_factor decay_epochs decay_milestones decay_rate min_lr recalibrate_norms teacher "
        "teacher_weight teacher_temperature anneal_to_conv deterministic",
    ),
    "machine": (
        "accelerator devices precision workers compile",
        "num_nodes strategy channels_last",
    ),
    "output": ("output resume progress", "checkpoint_every"),
}
#: Options of all forms of X-volution that are rarely changed.
_RARE_OPTIONS = ("num_conv_branches", "norm_layer", "zero_init", "kernel_size", "pooled_key_init", "pooled_value_init")


def add_run_flags(parser: Parser, defaults: RunConfig, leave_out: Collection[str] = ()) -> None:
    """Add `--config`, `--task` and a flag for each other field of a configuration, except those in ``leave_out``."""
    config = "YAML file with any of these settings; flags after it take precedence."
    parser.group("recipe").add_argument("--config", action="config", metavar="FILE", help=config)
    tasks = (
        "what to train: a classifier, a detector, or a detector with masks; each task has its own flags and defaults."
    )
    task = Flag("task", str, defaults.task, tasks)
    parser.add_flag("network", task, choices=tuple(TASKS))
    add_field_flags(parser, defaults, [name for name in fields_of(defaults) if name not in ("task", *leave_out)])


def fields_of(defaults: RunConfig) -> list[str]:
    """The names of a configuration's fields."""
    return [flag.name for flag in flags_of_fields(defaults)]


def add_field_flags(parser: Parser, defaults: RunConfig, names: Collection[str]) -> None:
    """Add a flag for each of these fields of a configuration, in its group."""
    fields = {flag.name: flag for flag in flags_of_fields(defaults) if flag.name in names}
    for group, (first, rare) in FIELDS.items():
        for name in (*first.split(), *rare.split()):
            if name in fields:
                parser.add_flag(group, fields.pop(name), ALIASES.get(name, ()), name in rare.split())
    for flag in fields.values():
        parser.add_flag(f"of --task {defaults.task}", flag)


def add_operator_flags(parser: Parser, operator: str, arguments: Sequence[str]) -> None:
    """Add a flag for each option of an operator, from its own dataclass or signature, with its own help.

    Raises:
        InputError: there is no such operator, or a flag among the arguments is an option of another one.
    """
    names = operator_names()
    if operator not in names:
        near = did_you_mean(operator, names).rstrip(".")
        raise InputError(f"--operator is {operator}; it must be one of {', '.join(names)}{near}.".replace("?.", "?"))
    options = flags_of(operator)
    for name in _foreign(parser, operator, arguments):
        having = [other for other in names if name in {option.name for option in flags_of(other)}]
        listed = ", ".join(flag_of(option.name) for option in options)
        raise InputError(
            f"{operator} has no option {flag_of(name)}; its options are {listed}. The option belongs to "
            f"{', '.join(having)}."
        )
    for option in options:
        parser.add_flag(f"options of --operator {operator}", option, rare=option.name in _RARE_OPTIONS)


def operators_help(taken_by: str, everything: bool, chosen: str | None = None) -> str:
    """All operators, and their options, for the end of help.

    Args:
        taken_by: the flag that takes the names.
        everything: print the options too.
        chosen: the operator whose options have flags of their own.
    """
    lines = [f"operators ({taken_by}){', and the options of each' if everything else ''}:"]
    for name in operator_names():
        lines.append(f"  {name}: {summary_of(name)}")
        if everything and name != chosen:
            lines += [f"      {option.name}: {option.help}" for option in flags_of(name)]
    return "\n".join(lines)


def names_in(arguments: Sequence[str]) -> list[str]:
    """The names of all flags among the arguments, as fields."""
    given = [argument[2:].partition("=")[0] for argument in arguments if argument.startswith("--")]
    return [name.removeprefix("no-").replace("-", "_") for name in given]


def _foreign(parser: Parser, operator: str, arguments: Sequence[str]) -> list[str]:
    """The options among the arguments that other operators have but this one does not."""
    own = {option.name for option in flags_of(operator)}
    others = {option.name for name in operator_names() for option in flags_of(name)} - own
    known = {string for action in parser._actions for string in action.option_strings}
    names = [name for name in names_in(arguments) if flag_of(name) not in known]
    return [name for name in names if name in others]
