"""Building the network that a file describes, limited to the size of the file's weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_parameter_registration_hook,
)

from xvolution.training.checkpoint import require_fitting
from xvolution.training.errors import InputError

# Builders make layers that they drop again, such as a backbone's classifier: so much above the file's own is usual.
_FACTOR, _NUMBERS, _TENSORS = 4, 50_000_000, 4_000
# Of a deployed form, whose branches have become one.
_DEPLOYED_FACTOR = 100


def build_for(
    weights: Mapping[str, Tensor],
    name: str,
    training_form: Callable[[], nn.Module],
    build: Callable[[], nn.Module] | None,
) -> nn.Module:
    """Build the network of a file.

    The training form is first built on the meta device, where it takes no memory. The build stops as soon as the network is
    larger than the weights.

    Args:
        weights: the weights of the file.
        name: name of the file, for messages.
        training_form: builds the training form.
        build: builds the deployed form; None if the weights are in training form.

    Raises:
        InputError: it cannot be built, or does not fit the weights.
    """
    factor = _FACTOR if build is None else _DEPLOYED_FACTOR
    try:
        with _no_larger_than(weights, factor):
            skeleton = _on_meta(training_form)
        if skeleton is not None and build is None:
            require_fitting(skeleton, weights, name)
        with _no_larger_than(weights, factor):
            return (build or training_form)()
    except InputError:
        raise
    except Exception as error:  # libraries raise errors of many kinds for arguments that may be anything
        reason = str(error) if getattr(error, "exit_code", None) else f"{type(error).__name__}: {error}"
        raise InputError(f"the network of {name} cannot be built: {reason}") from error


def _on_meta(build: Callable[[], nn.Module]) -> nn.Module | None:
    """The network on the meta device; None if a part of it needs values to be built."""
    try:
        with torch.device("meta"):
            return build()
    except (NotImplementedError, RuntimeError) as error:
        if isinstance(error, InputError) or "meta" not in str(error):
            raise
        return None


@contextmanager
def _no_larger_than(weights: Mapping[str, Tensor], factor: int) -> Iterator[None]:
    """Stop building a network with many more parameters than the file has weights."""
    most_numbers = factor * sum(tensor.numel() for tensor in weights.values()) + _NUMBERS
    most_tensors = factor * len(weights) + _TENSORS
    numbers = tensors = 0

    def count(module: nn.Module, name: str, tensor: Any) -> None:
        nonlocal numbers, tensors
        if tensor is None or isinstance(tensor, nn.UninitializedParameter | nn.UninitializedBuffer):
            return
        numbers, tensors = numbers + tensor.numel(), tensors + 1
        if numbers > most_numbers or tensors > most_tensors:
            raise InputError(
                f"the file describes a network of more than {numbers:,} numbers in {tensors:,} tensors, but "
                f"holds {len(weights):,} tensors; its description does not fit its weights."
            )

    hooks = [register_module_parameter_registration_hook(count), register_module_buffer_registration_hook(count)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
