"""Which norm follows which convolution: read from the data flow, then proven by outputs."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, fx, nn

from xvolution.nn import XVolution
from xvolution.nn.convolution import is_convolution
from xvolution.nn.geometry import CONVOLUTIONS
from xvolution.surgery.modules import call, evaluating, replace_module
from xvolution.surgery.outputs import TOLERANCE, difference

_PLAIN_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
_CONVOLUTIONS = tuple(CONVOLUTIONS.values())


def is_pairable_norm(module: nn.Module) -> bool:
    """Batch norms that act per channel, frozen ones and timm's fused norm-activation included."""
    return type(module) in _PLAIN_NORMS or type(module).__name__ in ("FrozenBatchNorm2d", "BatchNormAct2d")


def norm_alone(norm: Any) -> nn.Module:
    """The norm without the dropout and activation that timm's ``BatchNormAct2d`` appends; parameters are shared."""
    if type(norm).__name__ != "BatchNormAct2d":
        return norm
    alone = nn.BatchNorm2d(
        norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats, device="meta"
    )
    for store in ("_parameters", "_buffers"):
        getattr(alone, store).update(getattr(norm, store))
    return alone.train(norm.training)


def without_norm(norm: Any) -> nn.Module:
    """What stays in the place of a norm that moved into the convolution before it."""
    rest = [] if type(norm).__name__ != "BatchNormAct2d" else [norm.drop, norm.act]
    rest = [module for module in rest if type(module) is not nn.Identity]
    return (nn.Sequential(*rest) if rest else nn.Identity()).train(norm.training)


def pair_norms(model: nn.Module, example_inputs: Any = None) -> dict[str, str]:
    """Names of convolutions and of the batch norm that alone reads their output.

    Pairs come from ``torch.fx`` where the model traces, else from watching one forward pass. With ``example_inputs`` every
    pair is proven: on a copy whose norms get random statistics, moving the norm behind its convolution must not change the
    outputs. Pairs that were only watched are dropped when they cannot be proven.

    Args:
        model: any network, in any mode.
        example_inputs: what the model takes, or None.

    Returns:
        Module name of the convolution -> module name of the norm.
    """
    traced = _traced_pairs(model)
    if traced is not None:
        return traced if example_inputs is None else _proven(model, traced, example_inputs, keep_unprovable=True)
    if example_inputs is None:
        return {}
    return _proven(model, _watched_pairs(model, example_inputs), example_inputs, keep_unprovable=False)


def _fits(conv: Any, norm: Any) -> bool:
    return (
        isinstance(conv, _CONVOLUTIONS)
        and is_pairable_norm(norm)
        and norm.running_mean is not None
        and norm.running_mean.numel() == conv.out_channels
        and is_convolution(conv)
    )


class _Tracer(fx.Tracer):
    def is_leaf_module(self, module: nn.Module, module_qualified_name: str) -> bool:
        leaf = isinstance(module, (XVolution, *_CONVOLUTIONS)) or is_pairable_norm(module)
        return leaf or super().is_leaf_module(module, module_qualified_name)


def _traced_pairs(model: nn.Module) -> dict[str, str] | None:
    try:
        graph = _Tracer().trace(model)
    except Exception:  # control flow, assertions on shapes, ...: such a model is watched instead
        return None
    modules = dict(model.named_modules())
    calls = Counter(node.target for node in graph.nodes if node.op == "call_module")
    pairs = {}
    for node in graph.nodes:
        if node.op != "call_module" or len(node.users) != 1:
            continue
        user = next(iter(node.users))
        once = user.op == "call_module" and calls[node.target] == calls[user.target] == 1
        if once and user.args[:1] == (node,) and _fits(modules[node.target], modules[user.target]):
            pairs[node.target] = user.target
    return pairs


def _watched_pairs(model: nn.Module, example_inputs: Any) -> dict[str, str]:
    produced: dict[str, list[Tensor]] = {}
    consumed: dict[str, list[Tensor]] = {}
    modules = dict(model.named_modules())
    handles = []
    for name, module in modules.items():
        if isinstance(module, _CONVOLUTIONS):
            handles.append(module.register_forward_hook(_append_output(produced.setdefault(name, []))))
        elif is_pairable_norm(module):
            handles.append(module.register_forward_hook(_append_input(consumed.setdefault(name, []))))
    try:
        with evaluating(model):
            call(model, example_inputs)
    finally:
        for handle in handles:
            handle.remove()
    readers = {id(tensors[0]): name for name, tensors in consumed.items() if len(tensors) == 1}
    pairs = {
        name: readers[id(tensors[0])]
        for name, tensors in produced.items()
        if len(tensors) == 1 and id(tensors[0]) in readers
    }
    return {conv: norm for conv, norm in pairs.items() if _fits(modules[conv], modules[norm])}


def _append_output(record: list[Tensor]) -> Any:
    return lambda module, args, output: record.append(output)


def _append_input(record: list[Tensor]) -> Any:
    return lambda module, args, output: record.append(args[0])


def _proven(model: nn.Module, pairs: dict[str, str], example_inputs: Any, keep_unprovable: bool) -> dict[str, str]:
    """The pairs that hold by outputs."""
    if not pairs:
        return pairs
    try:
        holds = _hold(model, pairs, example_inputs)
    except Exception:  # a model that cannot be copied or run
        return pairs if keep_unprovable else {}
    if holds is None:
        return pairs if keep_unprovable else {}
    if holds:
        return pairs
    return {conv: norm for conv, norm in pairs.items() if _holds_alone(model, conv, norm, example_inputs)}


def _holds_alone(model: nn.Module, conv: str, norm: str, example_inputs: Any) -> bool:
    try:
        return bool(_hold(model, {conv: norm}, example_inputs))
    except Exception:  # the network reads an attribute of the convolution that moving the norm takes away
        return False


def _hold(model: nn.Module, pairs: dict[str, str], example_inputs: Any) -> bool | None:
    """Whether moving the norms behind their convolutions keeps the outputs; None when the model is not deterministic."""
    probe = copy.deepcopy(model)
    _randomize(probe.get_submodule(norm) for norm in pairs.values())
    with evaluating(probe):
        expected = call(probe, example_inputs)
        if difference(expected, call(probe, example_inputs)).absolute > 0:
            return None
        for conv_name, norm_name in pairs.items():
            conv, norm = probe.get_submodule(conv_name), probe.get_submodule(norm_name)
            probe = replace_module(probe, norm_name, without_norm(norm))
            probe = replace_module(probe, conv_name, nn.Sequential(conv, norm_alone(norm)).eval())
        error = difference(expected, call(probe, example_inputs))
    dtype = next((p.dtype for p in probe.parameters() if p.is_floating_point()), torch.float32)
    return error.relative <= TOLERANCE.get(dtype, 1e-4)


def _randomize(norms: Iterable[Any]) -> None:
    """Random statistics and affine parameters: a fresh batch norm is the identity and would hide a wrong pair."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for norm in norms:
            for tensor, low, high in (
                (norm.running_mean, -0.3, 0.3),
                (norm.running_var, 0.7, 1.5),
                (norm.weight, 0.7, 1.3),
                (norm.bias, -0.3, 0.3),
            ):
                if tensor is not None:
                    noise = torch.rand(tensor.shape, generator=generator).to(tensor)
                    tensor.copy_(low + (high - low) * noise)
