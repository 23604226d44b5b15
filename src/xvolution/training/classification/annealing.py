"""Annealing the gates of a network to their means, so that each operator becomes exactly one plain convolution."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from xvolution.attention import AttentionBranch
from xvolution.copying import copied
from xvolution.numerics import GATES
from xvolution.operator import XVolution
from xvolution.training.errors import InputError

#: Part of the annealing in which the gates move; in the rest the plain convolutions train alone. With 0.8 the rest came where the
#: learning rate of a cosine is near zero, and nothing was recovered.
_MOVING = 0.5
#: Batches that a running mean remembers.
_MEMORY = 100


class Annealing(nn.Module):
    """Moves the gates of a network to their means, with the network before the annealing as teacher.

    A gate's logits q become ``(1 - s) q + s q̄``, where ``φ(q̄)`` is the running mean of ``φ(q)`` and s the share, from 0 to 1.
    Terms that depend on the image without a gate go to zero by the same share. ``settle`` then writes q̄ into the weights.

    Args:
        model: a network whose operators become convolutions when their gates are constant.

    Raises:
        InputError: it has no such operators, or also others.
    """

    begun: Tensor
    settled: Tensor

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._branches = dict(_branches(model))
        self.teacher = copied(model).requires_grad_(False)
        self.share = 0.0
        self.register_buffer("begun", torch.zeros((), dtype=torch.bool))
        self.register_buffer("settled", torch.zeros((), dtype=torch.bool))
        self.means, self.starts = _Buffers(), _Buffers()
        for name, branch in self._branches.items():
            for gate, channels in branch.gates().items():
                self.means.keep(f"{name}.{gate}", torch.zeros(channels))
                self.means.keep(f"{name}.{gate}.batches", torch.zeros(()))
            for index, term in enumerate(branch.image_terms()):
                self.starts.keep(f"{name}.{index}", term.detach().clone())
        self._hooks: list[Any] = []
        self._listens = False

    def begin(self, model: nn.Module) -> None:
        """Use the current network as teacher, record its gates, and move them by ``share`` from now on.

        An annealing that a resumed run has begun continues; settled gates do not change. A second call has no effect.
        """
        if self._listens:
            return
        self._listens = True
        if not self.begun:
            self.begun.fill_(True)
            self.teacher.load_state_dict(model.state_dict())
            for name, index, term in self._terms():
                self.starts[f"{name}.{index}"].copy_(term)
        if self.settled:
            self.settle()
        else:
            for name, branch in self._branches.items():
                for gate in branch.gates():
                    self._hooks.append(branch.get_submodule(gate).register_forward_hook(self._moved(name, gate)))

    def move_to(self, progress: float) -> None:
        """Set the share from the progress of the annealing, from 0 to 1; settle the gates when the share is 1."""
        if self.settled:
            return
        self.share = min(1.0, progress / _MOVING)
        with torch.no_grad():
            for name, index, term in self._terms():
                term.copy_(self.starts[f"{name}.{index}"] * (1 - self.share))
        if self.share == 1:
            self.settle()

    def settle(self) -> None:
        """Write the means into the weights and exclude these weights from training."""
        for hook in self._hooks:
            hook.remove()
        self._hooks, self.share = [], 1.0
        self.settled.fill_(True)
        for name, branch in self._branches.items():
            branch.settle_({gate: self._target(name, gate) for gate in branch.gates()})

    @torch.no_grad()
    def taught(self, images: Tensor) -> Tensor:
        """The logits of the network from before the annealing."""
        return self.teacher.eval()(images)

    def _terms(self) -> Iterator[tuple[str, int, nn.Parameter]]:
        for name, branch in self._branches.items():
            for index, term in enumerate(branch.image_terms()):
                yield name, index, term

    def _target(self, name: str, gate: str) -> Tensor:
        return GATES[self._branches[name].gate].inverse(self.means[f"{name}.{gate}"])

    def _moved(self, name: str, gate: str) -> Any:
        apply, key = GATES[self._branches[name].gate].apply, f"{name}.{gate}"

        def hook(module: nn.Module, args: Any, logits: Tensor) -> Tensor:
            mean, batches = self.means[key], self.means[f"{key}.batches"]
            if module.training:
                with torch.no_grad():
                    batches.add_(1)
                    of_batch = apply(logits.detach().float()).transpose(0, 1).flatten(1).mean(1)
                    mean.lerp_(of_batch.to(mean), 1 / min(float(batches), _MEMORY))
            target = self._target(name, gate).to(logits.dtype).reshape(-1, *(1,) * (logits.dim() - 2))
            return torch.lerp(logits, target.expand_as(logits), self.share)

        return hook


class _Buffers(nn.Module):
    """Tensors by names that may have dots."""

    def keep(self, name: str, tensor: Tensor) -> None:
        self.register_buffer(name.replace(".", "/"), tensor)

    def __getitem__(self, name: str) -> Tensor:
        return self.get_buffer(name.replace(".", "/"))


def _branches(model: nn.Module) -> Mapping[str, Any]:
    operators = {name: module for name, module in model.named_modules() if isinstance(module, XVolution)}
    branches = {name: operator.attention for name, operator in operators.items() if operator.attention is not None}
    if not branches:
        raise InputError("--anneal-to-conv needs attention with a gate, which the network does not have; leave it out.")
    for name, branch in branches.items():
        if not isinstance(branch, AttentionBranch) or not branch.gates():
            raise InputError(
                f"--anneal-to-conv needs attention that is a convolution once its gate is constant, and {name} has "
                f"{type(branch).__name__}; use --operator pixel_shift or channel_gate."
            )
    return branches
