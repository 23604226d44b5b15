"""From the training form to the deployed form, exactly; and the proof that it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from xvolution.deploy.deployed import DeployedXVolution
from xvolution.deploy.fold import fold, is_foldable
from xvolution.deploy.layouts import build, layouts_for
from xvolution.deploy.measure import fastest
from xvolution.nn import XVolution
from xvolution.nn.convolution import is_plain
from xvolution.surgery.modules import call, conv_at, replace_module
from xvolution.surgery.outputs import TOLERANCE, difference, tensors_in
from xvolution.surgery.pairing import norm_alone, pair_norms, without_norm

LAYOUTS = ("auto", "single", "split")


class ReparameterizationError(RuntimeError):
    """The model cannot be re-parameterized, or the deployed form computes something else."""


def reparameterize(
    model: nn.Module,
    example_inputs: Any = None,
    layout: str | Mapping[str, str] = "auto",
    inplace: bool = False,
    rtol: float | None = None,
    atol: float | None = None,
    fold_norms: bool = False,
) -> nn.Module:
    """Replace every X-volution by its deployed form.

    Args:
        model: a network in eval mode, or a single ``XVolution2d``.
        example_inputs: a tensor, a tuple of positional arguments or a mapping of keyword arguments. When given, the outputs
            before and after are compared, and ``layout="auto"`` measures on the inputs that each operator sees.
        layout: ``"single"`` (one standard convolution, then the gate), ``"split"`` (least arithmetic), ``"auto"`` (the
            fastest on the model's device; the least arithmetic without ``example_inputs``), or a mapping from module name to
            layout as returned by ``layouts_of``. Branches that cannot merge (``dot``, ``global``, a module) are always split.
        inplace: change ``model`` itself instead of a copy.
        rtol: allowed difference relative to the largest magnitude of the output; by dtype when None (1e-4 in fp32, 1e-10 in
            fp64).
        atol: allowed absolute difference, however small the outputs are; 1e-6 when None.
        fold_norms: fold the other batch norms into the convolutions before them as well.

    Returns:
        The deployed model. ``layouts_of`` tells which layouts were chosen, ``unfolded_of`` which norms stayed.

    Raises:
        ReparameterizationError: the model is in train mode, or the outputs differ; the message names the first module that
            differs.
        ValueError: an unknown layout.

    Source: X-volution, section 3.3; the factorization is in ``docs/architecture.md``.
    """
    operators = {name: module for name, module in model.named_modules() if isinstance(module, XVolution)}
    _check(model, operators, layout)
    wanted = layout if isinstance(layout, Mapping) else dict.fromkeys(operators, layout)
    seen = _Recorder(operators)
    expected = None
    if example_inputs is not None:
        with torch.no_grad(), seen:
            expected = call(model, example_inputs)
    deployed = model if inplace else deepcopy(model)
    # Before the operators are replaced: torch.fx passes over a training form, but not into a deployed one.
    pairs = pair_norms(deployed, example_inputs) if fold_norms else {}
    replacements = {
        name: _deploy(deployed.get_submodule(name), wanted[name], seen.inputs.get(name)) for name in operators
    }
    for name, replacement in replacements.items():
        deployed = replace_module(deployed, name, replacement)
    inside = tuple(f"{name}." if name else "" for name in operators)
    deployed = _fold_norms(deployed, {conv: norm for conv, norm in pairs.items() if not conv.startswith(inside)})
    if expected is not None:
        with torch.no_grad(), _Recorder(replacements) as after:
            actual = call(deployed, example_inputs)
        _compare(expected, actual, seen, after, rtol, 1e-6 if atol is None else atol)
    return deployed


def layouts_of(deployed: nn.Module) -> dict[str, str]:
    """Layout of every deployed operator by module name: what ``reparameterize(layout=...)`` takes to build the same again."""
    return {name: module.layout for name, module in deployed.named_modules() if isinstance(module, DeployedXVolution)}


def unfolded_of(deployed: nn.Module) -> dict[str, str]:
    """Norms inside deployed operators that could not fold (group norm, say), class by module name: they run as in training."""
    return {
        f"{name}.{child}".lstrip("."): type(norm).__name__
        for name, module in deployed.named_modules()
        if isinstance(module, DeployedXVolution)
        for child, norm in module.named_children()
        if child.endswith("_norm") and type(norm) is not nn.Identity
    }


def _check(model: nn.Module, operators: Mapping[str, nn.Module], layout: str | Mapping[str, str]) -> None:
    if isinstance(layout, Mapping):
        unknown = [name for name in operators if name not in layout]
        if unknown:
            raise ValueError(f"layout names no layout for {', '.join(unknown)}; give one for each X-volution")
        allowed = set(layout.values()) - set(LAYOUTS)
    else:
        allowed = {layout} - set(LAYOUTS)
    if allowed:
        raise ValueError(f"layout is {', '.join(map(repr, allowed))}; allowed are {', '.join(map(repr, LAYOUTS))}")
    training = [name or type(model).__name__ for name, module in model.named_modules() if module.training]
    if training:
        raise ReparameterizationError(
            f"{training[0]} is in train mode, where batch norms use the statistics of each batch and cannot fold; "
            "call model.eval() first"
        )


def _deploy(operator: Any, layout: str, x: Tensor | None) -> nn.Module:
    folded = fold(operator)
    weight = operator.conv.weight
    factory = {"device": weight.device, "dtype": weight.dtype}
    allowed = layouts_for(folded, operator.attention)
    candidates = allowed if layout == "auto" else (layout if layout in allowed else allowed[0],)
    if len(candidates) == 1 or x is None:
        return build(folded, operator.attention, candidates[0], factory)
    return fastest([build(folded, operator.attention, candidate, factory) for candidate in candidates], x)


def _deploy_alone(operator: XVolution) -> nn.Module:
    return reparameterize(operator)


XVolution.deployment = staticmethod(_deploy_alone)


def _fold_norms(model: nn.Module, pairs: Mapping[str, str]) -> nn.Module:
    """Fold the norms that can fold into the plain convolutions before them."""
    for conv_name, norm_name in pairs.items():
        conv, norm = conv_at(model, conv_name), model.get_submodule(norm_name)
        alone: Any = norm_alone(norm)
        if is_foldable(alone) and is_plain(conv):
            model = replace_module(model, conv_name, fuse_conv_bn_eval(conv, alone))
            model = replace_module(model, norm_name, without_norm(norm))
    return model


class _Recorder:
    """Records the first input and the output of named modules while it is entered."""

    def __init__(self, modules: Mapping[str, nn.Module]) -> None:
        self.modules = modules
        self.inputs: dict[str, Tensor] = {}
        self.outputs: dict[str, Tensor] = {}

    def _hook(self, name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def record(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            self.inputs.setdefault(name, args[0].detach())
            self.outputs.setdefault(name, output.detach().clone())

        return record

    def __enter__(self) -> _Recorder:
        self.handles = [module.register_forward_hook(self._hook(name)) for name, module in self.modules.items()]
        return self

    def __exit__(self, *exception: object) -> None:
        for handle in self.handles:
            handle.remove()


def _compare(expected: Any, actual: Any, before: _Recorder, after: _Recorder, rtol: float | None, atol: float) -> None:
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
