"""Replacing convolutions of a network by X-volutions without changing its outputs."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from xvolution.conversion.budget import within_budget
from xvolution.conversion.checkpoints import find_moved_norms
from xvolution.conversion.config import ConversionConfig, Placement
from xvolution.conversion.modules import infer_inputs, without_zeros
from xvolution.conversion.outputs import Difference, tensors_in
from xvolution.conversion.pairing import traced_pairs, watched_pairs
from xvolution.conversion.parameters import note_moved
from xvolution.conversion.projections import at_projections_of
from xvolution.conversion.proof import Changes, Proof, pairs_hold, random_statistics
from xvolution.conversion.register import operator_config
from xvolution.conversion.selection import FilterFunction, convolutions, reasons
from xvolution.conversion.summary import Record, Replacement, count_parameters, left_alone, remember
from xvolution.copying import working_copy
from xvolution.operator import XVolution
from xvolution.standin import ConversionError

_NEW_WEIGHTS = "outputs differ from before, because the operator starts with new weights"


@torch.inference_mode(False)  # weights made under it could never be trained
def convert(
    model: nn.Module,
    config: ConversionConfig | str | None = None,
    *,
    stages: Sequence[int] | None = None,
    kernel_sizes: Sequence[int] | None = None,
    names: Sequence[str] | None = None,
    at_projections: bool = True,
    filter_fn: FilterFunction | None = None,
    budget: float | None = None,
    example_inputs: Any = None,
    verify: bool = True,
    inplace: bool = False,
) -> nn.Module:
    """Replace convolutions: by X-volutions that start as exactly those convolutions, or by another operator.

    Weights stay. The batch norm that follows a convolution moves into the operator (``conv_norm``) and a pass-through takes its
    place; checkpoints of the unconverted model still load. Where no batch norm follows, the convolution branch has none.

    Args:
        model: any network.
        config: the operator: the name of an attention branch (``"linear"``) or of another operator (``"acmix"``), an
            ``XVolutionConfig`` or an ``OperatorConfig``; X-volution with its default branch when None.
        stages, kernel_sizes, names: the convolutions to replace; see ``Placement``. By default all spatial convolutions
            after the stem.
        at_projections: replace the 1x1 convolution after a depthwise one, where attention mixes channels, instead of the
            depthwise one; ignored if kernel sizes, names or ``filter_fn`` are given.
        filter_fn: ``filter_fn(module, name) -> bool`` chooses among these; it removes the default restriction to spatial
            convolutions after the stem.
        budget: largest ratio of the deployed network's time to the plain network's time, such as 1.05. Of the
            convolutions that the other arguments select, the cheapest are replaced until the estimate reaches the budget
            (``within_budget``), with fewer attention channels if more convolutions fit then. The estimate is for batches
            like ``example_inputs``.
        example_inputs: a tensor, a tuple of positional arguments or a mapping of keyword arguments, to check the outputs with;
            when None, an image batch of noise of a size that the model takes. Not zeros, which hide differences.
        verify: run the network before and after, and compare. Otherwise the network is run only if ``torch.fx`` cannot
            trace it, to find the norm that follows each convolution.
        inplace: change ``model`` itself instead of a copy. If the conversion fails, it is restored.

    Returns:
        The converted model; ``conversion_summary`` lists the replaced convolutions. If all selected convolutions are already
        converted, the model is returned unchanged.

    Raises:
        ValueError: nothing was selected, stages that the network does not have, an operator that is not known or does not fit, or
            a budget into which no operator fits.
        ConversionError: the outputs changed although the configuration promises to keep them, a convolution ran whose operator
            does not, the network computes with the weight of a replaced convolution, or the model cannot be copied or is a
            ``ScriptModule``.
    """
    if isinstance(model, torch.jit.ScriptModule):
        raise ConversionError(
            f"{type(model).__name__} comes from torch.jit.script or torch.jit.trace and has no modules that "
            "can be replaced; convert the original network, and call torch.jit.trace(reparameterize(model), "
            "images) afterwards"
        )
    config = operator_config(config)
    where = Placement.of(stages, kernel_sizes, names, at_projections)

    @cache
    def inputs() -> Any:
        return infer_inputs(model) if example_inputs is None else without_zeros(example_inputs)

    selected, stay, behind = _select(model, config, where, filter_fn, inputs)
    original, model = model, working_copy(model, inplace, ConversionError)
    chosen = [name for name in selected if not isinstance(model.get_submodule(name), XVolution)]
    if not chosen:
        return model
    afforded = ""
    if budget is not None:
        choice = within_budget(model, chosen, config, budget, inputs())
        over = [name for name in chosen if name not in choice.names]
        stay |= dict.fromkeys(over, f"its operator would exceed budget={budget}")
        afforded = f"; estimated at {choice.estimate:.3f} times the plain network's time, with a budget of {budget}"
        config, chosen = choice.config, choice.names
    left = left_alone(model, stay)
    parameters = count_parameters(model)
    pairs = norms_behind(model, chosen, inputs) if config.takes_norm else {}
    changes = Changes(model)
    try:
        if verify:
            replaced, proof = _put_if_proven(changes, chosen, pairs, config, inputs(), original)
        else:
            replaced, proof = put_operators(changes, chosen, pairs, config), "outputs were not compared"
    except BaseException:
        changes.take_back()
        raise
    model = changes.model
    find_moved_norms(model, replaced)
    shape = _image_shape(inputs() if verify else example_inputs)
    if behind:
        proof += f"; operators replace the projections after {len(behind)} depthwise convolutions, which are kept"
    remember(model, Record(replaced, parameters, shape, proof + afforded, left))
    return model


def _select(
    model: nn.Module,
    config: ConversionConfig,
    where: Placement,
    filter_fn: FilterFunction | None,
    inputs: Callable[[], Any],
) -> tuple[list[str], dict[str, str | None], dict[str, str]]:
    """The convolutions to replace, the reason why each other one is kept, and the projections by their depthwise convolution."""
    found = reasons(model, where, filter_fn)
    selected = [name for name, reason in found.items() if reason is None]
    if not selected:
        raise ValueError(_nothing_selected(model, found))
    chosen_by_kind = where.kernel_sizes is None and where.names is None and filter_fn is None
    behind: dict[str, str] = {}
    if chosen_by_kind and where.at_projections and config.takes_projections:
        selected, behind = at_projections_of(model, selected, inputs)
    stay = {name: f"its projection {projection} is replaced instead" for name, projection in behind.items()}
    return selected, found | stay | dict.fromkeys(selected), behind


def norms_behind(model: nn.Module, convs: Collection[str], inputs: Callable[[], Any]) -> Mapping[str, str]:
    """The batch norm that is the only reader of a convolution's output, for each of ``convs`` that has one.

    From the graph if ``torch.fx`` can trace the network, else from one forward pass on ``inputs()``; empty if that is None.
    """
    pairs = traced_pairs(model)
    if pairs is None:
        found = inputs()
        pairs = {} if found is None else watched_pairs(model, found)
    return {conv: norm for conv, norm in pairs.items() if conv in convs}


def _put_if_proven(
    changes: Changes,
    chosen: Sequence[str],
    pairs: Mapping[str, str],
    config: ConversionConfig,
    inputs: Any,
    original: nn.Module,
) -> tuple[list[Replacement], str]:
    """Put the operators in. With ``inputs``, require the same outputs, and move fewer norms if necessary.

    ``original`` is the given network; the changed network is a copy of it or itself.

    Returns:
        The replaced convolutions, and a sentence about the outputs.
    """
    if inputs is None:
        return put_operators(
            changes, chosen, pairs, config
        ), "outputs were not compared; give example_inputs to compare them"
    model, proof = changes.model, Proof(inputs)
    norms = {name: model.get_submodule(name) for name in pairs.values()}
    with random_statistics(norms.values()):
        proof.before(model, chosen, original)
        if not config.keeps_outputs:
            held = not pairs or pairs_hold(model, pairs, proof) or proof.is_random(model)
            replaced = put_operators(changes, chosen, pairs if held else _holding(model, pairs, proof), config)
            proof.error(changes.model)
            if proof.failure is None and not (proof.idle and _is_random(changes.model, inputs)):
                _require_runs(proof)
            return replaced, _NEW_WEIGHTS
        replaced = put_operators(changes, chosen, pairs, config)
        error = proof.error(changes.model)
        if error is None:
            _require_runs(proof)
            return replaced, "outputs were not compared, because the weights have no values yet"
        if proof.allows(error):
            _require_runs(proof)
            return replaced, f"outputs before and after differ by {error.absolute:.0e}"
        changes.take_back()
        if proof.is_random(model):
            replaced = put_operators(changes, chosen, pairs, config)
            proof.error(changes.model)
            if proof.failure is not None:
                raise _refusal(None, proof)
            return replaced, "outputs were not compared, because the network draws random numbers"
        replaced = put_operators(changes, chosen, _holding(model, pairs, proof), config)
        error = proof.error(changes.model)
        if error is None or not proof.allows(error):
            raise _refusal(error, proof) from proof.failure
        _require_runs(proof)
        return replaced, f"outputs before and after differ by {error.absolute:.0e}"


def _require_runs(proof: Proof) -> None:
    """Raise ConversionError if a convolution ran before but its operator does not."""
    idle = sorted(proof.idle)
    if idle:
        more = f" and {len(idle) - 3} more" if len(idle) > 3 else ""
        raise ConversionError(
            f"the network does not call the operator that replaced {', '.join(idle[:3])}{more}: it still "
            "holds the convolution itself, in a function, a copy, or a fused or compiled form; convert "
            "before that form is made, or leave the convolution out by names or filter_fn"
        )


def _is_random(model: nn.Module, inputs: Any) -> bool:
    proof = Proof(inputs)
    proof.before(model)
    return proof.is_random(model)


def _refusal(error: Difference | None, proof: Proof) -> ConversionError:
    """The error for a converted network that cannot be run, or whose outputs differ by ``error``."""
    if isinstance(proof.failure, ConversionError):
        return proof.failure
    said = "'s outputs differ" + ("" if error is None else f" by {error.absolute:.1e} (relative {error.relative:.1e})")
    if proof.failure is not None:
        where = "" if proof.failed_in is None else f" in {proof.failed_in}"
        said = f" cannot be run ({proof.failure}{where})"
    return ConversionError(
        f"the converted model{said}: the network uses a replaced convolution in a way that the operator does "
        "not support; leave that convolution out by names or filter_fn"
    )


def _holding(model: nn.Module, pairs: Mapping[str, str], proof: Proof) -> Mapping[str, str]:
    """The pairs of convolution and norm that keep the outputs when moved one at a time."""
    return {conv: norm for conv, norm in pairs.items() if pairs_hold(model, {conv: norm}, proof)}


def _image_shape(inputs: Any) -> tuple[int, ...] | None:
    tensors = tensors_in(inputs)
    return tuple(tensors[0].shape) if len(tensors) == 1 and isinstance(inputs, Tensor) else None


def put_operators(
    changes: Changes, chosen: Sequence[str], pairs: Mapping[str, str], config: ConversionConfig
) -> list[Replacement]:
    """Put an operator in the place of each convolution, and the norm that follows into it.

    Raises:
        ValueError: an operator does not fit a convolution.
    """
    replaced = []
    for name in chosen:
        conv, norm = changes.model.get_submodule(name), pairs.get(name)
        before = [conv] if norm is None else [conv, changes.model.get_submodule(norm)]
        try:
            operator = changes.move_norm(name, norm, config.replacement)
        except ValueError as error:
            raise ValueError(f"{name or type(conv).__name__}: {error}") from error
        note_moved(operator, before)
        if isinstance(operator, XVolution):
            operator.place = name
        replaced.append(Replacement.of(name, conv, operator, norm))
    return replaced


def _nothing_selected(model: nn.Module, found: Mapping[str, str | None]) -> str:
    there = dict(convolutions(model))
    others = [f"{name or type(model).__name__} ({reason})" for name, reason in found.items() if name not in there]
    left = f"; not converted: {_listed(others)}" if others else ""
    if not there:
        return f"{type(model).__name__} has no convolution that can be converted{left}"
    listed = _listed([f"{name} {'x'.join(map(str, conv.kernel_size))}" for name, conv in there.items()])
    return f"the configuration selects no convolution of {type(model).__name__}; its convolutions are: {listed}{left}"


def _listed(items: Sequence[str]) -> str:
    return ", ".join(items[:20]) + (f" and {len(items) - 20} more" if len(items) > 20 else "")
