"""The variants of a comparison: an operator, its options and the convolutions that it replaces, with a label."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from xvolution.training.config import RunConfig
from xvolution.training.errors import InputError
from xvolution.training.flags.operators import operator_names

Recipe = TypeVar("Recipe", bound=RunConfig)

PLACEMENT = ("stages", "kernel_sizes", "names", "at_projections")
#: How a variant is trained, where that is what it differs in.
TRAINING = (
    "lr",
    "weight_decay",
    "new_lr_factor",
    "weights",
    "teacher",
    "teacher_weight",
    "teacher_temperature",
    "anneal_to_conv",
)
REGISTERED = "registered"  # a preset's word for a variant of every registered operator


@dataclass(frozen=True)
class Variant:
    """A row of the comparison.

    Attributes:
        label: its name in tables.
        operator: one of ``xvolution.conversion.register.operator_names()``.
        options: of the operator.
        placement: ``stages``, ``kernel_sizes`` or ``names`` instead of the recipe's.
        training: settings of ``TRAINING`` instead of the recipe's.
    """

    label: str
    operator: str
    options: Mapping[str, Any] = field(default_factory=dict)
    placement: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.operator not in operator_names():
            raise InputError(
                f"there is no operator {self.operator!r}; the operators are {', '.join(operator_names())}."
            )

    @property
    def folder(self) -> str:
        """The label as a folder name; callers check that labels do not differ only in punctuation."""
        return re.sub(r"[^A-Za-z0-9.=_-]+", "_", self.label).strip("_")

    def applied(self, recipe: Recipe) -> Recipe:
        """The recipe with this operator.

        Raises:
            InputError: an option that the operator does not have.
        """
        try:
            options: dict[str, Any] = {"operator": self.operator, "operator_options": dict(self.options)}
            config = replace(recipe, **options, **self.placement, **self.training)
            _ = config.conversion  # builds it, which checks the options
        except (TypeError, ValueError) as error:
            raise InputError(f"the variant {self.label!r} cannot be used: {error}") from error
        return config

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, without the label."""
        named = {"options": self.options, "placement": self.placement, "training": self.training}
        return {"operator": self.operator, **{name: dict(values) for name, values in named.items()}}


def parse_variants(text: str) -> tuple[Variant, ...]:
    """Variants from the command line: ``conv,xvolution:attention_ratio=0.5,window=5,acmix``.

    A comma separates variants and, after a colon, options; an entry with an equals sign is an option. Values are JSON
    (``0.5``, ``true``, ``[1,2]``), else words. ``label``, ``stages``, ``kernel_sizes``, ``names`` and the settings of
    ``TRAINING`` can stand among the options.

    Raises:
        InputError: it cannot be read, or an operator does not exist.
    """
    written: list[tuple[str, list[str]]] = []
    for token in _split(text):
        head, colon, option = token.partition(":")
        if "=" not in head:
            written.append((head.strip(), [option] if colon and option else []))
        elif written and written[-1][1]:
            written[-1][1].append(token)
        else:
            raise InputError(f"{token!r} has no operator before it; write options as operator:{token}.")
    return tuple(_variant(name, options) for name, options in written)


def variants_from(given: Any) -> tuple[Variant, ...]:
    """Variants from a preset: text as on the command line, a list of such texts, or label -> operator, options, stages, ...

    Raises:
        InputError: it is none of these.
    """
    if given == REGISTERED:
        return tuple(Variant(name, name) for name in operator_names())
    if isinstance(given, str):
        return parse_variants(given)
    if isinstance(given, Sequence):
        if unwritten := [each for each in given if not isinstance(each, str)]:
            raise InputError(
                f"the list of variants has the entry {_short(unwritten[0])}; each entry must be a text such "
                "as xvolution:window=5. A mapping from labels to operators is allowed too."
            )
        return tuple(variant for text in given for variant in parse_variants(text))
    if not isinstance(given, Mapping):
        raise InputError(
            f"variants are {_short(given)}; give a mapping from labels to operators, or a list of operators."
        )
    return tuple(_described(str(label), values) for label, values in given.items())


def with_baseline(variants: Sequence[Variant], baseline: str) -> tuple[Variant, ...]:
    """The variants, the baseline first; it is added when it is missing.

    Raises:
        InputError: there is nothing to compare, two variants share a label, or the baseline is neither variant nor operator.
    """
    labels = [variant.label for variant in variants]
    twice = sorted({label for label in labels if labels.count(label) > 1})
    if twice:
        raise InputError(f"two variants have the label {twice[0]!r}; give each variant its own label=.")
    if baseline not in labels:
        if baseline not in operator_names():
            raise InputError(f"the baseline is {baseline!r}; give one of the variants ({', '.join(labels)}).")
        variants = [Variant(baseline, baseline), *variants]
    folders = [variant.folder for variant in variants]
    if len(set(folders)) < len(folders):
        raise InputError(
            "two labels differ only in punctuation, so that their folders would have the same name; give other labels."
        )
    if len(variants) < 2:
        raise InputError(
            f"there is only the baseline {baseline!r}; give at least one more operator, such as --operators "
            "conv,xvolution."
        )
    return tuple(sorted(variants, key=lambda variant: variant.label != baseline))


def _split(text: str) -> list[str]:
    """Split at the commas outside brackets."""
    return [token.strip() for token in re.split(r",(?![^\[{]*[\]}])", text) if token.strip()]


def _variant(name: str, options: list[str]) -> Variant:
    values: dict[str, Any] = {}
    for option in options:
        key, equals, value = option.partition("=")
        if not equals or not key.strip():
            raise InputError(f"{option!r} is not an option of {name}; write options as option=value.")
        values[key.strip()] = _value(value.strip())
    label = str(values.pop("label", f"{name}:{','.join(options)}" if options else name))
    return _described(label, {"operator": name, **values})


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def _described(label: str, values: Any) -> Variant:
    """A variant from its fields; all other entries are options of the operator."""
    if isinstance(values, str):
        written = parse_variants(values)
        if len(written) != 1:
            raise InputError(f"the variant {label!r} is {_short(values)}; it must be one operator with its options.")
        return replace(written[0], label=label)
    if not isinstance(values, Mapping) or "operator" not in values:
        raise InputError(f"the variant {label!r} has no operator; give operator: and its options.")
    if not isinstance(values.get("options", {}), Mapping):
        raise InputError(
            f"the options of the variant {label!r} are {_short(values['options'])}; they must be a mapping from "
            "names to values."
        )
    options = {**values.get("options", {}), **values}
    placement, training = (
        {name: options.pop(name) for name in names if name in options} for names in (PLACEMENT, TRAINING)
    )
    operator = str(options.pop("operator"))
    options.pop("options", None)
    return Variant(label, operator, options, placement, training)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."
