"""Which norm follows which convolution, read from the data flow.

Every module of the classes of torch's convolutions is paired; whether it computes a plain convolution is asked elsewhere.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from typing import Any

from torch import Tensor, fx, nn

from xvolution.conversion.modules import call, evaluating
from xvolution.convolutions import CONVOLUTIONS
from xvolution.copying import addition_to
from xvolution.folding import BATCH_NORMS, is_frozen_batch_norm
from xvolution.operator import XVolution
from xvolution.standin import PassThrough

_CONVOLUTIONS = tuple(CONVOLUTIONS.values())


def is_pairable_norm(module: nn.Module) -> bool:
    """Batch norms that act per channel, frozen ones and timm's fused norm-activation included.

    A fused one is taken apart, so it stays where it is if something was hung on it as a whole.
    """
    if _has_activation(module):
        return addition_to(module) is None and "weight" in module._parameters
    return type(module) in BATCH_NORMS or is_frozen_batch_norm(module)


def _has_activation(module: Any) -> bool:
    """timm's ``BatchNormAct2d``: a batch norm that ends in dropout and an activation."""
    return isinstance(module, nn.BatchNorm2d) and {"drop", "act"} <= module._modules.keys()


def norm_alone(norm: Any) -> nn.Module:
    """The norm without the dropout and activation that timm's ``BatchNormAct2d`` appends; parameters are shared."""
    if not _has_activation(norm):
        return norm
    alone = nn.BatchNorm2d(
        norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats, device="meta"
    )
    for store in ("_parameters", "_buffers"):
        getattr(alone, store).update(getattr(norm, store))
    return alone.train(norm.training)


def without_norm(norm: Any) -> nn.Module:
    """What stays in the place of a norm that moved into the convolution before it."""
    rest = [norm.drop, norm.act] if _has_activation(norm) else []
    rest = [module for module in rest if type(module) is not nn.Identity]
    stays = nn.Sequential(*rest) if rest else PassThrough()
    stays.training = norm.training
    return stays


def traced_pairs(model: nn.Module) -> dict[str, str] | None:
    """Names of convolutions and of the batch norm that alone reads their output, from the graph; None where none is had."""
    norms = {module for module in model.modules() if is_pairable_norm(module)}
    try:
        graph = _Tracer(norms).trace(model)
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
        norm = modules[user.target] if once else None
        if norm in norms and user.args[:1] == (node,) and _fits(modules[node.target], norm):
            pairs[node.target] = user.target
    return pairs


def watched_pairs(model: nn.Module, example_inputs: Any) -> dict[str, str]:
    """The same from one forward pass, which cannot tell whether something else reads a convolution's output as well."""
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


def _fits(conv: Any, norm: Any) -> bool:
    return (
        isinstance(conv, _CONVOLUTIONS)
        and norm.running_mean is not None
        and norm.running_mean.numel() == conv.out_channels
    )


class _Tracer(fx.Tracer):
    """Passes over convolutions and over ``norms``, which are told beforehand: while it traces no module can be run."""

    def __init__(self, norms: Collection[nn.Module]) -> None:
        super().__init__()
        self.norms = norms

    def is_leaf_module(self, module: nn.Module, module_qualified_name: str) -> bool:
        leaf = isinstance(module, (XVolution, *_CONVOLUTIONS)) or module in self.norms
        return leaf or super().is_leaf_module(module, module_qualified_name)


def _append_output(record: list[Tensor]) -> Any:
    return lambda module, args, output: record.append(output)


def _append_input(record: list[Tensor]) -> Any:
    return lambda module, args, output: record.append(args[0])
