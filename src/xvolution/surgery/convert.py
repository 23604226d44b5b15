"""Putting X-volution in the place of the convolutions of a network, keeping what it computes."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from xvolution.nn import XVolution
from xvolution.surgery.config import Conversion, XVolutionConfig
from xvolution.surgery.modules import call, conv_at, evaluating, infer_inputs, replace_module
from xvolution.surgery.outputs import TOLERANCE, difference, tensors_in
from xvolution.surgery.pairing import norm_alone, pair_norms, without_norm
from xvolution.surgery.selection import FilterFunction, convolutions, select
from xvolution.surgery.summary import ConversionSummary, Replacement, count_flops, count_parameters


class ConversionError(RuntimeError):
    """The converted model computes something else than the model before."""


def convert(
    model: nn.Module,
    config: Conversion | None = None,
    filter_fn: FilterFunction | None = None,
    inplace: bool = False,
    example_inputs: Any = None,
) -> nn.Module:
    """Replace convolutions: by X-volutions that start as exactly those convolutions, or by what another ``Conversion`` says.

    Weights stay. The batch norm that follows a convolution moves into the operator (``conv_norm``) and a pass-through takes its
    place; checkpoints of the unconverted model still load. Where no batch norm follows, the convolution branch has none.

    Args:
        model: any network.
        config: what to put in and where; ``XVolutionConfig()`` when None.
        filter_fn: ``filter_fn(module, name) -> bool`` chooses among the convolutions that ``config`` admits; with it the
            default restriction to spatial convolutions behind the stem is off.
        inplace: change ``model`` itself instead of a copy.
        example_inputs: a tensor, a tuple of positional arguments or a mapping of keyword arguments to check the outputs with;
            an image batch of a size that the model takes when None.

    Returns:
        The converted model, with a ``ConversionSummary`` as its attribute ``summary``. A model whose selected convolutions
        are all converted already comes back as it is.

    Raises:
        ValueError: nothing was selected, or stages that the network does not have.
        ConversionError: the outputs changed although the configuration promises to keep them.
    """
    config = config or XVolutionConfig()
    selected = select(model, config, filter_fn)
    if not selected:
        raise ValueError(_nothing_selected(model))
    model = model if inplace else copy.deepcopy(model)
    names = [name for name in selected if not isinstance(model.get_submodule(name), XVolution)]
    if not names:
        return model
    inputs = infer_inputs(model) if example_inputs is None else example_inputs
    pairs = pair_norms(model, inputs) if config.takes_norm else {}
    parameters_before, flops_before = count_parameters(model), count_flops(model, inputs)
    expected = _outputs(model, inputs) if config.keeps_outputs else None
    replacements, moved = [], {}
    for name in names:
        conv = conv_at(model, name)
        norm_name = pairs.get(name)
        operator, model = _replace(model, name, norm_name, config)
        replacements.append(Replacement.of(name, conv, operator, norm_name))
        if norm_name is not None:
            moved[norm_name] = f"{name}.conv_norm"
    if moved:
        model.register_load_state_dict_pre_hook(MovedNorms(moved))
    if expected is not None:
        _check_outputs(expected, _outputs(model, inputs))
    summary = ConversionSummary(
        replaced=replacements,
        parameters_before=parameters_before,
        parameters_after=count_parameters(model),
        flops_before=flops_before,
        flops_after=count_flops(model, inputs),
        input_shape=tuple(tensors_in(inputs)[0].shape) if inputs is not None and tensors_in(inputs) else None,
    )
    # Written past nn.Module's bookkeeping, which is for parameters and modules.
    vars(model)["summary"] = summary
    return model


class MovedNorms:
    """Load hook: a checkpoint of the unconverted model has each norm under its old name."""

    def __init__(self, moved: Mapping[str, str]) -> None:
        self.moved = dict(moved)

    def __call__(self, module: nn.Module, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        for old, new in self.moved.items():
            for key in [key for key in state_dict if key.startswith(f"{prefix}{old}.")]:
                renamed = f"{prefix}{new}.{key.removeprefix(f'{prefix}{old}.')}"
                if renamed not in state_dict:
                    state_dict[renamed] = state_dict.pop(key)


def _replace(model: nn.Module, name: str, norm_name: str | None, config: Conversion) -> tuple[nn.Module, nn.Module]:
    conv = conv_at(model, name)
    norm = None if norm_name is None else model.get_submodule(norm_name)
    operator = config.replacement(conv, None if norm is None else norm_alone(norm))
    # The norm leaves its old place first: afterwards the operator holds it, and must keep it.
    if norm is not None and norm_name is not None:
        model = replace_module(model, norm_name, without_norm(norm))
    return operator, replace_module(model, name, operator)


def _outputs(model: nn.Module, inputs: Any) -> Any:
    if inputs is None:
        return None
    with evaluating(model):
        first, second = call(model, inputs), call(model, inputs)
    if any(tensor.is_meta for tensor in tensors_in(first)):
        return None
    # Outputs of a model that draws random numbers cannot be compared.
    return first if difference(first, second).absolute == 0 else None


def _check_outputs(expected: Any, actual: Any) -> None:
    error = difference(expected, actual)
    dtype = next((tensor.dtype for tensor in tensors_in(expected) if tensor.is_floating_point()), torch.float32)
    if error.relative > TOLERANCE.get(dtype, 1e-4):
        raise ConversionError(
            f"the converted model's outputs differ by {error.absolute:.1e} (relative {error.relative:.1e}): the network uses a "
            "replaced convolution in a way that the operator does not follow; leave it out by names or filter_fn"
        )


def _nothing_selected(model: nn.Module) -> str:
    found = [f"{name} {'x'.join(map(str, conv.kernel_size))}" for name, conv in convolutions(model)]
    if not found:
        return f"{type(model).__name__} has no convolution that could be converted"
    shown = ", ".join(found[:20]) + (f" and {len(found) - 20} more" if len(found) > 20 else "")
    return f"the configuration selects no convolution of {type(model).__name__}; there are: {shown}"
