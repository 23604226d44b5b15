"""Recording the inputs of modules inside a network."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor, nn


class Recorder:
    """Records the first input of named modules while it is entered.

    Attributes:
        inputs: by module name; not copied.
    """

    def __init__(self, modules: Mapping[str, nn.Module]) -> None:
        self.modules = modules
        self.inputs: dict[str, Tensor] = {}

    def _hook(self, name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def record(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            self.inputs.setdefault(name, args[0].detach())

        return record

    def __enter__(self) -> Recorder:
        self._handles = [module.register_forward_hook(self._hook(name)) for name, module in self.modules.items()]
        return self

    def __exit__(self, *exception: object) -> None:
        for handle in self._handles:
            handle.remove()
