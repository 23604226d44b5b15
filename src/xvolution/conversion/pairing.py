"""Which norm follows which convolution, read from the data flow.

Every module of torch's convolution classes is paired; another module checks whether it computes a plain convolution.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from xvolution.conversion.modules import call, evaluating
from xvolution.conversion.outputs import tensors_in
from xvolution.convolutions import CONVOLUTIONS
from xvolution.copying import addition_to, copied
from xvolution.folding import BATCH_NORMS, is_frozen_batch_norm
from xvolution.operator import XVolution
from xvolution.standin import PassThrough

_CONVOLUTIONS = tuple(CONVOLUTIONS.values())


def is_pairable_norm(module: nn.Module) -> bool:
    """Batch norms that act per channel, frozen ones and timm's fused norm-activation included.

    A fused one is taken apart; it stays in its place if it has hooks.
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
    """The module that replaces a norm that moved into the convolution before it."""
    rest = [norm.drop, norm.act] if _has_activation(norm) else []
    rest = [module for module in rest if type(module) is not nn.Identity]
    stays = nn.Sequential(*rest) if rest else PassThrough(norm)
    stays.training = norm.training
    return stays


def traced_pairs(model: nn.Module) -> dict[str, str] | None:
    """Names of convolutions and of the batch norm that is the only reader of their output, from the graph; None without a graph.

    A copy is traced, because a network that stores intermediate results would keep the tracer's symbols.
    """
    try:
        model = copied(model, share_parameters=True)
        norms = {module for module in model.modules() if is_pairable_norm(module)}
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
    """The same from the reads of one forward pass; values are not used, so every device gives the same result."""
    modules = dict(model.named_modules())
    reads = _Reads()
    handles = []
    for name, module in modules.items():
        if isinstance(module, _CONVOLUTIONS):
            handles.append(module.register_forward_hook(reads.produced_by(name)))
        elif is_pairable_norm(module):
            handles.append(module.register_forward_pre_hook(reads.begins(name)))
            handles.append(module.register_forward_hook(reads.ends, always_call=True))
    try:
        with evaluating(model), reads:
            reads.read_elsewhere(tensors_in(call(model, example_inputs)))
    finally:
        for handle in handles:
            handle.remove()
    pairs = reads.pairs()
    return {conv: norm for conv, norm in pairs.items() if _fits(modules[conv], modules[norm])}


class _Reads(TorchDispatchMode):
    """Records which operations read a convolution's output, except those of the norm that is called with it."""

    def __init__(self) -> None:
        super().__init__()
        self._outputs: dict[str, list[Tensor]] = {}
        self._inputs: dict[str, list[Tensor]] = {}
        #: By storage, so that views count as well; the outputs are kept, so that no other tensor comes to lie there.
        self._owner: dict[int, str] = {}
        self._read_elsewhere: set[str] = set()
        self._running: list[Tensor] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.read_elsewhere(item for item in tree_leaves((args, kwargs)) if isinstance(item, Tensor))
        return func(*args, **(kwargs or {}))

    def read_elsewhere(self, tensors: Iterable[Tensor]) -> None:
        """Note that these are read, unless it is by the norm that is running on them."""
        running = _storage_of(self._running[-1]) if self._running else None
        for tensor in tensors:
            storage = _storage_of(tensor)
            if storage in self._owner and storage != running:
                self._read_elsewhere.add(self._owner[storage])

    def produced_by(self, name: str) -> Callable[[nn.Module, Any, Any], None]:
        """A forward hook of the convolution called ``name``."""

        def hook(_: nn.Module, __: Any, output: Any) -> None:
            if isinstance(output, Tensor):
                self._outputs.setdefault(name, []).append(output)
                self._owner[_storage_of(output)] = name

        return hook

    def begins(self, name: str) -> Callable[[nn.Module, Any], None]:
        """A forward pre-hook of the norm called ``name``."""

        def hook(_: nn.Module, args: Any) -> None:
            x = args[0] if args and isinstance(args[0], Tensor) else torch.empty(0)
            self._inputs.setdefault(name, []).append(x)
            self._running.append(x)

        return hook

    def ends(self, *_: Any) -> None:
        """A forward hook of every norm."""
        self._running.pop()

    def pairs(self) -> dict[str, str]:
        """Convolutions and norms that ran once, the norm on the convolution's output, which nothing else read."""
        readers = {id(inputs[0]): name for name, inputs in self._inputs.items() if len(inputs) == 1}
        several = {id(x) for inputs in self._inputs.values() if len(inputs) > 1 for x in inputs}
        seen = Counter(id(inputs[0]) for inputs in self._inputs.values() if len(inputs) == 1)
        return {
            name: readers[id(outputs[0])]
            for name, outputs in self._outputs.items()
            if len(outputs) == 1
            and seen[id(outputs[0])] == 1
            and id(outputs[0]) not in several
            and name not in self._read_elsewhere
        }


def _storage_of(tensor: Tensor) -> int:
    try:
        return tensor.untyped_storage()._cdata
    except (NotImplementedError, RuntimeError):  # a sparse one, which no convolution returns
        return 0


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
