"""The base of every operator: a module on batches or single images, which is one node in torch's graphs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NoReturn

from torch import Tensor, nn
from torch.fx import Proxy
from torch.fx.proxy import TraceError


class SpatialModule(nn.Module, ABC):
    """A module on (N, C, H, W), or without N, in any number of dimensions; ``compute`` processes a batch.

    Every tracer of ``torch.fx`` records it as one module, like the convolution that it replaces, so graphs and the names of their
    nodes stay those of the plain network. ``torch.jit.trace`` records its operations. ``torch.jit.script`` cannot compile it,
    because TorchScript does not support the Python that it uses.
    """

    @property
    @abstractmethod
    def dims(self) -> int:
        """Number of spatial dimensions."""

    @abstractmethod
    def compute(self, x: Tensor) -> Tensor:
        """(N, C_in, H, W) -> (N, C_out, H', W')."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, C_in, H, W) -> (N, C_out, H', W'); (C_in, H, W) -> (C_out, H', W')."""
        if isinstance(x, Proxy):
            return node_of(self, x)
        if x.dim() == self.dims + 1:
            return self.compute(x.unsqueeze(0)).squeeze(0)
        return self.compute(x)

    def __prepare_scriptable__(self) -> NoReturn:
        """Called first by ``torch.jit.script``; raises with advice."""
        raise NotImplementedError(
            f"torch.jit.script cannot compile {type(self).__name__}; use torch.jit.trace(model, images) in eval mode, whose "
            "graph takes any batch and image size, or torch.export"
        )


def node_of(module: nn.Module, x: Proxy) -> Proxy:
    """The call of ``module`` as one node of the graph that is being traced.

    Raises:
        TraceError: the module itself is being traced, so there is no module to call.
    """
    try:
        name = x.tracer.path_of_module(module)  # type: ignore[attr-defined]  # only tracers of functions have none
    except (AttributeError, NameError):
        name = ""
    if not name:
        raise TraceError(
            f"torch.fx records {type(module).__name__} as one module of a network and cannot trace it alone; "
            "trace a network that contains it, such as nn.Sequential(operator)"
        )
    return x.tracer.create_proxy("call_module", name, (x,), {})
