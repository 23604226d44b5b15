"""Comparison of a deployed network with its training form, although rounding may grow through the network.

Each operator is compared with its deployed form on the input that it received, and with the operator in fp64. This separates
the rounding of an operator from its growth through the network. The networks' outputs are compared as well.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from xvolution.conversion.modules import call
from xvolution.conversion.outputs import TOLERANCE, Difference, difference, tensors_in
from xvolution.copying import copied
from xvolution.numerics import double, in_float64
from xvolution.operator import ReparameterizationError

#: Relative error that is allowed to one deployed operator whatever the operator's own is, by dtype.
_OF_ONE_OPERATOR = {dtype: tolerance / 10 for dtype, tolerance in TOLERANCE.items()}
#: How many times the operator's own error its deployed form may have.
_TIMES = 10
#: Relative error of a whole network in fp64, whose rounding grows by more than 1e5 in none that was tried.
_IN_FLOAT64 = 1e-8


@torch.no_grad()
def require_same_operators(
    operators: Mapping[str, Any], deployed: Mapping[str, Any], inputs: Mapping[str, Tensor], rtol: float | None
) -> None:
    """Compare operators with their deployed forms, each on one input.

    Args:
        operators: in eval mode, by name.
        deployed: their deployed forms.
        inputs: (N, C_in, H, W) of each operator that ran.
        rtol: relative difference that is always allowed.

    Raises:
        ReparameterizationError: one differs by more than rounding explains; the message names the first.
    """
    for name, x in inputs.items():
        operator, form = operators[name], deployed[name]
        plain, actual = operator.forward(x), form.forward(x)
        reference = _reference(operator, x)
        allowed = max(_OF_ONE_OPERATOR.get(plain.dtype, 1e-5), rtol or 0)
        error = difference(plain if reference is None else reference, actual)
        if reference is not None:
            allowed = max(allowed, _TIMES * difference(reference, plain).relative)
        if error.relative <= allowed or difference(plain, operator.forward(x)).absolute > 0:
            continue  # the same, or attention that draws random numbers
        raise ReparameterizationError(
            f"the first module that differs is {name or 'the operator'}: its deployed form differs by "
            f"{error.absolute:.1e} (relative {error.relative:.1e}, allowed {allowed:.0e}) on the input that "
            "it received. Likely cause: rounding in low precision, or numbers too large for fp32; try the "
            "model in fp64, or another layout"
        )


def _reference(operator: Any, x: Tensor) -> Tensor | None:
    """The operator's output in fp64; None where a part of it cannot be copied or computes in its own dtype alone."""
    try:
        return in_float64(copied(operator)).forward(double(x))
    except Exception:  # whatever a stranger's attention raises
        return None


@torch.no_grad()
def require_same_outputs(
    expected: Any,
    actual: Any,
    rtol: float | None,
    atol: float,
    trained: nn.Module,
    deploy: Callable[[nn.Module], nn.Module],
    inputs: Any,
) -> None:
    """Compare the outputs of a network and of its deployed form, in fp64 where rounding may have grown through the network.

    Args:
        expected, actual: outputs of both in the network's dtype.
        rtol: allowed difference relative to the largest magnitude of the output; where it is None, what rounding explains.
        atol: allowed absolute difference.
        trained: the network in its training form.
        deploy: deploys a copy of it in the same layouts, in place.
        inputs: what it was called with.

    Raises:
        ReparameterizationError: they differ.

    Warns:
        UserWarning: the network draws random numbers, so that its outputs cannot be compared.
    """
    dtype = next((tensor.dtype for tensor in tensors_in(expected) if tensor.is_floating_point()), torch.float32)
    allowed = TOLERANCE.get(dtype, 1e-4) if rtol is None else rtol
    error = difference(expected, actual)
    if error.relative <= allowed or error.absolute <= atol:
        return
    if difference(expected, call(trained, inputs)).absolute > 0:
        warnings.warn(
            f"{type(trained).__name__} draws random numbers in eval mode, so its outputs were not compared; "
            "each operator was compared on the input that it received",
            UserWarning,
            stacklevel=4,
        )
        return
    wide = _difference_in_float64(trained, deploy, inputs) if rtol is None else None
    if wide is not None and wide.relative <= _IN_FLOAT64:
        return
    shown = "" if wide is None else f"; in fp64 by {wide.absolute:.1e} (relative {wide.relative:.1e})"
    raise _refused(expected, error, allowed, shown)


def _refused(expected: Any, error: Difference, allowed: float, more: str) -> ReparameterizationError:
    """The error with the difference of the outputs and its likely cause."""
    finite = all(torch.isfinite(tensor).all() for tensor in tensors_in(expected) if tensor.is_floating_point())
    cause = (
        "the network behaves differently with deployed operators (for example, it checks their class), or "
        "it amplifies rounding errors and cannot be run in fp64; in the latter case give a larger rtol"
        if finite
        else "the model itself returns infinite or NaN values on these inputs"
    )
    return ReparameterizationError(
        f"the deployed model differs from the trained one by {error.absolute:.1e} (relative "
        f"{error.relative:.1e}, allowed {allowed:.0e}){more}, although each operator agrees with its "
        f"deployed form on the input that it received. Likely cause: {cause}"
    )


def _difference_in_float64(
    network: nn.Module, deploy: Callable[[nn.Module], nn.Module], inputs: Any
) -> Difference | None:
    """The same difference of copies in fp64; None where they cannot be copied or run."""
    try:
        wide, images = in_float64(copied(network)), tree_map_only(Tensor, _wide, inputs)
        expected = call(wide, images)
        return difference(expected, call(deploy(wide), images))
    except Exception:  # it cannot be copied, or whatever a stranger's forward raises in another dtype
        return None


def _wide(tensor: Tensor) -> Tensor:
    return double(tensor) if tensor.is_floating_point() else tensor
