"""Modules in the place of a convolution or a norm, and what they say to code that reads a weight which they do not have."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.fx import Proxy

from xvolution.capture import node_of

#: What networks read of their convolutions and norms, to merge them or to wrap them.
_OF_WEIGHTS = frozenset({"weight", "bias", "running_mean", "running_var", "eps"})


class StandIn(nn.Module):
    """Mixin: no single weight says what the module computes, so it has none, and says so.

    Not for deployed operators: torch.compile reads sizes kept on a module with a ``__getattr__`` as sizes of the image.
    """

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError as error:
            if name not in _OF_WEIGHTS:
                raise
            raise AttributeError(
                f"'{type(self).__name__}' object has no attribute '{name}', since it stands in the place of a convolution or of "
                "its norm and no such tensor says what it computes. If the network merges its layers itself (fuse, "
                "timm.utils.reparameterize_model), do that before convert; else leave this convolution out by names or filter_fn"
            ) from error


class PassThrough(StandIn, nn.Identity):
    """In the place of a norm that moved into the convolution before it; as that one, one node of a graph of ``torch.fx``."""

    def forward(self, x: Tensor) -> Tensor:
        """``x``."""
        return node_of(self, x) if isinstance(x, Proxy) else x
