"""Exact conversion of the training form into the deployed form, with a comparison of both."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from xvolution.attention.deployed import DeployedOperator
from xvolution.attention.folded import LayoutError
from xvolution.conversion.convert import norms_behind
from xvolution.conversion.modules import call, conv_at
from xvolution.conversion.outputs import tensors_in
from xvolution.conversion.pairing import norm_alone, without_norm
from xvolution.conversion.proof import Changes
from xvolution.convolutions import is_plain
from xvolution.copying import working_copy
from xvolution.deploy.comparison import require_same_operators, require_same_outputs
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
            before and after are compared, each operator on the input that it sees and those of the network, and
            ``layout="auto"`` measures on these inputs.
        layout: of every operator: ``"auto"`` (the fastest in ``runtime``; the one with the fewest multiplications without
            ``example_inputs``), a layout that all of them have, such as ``"single"`` (one convolution) or ``"split"``
            (several), or a mapping from module name to layout as returned by ``layouts_of`` and ``choose_layouts``.
        inplace: change ``model`` itself instead of a copy; if that fails, the model is restored.
        rtol: allowed difference relative to the largest magnitude of the output. By dtype when None (1e-4 in fp32, 1e-10 in
            fp64); a network that amplifies rounding is then compared in fp64.
        atol: allowed absolute difference, however small the outputs are; 1e-6 when None.
        fold_norms: also fold the other batch norms into the convolutions before them.
        runtime, threads, progress: for timing the layouts with ``"auto"``; see ``choose_layouts``, which also reports the times.

    Returns:
        The deployed model. ``layouts_of`` returns the chosen layouts, ``unfolded_of`` the norms that did not fold.

    Warns:
        UserWarning: the runtime could not time the layouts, so those with the fewest multiplications were chosen; or the network
            draws random numbers in eval mode, so only its operators were compared.

    Raises:
        ReparameterizationError: the model is in train mode, the outputs differ, or a part of an operator has a hook or a
            patched forward, or does not compute its original formula; the message names the first module that differs.
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
        if not tensors_in(expected):
            raise ReparameterizationError(
                "the model returned no tensor for example_inputs; give inputs that reach its outputs"
            )
    wanted = _wanted(operators, layout, seen.inputs, timer)
    deployed = working_copy(model, inplace, ReparameterizationError)
    # Before the operators are replaced: torch.fx passes over a training form, but not into a deployed one.
    pairs = norms_behind(deployed, _plain_outside(deployed, operators), lambda: example_inputs) if fold_norms else {}
    changes = Changes(deployed)
    try:
        replacements = _replace(changes, wanted, pairs)
        if expected is not None:
            with torch.no_grad():
                actual = call(changes.model, example_inputs)
            require_same_operators(operators, replacements, seen.inputs, rtol)
            with changes.undone() as trained:
                allowed = (rtol, 1e-6 if atol is None else atol)
                again = partial(_replaced, layouts=wanted, pairs=pairs)
                require_same_outputs(expected, actual, *allowed, trained, again, example_inputs)
    except BaseException:
        changes.take_back()
        raise
    return changes.model


def _replace(changes: Changes, layouts: Mapping[str, str], pairs: Mapping[str, str]) -> dict[str, nn.Module]:
    """Put deployed forms in the places of operators, and fold norms by ``pairs``; the deployed forms by name."""
    operators = {name: module for name, module in changes.model.named_modules() if isinstance(module, XVolution)}
    replacements = {name: _deploy(name, operator, layouts[name]) for name, operator in operators.items()}
    for name, replacement in replacements.items():
        changes.put(name, replacement)
    _fold_norms(changes, pairs)
    return replacements


def _replaced(model: nn.Module, layouts: Mapping[str, str], pairs: Mapping[str, str]) -> nn.Module:
    changes = Changes(model)
    _replace(changes, layouts, pairs)
    return changes.model


def layouts_of(deployed: nn.Module) -> dict[str, str]:
    """Layout of every deployed operator by module name, as for ``reparameterize(layout=...)``."""
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
        raise ValueError(f"layout has no entry for {', '.join(unknown)}; give one for each X-volution")
    choice = timer.choose({name: operators[name] for name in operators if layout[name] == AUTO}, inputs)
    if choice.reason and timer.runtime != TORCH:
        warnings.warn(str(choice), UserWarning, stacklevel=3)
    return {**layout, **choice.layouts}


def _deploy(name: str, operator: Any, layout: str) -> nn.Module:
    try:
        return deploy(operator, lambda folded: folded.deployed(layout, operator.conv.weight))
    except LayoutError as error:
        raise LayoutError(f"{name or 'the operator'}: {error}; give one of these layouts, or 'auto'") from error
    except ReparameterizationError as error:
        raise ReparameterizationError(f"{name or type(operator).__name__}: {error}") from error


def _plain_outside(model: nn.Module, operators: Mapping[str, nn.Module]) -> set[str]:
    """Names of the plain convolutions outside of operators."""
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
