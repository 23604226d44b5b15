"""Modules that replace a convolution or a norm, and their behaviour when code reads a weight that they do not have."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.fx import Proxy
from torch.utils._pytree import tree_leaves, tree_map_only

from xvolution.capture import node_of

#: Functions that take dtype, device or size of a tensor among their arguments, and none of its values.
_OF_NO_VALUES = {
    Tensor.to: lambda w: torch.empty((), dtype=w.dtype, device=w.device),
    Tensor.type_as: lambda w: torch.empty((), dtype=w.dtype, device=w.device),
}
#: Values in the place of a weight's repeat after this many, none of them zero or whole, all of them exact in bf16 and TF32.
_PERIOD = 113


class ConversionError(RuntimeError):
    """A network cannot be converted, or uses a replaced convolution in a way that its operator does not support."""


@dataclass(eq=False)
class ReplacedTensor:
    """The weight or the bias of a replaced convolution without values: only dtype, device and size.

    An operation that keeps all values returns the same object: a new shape, a product with ones, a sum with zeros. Code that
    folds a norm with identity statistics into a convolution uses only these. All other operations are refused.

    Attributes:
        name: name of the tensor in the network.
        dtype, device, shape, requires_grad: properties of the tensor.
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

    @property
    def data(self) -> ReplacedTensor:
        return self

    @data.setter
    def data(self, value: Any) -> None:
        self.require_same(value)

    def dim(self) -> int:
        return len(self.shape)

    def size(self, dim: int | None = None) -> Any:
        return self.shape if dim is None else self.shape[dim]

    def numel(self) -> int:
        return self.shape.numel()

    def is_floating_point(self) -> bool:
        return self.dtype.is_floating_point

    def requires_grad_(self, requires_grad: bool = True) -> ReplacedTensor:
        return replace(self, requires_grad=requires_grad)

    def __len__(self) -> int:
        return self.shape[0]

    def require_same(self, value: Any) -> None:
        """Raise ConversionError unless ``value`` is this tensor, in this shape, dtype and on this device."""
        said = ("name", "dtype", "device", "shape")
        if not isinstance(value, ReplacedTensor) or any(getattr(self, one) != getattr(value, one) for one in said):
            self._refuse()

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = next(item for item in tree_leaves((args, kwargs)) if isinstance(item, cls))
        like = _OF_NO_VALUES.get(func)
        if like is None or isinstance(args[0], cls):
            return given._kept_by(func, args, kwargs or {})
        return func(*(like(item) if isinstance(item, cls) else item for item in args), **(kwargs or {}))

    def __getattr__(self, name: str) -> Callable[..., ReplacedTensor]:
        if name.startswith("__") or not hasattr(Tensor, name):
            raise AttributeError(f"'{type(self).__name__}' object has no attribute '{name}'")
        if not callable(getattr(Tensor, name)):
            self._refuse()
        return partial(self._method, name)

    def _method(self, name: str, *args: Any, **kwargs: Any) -> ReplacedTensor:
        return self._kept_by(getattr(Tensor, name), (self, *args), kwargs)

    @torch.inference_mode(False)  # whose tensors do not say whether they were written to
    @torch.no_grad()
    def _kept_by(self, func: Any, args: Any, kwargs: Any) -> ReplacedTensor:
        """This tensor, with the shape of the result of ``func``, if ``func`` keeps the values of any such tensor.

        ``func`` runs on copies. Writing this tensor into another one is refused, because it has no values to write.
        """
        if self.is_meta:
            self._refuse()
        args, kwargs = tree_map_only(Tensor, lambda tensor: tensor.detach().clone(), (args, kwargs))
        others = [item for item in tree_leaves((args, kwargs)) if isinstance(item, Tensor)]
        versions = [tensor._version for tensor in others]
        try:
            args, kwargs = tree_map_only(ReplacedTensor, ReplacedTensor._values, (args, kwargs))
            result = func(*args, **kwargs)
            values = self._values().flatten()
            kept = isinstance(result, Tensor) and torch.equal(result.flatten().to(values), values)
        except Exception:  # whatever a stranger's function raises
            kept = False
        if not kept or versions != [tensor._version for tensor in others]:
            self._refuse()
        return replace(self, dtype=result.dtype, device=result.device, shape=result.shape)

    def _values(self) -> Tensor:
        """Placeholder values, which change under every function that does not keep values."""
        numbers = torch.arange(self.numel(), device=self.device) % _PERIOD - _PERIOD / 2
        return numbers.to(self.dtype).reshape(self.shape)

    def _refuse(self, *_: Any, **__: Any) -> NoReturn:
        raise ConversionError(
            f"the network reads {self.name}, but an X-volution has replaced that convolution, so this weight "
            "does not describe the layer any more. Leave the convolution out by names or filter_fn; if the "
            "network merges its layers itself (fuse, timm.utils.reparameterize_model), do that before "
            "convert, or call reparameterize(model, fold_norms=True) instead"
        )

    def _with(self, operation: Callable[[Any, Any], Any], other: Any) -> ReplacedTensor:
        return self._kept_by(operation, (self, other), {})

    def __add__(self, other: Any) -> ReplacedTensor:
        return self._with(torch.add, other)

    def __sub__(self, other: Any) -> ReplacedTensor:
        return self._with(torch.sub, other)

    def __mul__(self, other: Any) -> ReplacedTensor:
        return self._with(torch.mul, other)

    def __truediv__(self, other: Any) -> ReplacedTensor:
        return self._with(torch.div, other)

    __radd__, __rmul__ = __add__, __mul__
    __rsub__ = __rtruediv__ = __pow__ = __matmul__ = __rmatmul__ = __neg__ = __abs__ = _refuse
    __getitem__ = __iter__ = __bool__ = __float__ = __array__ = _refuse


class InPlaceOfConvolution(nn.Module):
    """Mixin of replacements of a convolution: code may read dtype, device and size of its weight and bias."""

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

    def __setattr__(self, name: str, value: Any) -> None:
        if name in ("weight", "bias"):
            self._require_replaced(name, value)
        else:
            super().__setattr__(name, value)

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """As in ``nn.Module``; a weight or a bias must be the existing one."""
        if name in ("weight", "bias"):
            self._require_replaced(name, param)
        else:
            super().register_parameter(name, param)

    def _require_replaced(self, name: str, value: Any) -> None:
        """Raise ConversionError unless a weight or a bias is replaced by itself; a bias of zeros counts as none."""
        if name == "bias" and self.bias is None:
            zeros = isinstance(value, Tensor) and not value.is_meta and not value.any()
            if value is not None and not zeros:
                self._replaced(name, self._weight_like()).require_same(value)
            return
        getattr(self, name).require_same(value)


class FixedTensor(Tensor):
    """A tensor that raises an error on writing, because writing would have no effect."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        args, kwargs = args or (), kwargs or {}
        name = getattr(func, "__name__", "")
        writes = (name.endswith("_") and not name.endswith("__")) or name in ("__set__", "__setitem__")
        if writes and isinstance(next(iter((*args, *kwargs.values()))), cls):
            raise ConversionError(
                "this norm has moved into the operator before it, so writing to this weight would have no "
                "effect; write to the operator's conv_norm, or write before convert"
            )
        args, kwargs = tree_map_only(cls, lambda tensor: tensor.as_subclass(Tensor), (args, kwargs))
        result = func(*args, **kwargs)
        return result.as_subclass(cls) if name == "__get__" and isinstance(result, Tensor) else result


class PassThrough(nn.Identity):
    """Replaces a norm that moved into the convolution before it; like the norm, it is one node in a graph of ``torch.fx``.

    It has the attributes of a batch norm without effect: scale and variance are 1, shift, mean and ``eps`` are 0. Code that
    folds the norm into the module before it does not change that module.

    Args:
        norm: the replaced norm, which gives channels, dtype and device.
    """

    eps = 0.0
    unit: Tensor

    def __init__(self, norm: Any) -> None:
        super().__init__()
        self.num_features = norm.running_mean.numel()
        self.register_buffer("unit", torch.ones_like(norm.running_mean[0]), persistent=False)

    @property
    def weight(self) -> Tensor:
        """(C,) ones."""
        return self.unit.new_ones(self.num_features).as_subclass(FixedTensor)

    @property
    def bias(self) -> Tensor:
        """(C,) zeros."""
        return self.unit.new_zeros(self.num_features).as_subclass(FixedTensor)

    @property
    def running_mean(self) -> Tensor:
        """(C,) zeros."""
        return self.bias

    @property
    def running_var(self) -> Tensor:
        """(C,) ones."""
        return self.weight

    def forward(self, x: Tensor) -> Tensor:
        """``x``."""
        return node_of(self, x) if isinstance(x, Proxy) else x
