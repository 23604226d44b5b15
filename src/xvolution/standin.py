"""Modules in the place of a convolution or a norm, and what they say to code that reads a weight which they do not have."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.fx import Proxy

from xvolution.capture import node_of

#: What networks read of their norms, to merge them or to wrap them.
_OF_NORMS = frozenset({"weight", "bias", "running_mean", "running_var", "eps"})
#: Functions that take dtype, device or size of a tensor among their arguments, and none of its values.
_OF_NO_VALUES = {
    Tensor.to: lambda w: torch.empty((), dtype=w.dtype, device=w.device),
    Tensor.type_as: lambda w: torch.empty((), dtype=w.dtype, device=w.device),
}


class ConversionError(RuntimeError):
    """A network cannot be converted, or uses a replaced convolution in a way that its operator does not follow."""


@dataclass(frozen=True)
class ReplacedTensor:
    """What is left of the weight or the bias of a replaced convolution: dtype, device and size; no values.

    Attributes:
        name: in the network.
        dtype, device, shape, requires_grad: of the tensor.
    """

    name: str
    dtype: torch.dtype
    device: torch.device
    shape: torch.Size
    requires_grad: bool

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def is_cuda(self) -> bool:
        return self.device.type == "cuda"

    @property
    def is_meta(self) -> bool:
        return self.device.type == "meta"

    def dim(self) -> int:
        return len(self.shape)

    def size(self, dim: int | None = None) -> Any:
        return self.shape if dim is None else self.shape[dim]

    def numel(self) -> int:
        return self.shape.numel()

    def is_floating_point(self) -> bool:
        return self.dtype.is_floating_point

    def __len__(self) -> int:
        return self.shape[0]

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = next(item for item in (*args, *(kwargs or {}).values()) if isinstance(item, cls))
        like = _OF_NO_VALUES.get(func)
        if like is None or isinstance(args[0], cls):
            given._refuse()
        return func(*(like(item) if isinstance(item, cls) else item for item in args), **(kwargs or {}))

    def __getattr__(self, name: str) -> NoReturn:
        if not name.startswith("__") and hasattr(Tensor, name):
            self._refuse()
        raise AttributeError(f"'{type(self).__name__}' object has no attribute '{name}'")

    def _refuse(self, *_: Any, **__: Any) -> NoReturn:
        raise ConversionError(
            f"the network computes with {self.name}, which no longer says what its layer computes: an X-volution is in the place "
            "of that convolution. Leave it out by names or filter_fn; if the network merges its layers itself (fuse, "
            "timm.utils.reparameterize_model), do that before convert"
        )

    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __rtruediv__ = __pow__ = _refuse
    __matmul__ = __rmatmul__ = __neg__ = __abs__ = __getitem__ = __iter__ = __bool__ = __float__ = __array__ = _refuse


class InPlaceOfConvolution(nn.Module):
    """Mixin: in the place of a convolution, whose weight and bias code may ask for their dtype, device and size."""

    #: The name in the network, where ``convert`` put it there.
    place: str = ""

    @property
    def weight(self) -> Any:
        """Dtype, device and size of the convolution's weight; computing with it raises ConversionError."""
        return self._replaced("weight", self._weight_like())

    @property
    def bias(self) -> Any:
        """The same of its bias, or None where it had none."""
        like = self._bias_like()
        return None if like is None else self._replaced("bias", like)

    def _weight_like(self) -> Tensor:
        raise NotImplementedError

    def _bias_like(self) -> Tensor | None:
        raise NotImplementedError

    def _replaced(self, name: str, like: Tensor) -> ReplacedTensor:
        layer = self.place or f"a {type(self).__name__}"
        return ReplacedTensor(f"{layer}.{name}", like.dtype, like.device, like.shape, like.requires_grad)


class PassThrough(nn.Identity):
    """In the place of a norm that moved into the convolution before it; as that one, one node of a graph of ``torch.fx``."""

    def forward(self, x: Tensor) -> Tensor:
        """``x``."""
        return node_of(self, x) if isinstance(x, Proxy) else x

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError as error:
            if name not in _OF_NORMS:
                raise
            raise AttributeError(
                f"'{type(self).__name__}' object has no attribute '{name}', since it stands in the place of a norm that moved "
                "into the convolution before it. If the network merges its layers itself (fuse, "
                "timm.utils.reparameterize_model), do that before convert; else leave this convolution out by names or filter_fn"
            ) from error
