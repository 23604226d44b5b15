"""From the training form to the deployed form, exactly; and the proof that it is."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from xvolution.attention.deployed import DeployedOperator
from xvolution.attention.folded import LayoutError
from xvolution.conversion.convert import norms_behind
from xvolution.conversion.modules import call, conv_at
from xvolution.conversion.outputs import TOLERANCE, difference, tensors_in
from xvolution.conversion.pairing import norm_alone, without_norm
from xvolution.conversion.proof import Changes
from xvolution.convolutions import is_plain
from xvolution.copying import working_copy
from xvolution.deploy.measure import AUTO, TORCH, LayoutTimer, Progress
from xvolution.deploy.recorder import Recorder
from xvolution.folding import is_foldable
from xvolution.operator import ReparameterizationError, XVolution, deploy, require_eval


@torch.inference_mode(False)  # weights made under it could never be trained
def reparameterize(
    model: nn.Module,
    example_inputs: Any = None,
    layout: str | Mapping[str, str] = AUTO,
    inplace: bool = False,
    rtol: float | None = None,
    atol: float | None = None,
    fold_norms: bool = False,
    runtime: str = TORCH,
    threads: int | None = None,
    progress: Progress | None = None,
) -> nn.Module:
    """Replace every X-volution by its deployed form. Hooks on an X-volution itself go to that form.

    Args:
        model: a network in eval mode, or a single ``XVolution2d``.
        example_inputs: a tensor, a tuple of positional arguments or a mapping of keyword arguments. When given, the outputs
            before and after are compared, and ``layout="auto"`` measures on the inputs that each operator sees.
        layout: of every operator: ``"auto"`` (the fastest in ``runtime``; the one with the fewest multiplications without
            ``example_inputs``), a layout that all of them have, such as ``"single"`` (one convolution) or ``"split"``
            (several), or a mapping from module name to layout as returned by ``layouts_of`` and ``choose_layouts``.
        inplace: change ``model`` itself instead of a copy; when that fails the model is as it was.
        rtol: allowed difference relative to the largest magnitude of the output; by dtype when None (1e-4 in fp32, 1e-10 in
            fp64).
        atol: allowed absolute difference, however small the outputs are; 1e-6 when None.
        fold_norms: fold the other batch norms into the convolutions before them as well.
        runtime, threads, progress: who times the layouts for ``"auto"``; see ``choose_layouts``, which also reports the times.

    Returns:
        The deployed model. ``layouts_of`` tells which layouts were chosen, ``unfolded_of`` which norms stayed.

    Warns:
        UserWarning: the runtime could not time the layouts, so that those with the fewest multiplications were taken.

    Raises:
        ReparameterizationError: the model is in train mode, the outputs differ, or a part of an operator has a hook or a
            patched forward, or computes another formula than it was built for; the message names the first module that differs.
            Each operator is compared with its deployed form on a small random image, in fp64, with ``example_inputs`` or not.
        LayoutError: an operator has no such layout; a ValueError that names it and lists its layouts.
        ValueError: no such runtime, or ``threads`` below 1.

    Source: X-volution, section 3.3; the factorization is in ``docs/architecture.md``.
    """
    operators = {name: module for name, module in model.named_modules() if isinstance(module, XVolution)}
    require_eval(model)
    timer, seen = LayoutTimer(runtime, threads, progress), Recorder(operators)
    expected = None
    if example_inputs is not None:
        with torch.no_grad(), seen:
            expected = call(model, example_inputs)
    wanted = _wanted(operators, layout, seen.inputs, timer)
    deployed = working_copy(model, inplace, ReparameterizationError)
    # Before the operators are replaced: torch.fx passes over a training form, but not into a deployed one.
    pairs = norms_behind(deployed, _plain_outside(deployed, operators), lambda: example_inputs) if fold_norms else {}
    changes = Changes(deployed)
    try:
        replacements = {name: _deploy(name, deployed.get_submodule(name), wanted[name]) for name in operators}
        for name, replacement in replacements.items():
            changes.put(name, replacement)
        _fold_norms(changes, pairs)
        if expected is not None:
            with torch.no_grad(), Recorder(replacements) as after:
                actual = call(changes.model, example_inputs)
            _compare(expected, actual, seen, after, rtol, 1e-6 if atol is None else atol)
    except BaseException:
        changes.take_back()
        raise
    return changes.model


def layouts_of(deployed: nn.Module) -> dict[str, str]:
    """Layout of every deployed operator by module name: what ``reparameterize(layout=...)`` takes to build the same again."""
    return {name: module.layout for name, module in deployed.named_modules() if isinstance(module, DeployedOperator)}


def unfolded_of(deployed: nn.Module) -> dict[str, str]:
    """Norms inside deployed operators that could not fold (group norm, say), class by module name: they run as in training."""
    return {
        f"{name}.{child}".lstrip("."): type(norm).__name__
        for name, module in deployed.named_modules()
        if isinstance(module, DeployedOperator)
        for child, norm in module.named_children()
        if child.endswith("_norm") and type(norm) is not nn.Identity
    }


def _wanted(
    operators: Mapping[str, XVolution],
    layout: str | Mapping[str, str],
    inputs: Mapping[str, Tensor],
    timer: LayoutTimer,
) -> Mapping[str, str]:
    """The layout of each operator."""
    if not isinstance(layout, Mapping):
        layout = dict.fromkeys(operators, layout)
    unknown = [name for name in operators if name not in layout]
    if unknown:
        raise ValueError(f"layout names no layout for {', '.join(unknown)}; give one for each X-volution")
    choice = timer.choose({name: operators[name] for name in operators if layout[name] == AUTO}, inputs)
    if choice.reason and timer.runtime != TORCH:
        warnings.warn(str(choice), UserWarning, stacklevel=3)
    return {**layout, **choice.layouts}


def _deploy(name: str, operator: Any, layout: str) -> nn.Module:
    try:
        return deploy(operator, lambda folded: folded.deployed(layout, operator.conv.weight))
    except LayoutError as error:
        raise LayoutError(f"{name or 'the operator'}: {error}; give one of these, or 'auto'") from error
    except ReparameterizationError as error:
        raise ReparameterizationError(f"{name or type(operator).__name__}: {error}") from error


def _plain_outside(model: nn.Module, operators: Mapping[str, nn.Module]) -> set[str]:
    """Names of the plain convolutions that are no part of an operator."""
    inside = tuple(f"{name}." if name else "" for name in operators)
    return {name for name, module in model.named_modules() if is_plain(module) and not name.startswith(inside)}


def _fold_norms(changes: Changes, pairs: Mapping[str, str]) -> None:
    """Fold the norms that can fold into the plain convolutions before them."""
    for conv_name, norm_name in pairs.items():
        conv, norm = conv_at(changes.model, conv_name), changes.model.get_submodule(norm_name)
        alone: Any = norm_alone(norm)
        if is_foldable(alone):
            changes.put(conv_name, fuse_conv_bn_eval(conv, alone))
            changes.put(norm_name, without_norm(norm))


def _compare(expected: Any, actual: Any, before: Recorder, after: Recorder, rtol: float | None, atol: float) -> None:
    tensors = tensors_in(expected)
    if not tensors:
        raise ReparameterizationError(
            "the model returned no tensor for example_inputs; give inputs that reach its outputs"
        )
    dtype = next((tensor.dtype for tensor in tensors if tensor.is_floating_point()), torch.float32)
    allowed = TOLERANCE.get(dtype, 1e-4) if rtol is None else rtol
    error = difference(expected, actual)
    if error.relative <= allowed or error.absolute <= atol:
        return
    errors = {
        name: difference(before.outputs[name], after.outputs[name]).relative
        for name in before.outputs
        if name in after.outputs
    }
    first = next((name for name, relative in errors.items() if relative > allowed), None)
    finite = all(torch.isfinite(tensor).all() for tensor in tensors if tensor.is_floating_point())
    where = (
        f"the first module that differs is {first} (relative {errors[first]:.1e})"
        if first
        else "no X-volution differs by itself"
    )
    cause = (
        "rounding in low precision, or activations so large that fp32 is not enough; try the model in fp64, or a larger rtol"
        if finite
        else "the model itself returns numbers that are not finite on these inputs"
    )
    raise ReparameterizationError(
        f"the deployed model differs from the trained one by {error.absolute:.1e} (relative {error.relative:.1e}, allowed "
        f"{allowed:.0e}); {where}. Likely cause: {cause}"
    )
