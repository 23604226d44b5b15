"""The check that a change of a network keeps its outputs, and undoing the change otherwise."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from math import inf
from typing import Any

import torch
from torch import Tensor, nn

from xvolution.conversion.modules import Place, call, conv_at, evaluating, places_in
from xvolution.conversion.outputs import TOLERANCE, Difference, difference, tensors_in
from xvolution.conversion.pairing import norm_alone, without_norm
from xvolution.operator import OPERATOR_OF_DIMS


class Changes:
    """Replacements of modules in a network, at every place that holds them; they can be undone."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._done: list[tuple[Place, nn.Module]] = []
        self._root = model
        self._places = places_in(model)

    def put(self, name: str, replacement: nn.Module) -> None:
        """Put ``replacement`` in the place of the module called ``name``, so that a shared module stays shared."""
        if not name:
            self.model, self._places = replacement, places_in(replacement)
            return
        old = self.model.get_submodule(name)
        places = self._places.pop(old)
        for place in places:
            self._done.append((place, old))
            place.put(replacement)
        for module, inside in places_in(replacement).items():
            self._places.setdefault(module, []).extend(inside)
        self._places.setdefault(replacement, []).extend(places)

    def move_norm(self, conv_name: str, norm_name: str | None, replacement: Any) -> nn.Module:
        """Put ``replacement(conv, norm)`` in the place of a convolution, and a pass-through in that of its norm."""
        conv = conv_at(self.model, conv_name)
        norm = None if norm_name is None else self.model.get_submodule(norm_name)
        module = replacement(conv, None if norm is None else norm_alone(norm))
        # The norm leaves its old place first: afterwards the replacement holds it, and must keep it.
        if norm is not None and norm_name is not None:
            self.put(norm_name, without_norm(norm))
        self.put(conv_name, module)
        return module

    @contextmanager
    def undone(self) -> Iterator[nn.Module]:
        """Undo the changes while the context lasts."""
        now = [(place, place.get()) for place, _ in self._done]
        for place, old in reversed(self._done):
            place.put(old)
        try:
            yield self._root
        finally:
            for place, value in now:
                place.put(value)

    def take_back(self) -> None:
        """Undo the changes."""
        self.model = self._root
        for place, old in reversed(self._done):
            place.put(old)
        self._done.clear()
        self._places = places_in(self.model)


class Proof:
    """Compares a network's outputs before and after a change.

    Batch norms that move have random statistics while the network runs: a fresh batch norm is nearly the identity and would
    hide that it moved to a wrong place.

    Args:
        inputs: inputs of the network; noise or real data, not all zeros.
    """

    def __init__(self, inputs: Any) -> None:
        self.inputs = inputs
        self.expected: Any = None
        #: What the last changed network raised, if it did, and in which of the watched modules that is in one of them.
        self.failure: Exception | None = None
        self.failed_in: str | None = None
        #: Which of the watched modules ran before, and which of these did not in the last changed network.
        self.ran: set[str] = set()
        self.idle: set[str] = set()

    def before(self, model: nn.Module, watched: Collection[str] = (), original: nn.Module | None = None) -> None:
        """Run the unchanged network, and record which of the modules called ``watched`` run.

        Modules of ``original``, of which it is a copy, count as well: a function that the original holds may call them.
        """
        with _noting_runs(model, watched) as runs, _noting_runs(original or model, watched) as elsewhere:
            self.expected = self._run(model)
        self.ran = runs.ended() | elsewhere.ended()

    def error(self, model: nn.Module) -> Difference | None:
        """The difference of the outputs from those before; None for tensors without values (on the meta device).

        Infinite if the network cannot be run any more, for example because it reads an attribute of a replaced module.
        """
        self.failure = self.failed_in = None
        with _noting_runs(model, self.ran) as runs:
            try:
                actual = self._run(model)
            except Exception as failure:  # whatever a stranger's forward raises
                self.failure, self.failed_in = failure, runs.running()
                return Difference(inf, inf)
        self.idle = self.ran - runs.ended()
        if any(tensor.is_meta for tensor in tensors_in(self.expected)):
            return None
        return difference(self.expected, actual)

    def allows(self, error: Difference) -> bool:
        """Whether rounding explains the difference."""
        dtype = next((t.dtype for t in tensors_in(self.expected) if t.is_floating_point()), torch.float32)
        return error.relative <= TOLERANCE.get(dtype, 1e-4)

    def is_random(self, model: nn.Module) -> bool:
        """Whether the unchanged network returns different outputs in each run, so that outputs cannot be compared."""
        error = self.error(model)
        return error is not None and error.absolute > 0

    def _run(self, model: nn.Module) -> Any:
        with evaluating(model):
            return call(model, self.inputs)


def pairs_hold(model: nn.Module, pairs: Mapping[str, str], proof: Proof) -> bool:
    """Whether the outputs stay when the norms of all these pairs move behind their convolutions; the network stays as it is."""
    changes = Changes(model)
    try:
        for conv, norm in pairs.items():
            changes.move_norm(conv, norm, in_sequence)
        error = proof.error(changes.model)
        return error is None or proof.allows(error)
    finally:
        changes.take_back()


def in_sequence(conv: Any, norm: nn.Module | None) -> nn.Module:
    """The convolution followed by its norm, which a replacement that keeps outputs computes."""
    if norm is None:
        return conv
    return OPERATOR_OF_DIMS[len(conv.kernel_size)].from_conv(conv, conv_norm=norm, attention=None)


class _Runs:
    """The names of the modules that were called, and of those whose call ended."""

    def __init__(self, modules: Mapping[str, nn.Module]) -> None:
        self._modules = modules
        self._begun: list[nn.Module] = []
        self._ended: set[nn.Module] = set()

    def begin(self, module: nn.Module, *_: Any) -> None:
        """A forward pre-hook."""
        self._begun.append(module)

    def end(self, module: nn.Module, *_: Any) -> None:
        """A forward hook."""
        self._ended.add(module)
        self._begun.remove(module)

    def ended(self) -> set[str]:
        """The names of those that ran."""
        # An operator shares its hooks with the convolution that it replaced, which may run in its place.
        return {name for name, module in self._modules.items() if module in self._ended}

    def running(self) -> str | None:
        """The name of the one whose call did not end."""
        return next((name for name, module in self._modules.items() if module in self._begun), None)


@contextmanager
def _noting_runs(model: nn.Module, names: Iterable[str]) -> Iterator[_Runs]:
    """Records the calls of the modules called ``names`` while the context lasts."""
    modules = {name: model.get_submodule(name) for name in names}
    runs = _Runs(modules)
    handles = [module.register_forward_pre_hook(runs.begin) for module in modules.values()]
    handles += [module.register_forward_hook(runs.end) for module in modules.values()]
    try:
        yield runs
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def random_statistics(norms: Iterable[Any]) -> Iterator[None]:
    """Batch norms with random statistics, scales and shifts while the context lasts."""
    generator = torch.Generator().manual_seed(0)
    kept: list[tuple[Tensor, Tensor]] = []
    with torch.no_grad():
        try:
            for norm in norms:
                for tensor, low, high in (
                    (norm.running_mean, -0.3, 0.3),
                    (norm.running_var, 0.7, 1.5),
                    (norm.weight, 0.7, 1.3),
                    (norm.bias, -0.3, 0.3),
                ):
                    if tensor is not None:
                        kept.append((tensor, tensor.clone()))
                        tensor.copy_(low + (high - low) * torch.rand(tensor.shape, generator=generator).to(tensor))
            yield
        finally:
            for tensor, value in kept:
                tensor.copy_(value)
