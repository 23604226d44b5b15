"""Converted networks that can be saved and loaded by ``save_pretrained`` and ``from_pretrained``.

For models of transformers and diffusers, and for whatever derives from ``PyTorchModelHubMixin`` of huggingface_hub, such as those
of segmentation_models_pytorch. Such a model has a configuration, which is written beside its weights and from which it is built
anew. A converted model has its conversion there, under ``xvolution``, and its class converts what it builds.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from torch import nn

from xvolution.conversion.config import ConversionConfig
from xvolution.conversion.convert import convert
from xvolution.conversion.recipe import Recipe
from xvolution.conversion.register import operator_config
from xvolution.conversion.selection import FilterFunction
from xvolution.conversion.summary import is_converted

Given = TypeVar("Given", bound=nn.Module)

#: Where a model's configuration says how it was converted.
KEY = "xvolution"
#: Classes of converted models by the class from before.
_CLASSES: dict[type, Any] = {}


def convert_pretrained(
    model: Given,
    config: ConversionConfig | str | None = None,
    *,
    stages: Sequence[int] | None = None,
    kernel_sizes: Sequence[int] | None = None,
    names: Sequence[str] | None = None,
    at_projections: bool = True,
    filter_fn: FilterFunction | None = None,
    example_inputs: Any = None,
) -> Given:
    """Convert a model, as ``xvolution.convert`` does, so that its ``save_pretrained`` keeps the conversion.

    The class of the result is ``converted_class(type(model))``, whose ``from_pretrained`` reads what was written.

    Args:
        model: a model of transformers, diffusers or a class with ``PyTorchModelHubMixin``; not yet converted.
        config, stages, kernel_sizes, names, at_projections, filter_fn, example_inputs: as of ``xvolution.convert``; the
            configuration must have a JSON form.

    Returns:
        A converted copy.

    Raises:
        TypeError: a model of another kind.
        ValueError: as of ``xvolution.convert``; or the model is already converted.
        ConversionError: as of ``xvolution.convert``.
    """
    if is_converted(model):
        raise ValueError(f"this {type(model).__name__} is already converted; give the model before its conversion")
    cls, operator = converted_class(type(model)), operator_config(config)
    operator.to_dict()  # raises for a function before anything is converted
    converted: Any = convert(
        model,
        operator,
        stages=stages,
        kernel_sizes=kernel_sizes,
        names=names,
        at_projections=at_projections,
        filter_fn=filter_fn,
        example_inputs=example_inputs,
    )
    converted.__class__ = cls
    _KEPT[_kind_of(cls)](converted, Recipe.of(converted, operator).to_dict())
    return converted


def converted_class(cls: type[Given]) -> type[Given]:
    """The class of converted models of class ``cls``: its ``from_pretrained`` converts what it builds, then loads the weights.

    Raises:
        TypeError: the class has no configuration of a kind that is known.
    """
    if issubclass(cls, _Converted):
        return cls
    if cls not in _CLASSES:
        _CLASSES[cls] = _class_over(cls)
    return _CLASSES[cls]


def _class_over(cls: Any) -> Any:
    build = _init_of_config(cls) if _kind_of(cls) == "transformers" else _init_of_arguments(cls)
    name = f"Converted{cls.__name__}"
    return type(name, (_Converted, cls), {"__init__": build, "__module__": __name__, "plain": cls})


class _Converted:
    """Mixin of converted models."""

    #: The class of the model from before.
    plain: type

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _blank, (self.plain,), vars(self)


def _blank(plain: Any) -> Any:
    """A converted model without attributes, for copies and pickles to fill."""
    cls: Any = converted_class(plain)
    return cls.__new__(cls)


def _kind_of(cls: type) -> str:
    """The library whose configurations a class uses.

    Raises:
        TypeError: none that is supported.
    """
    parents = {f"{parent.__module__.partition('.')[0]}.{parent.__name__}" for parent in cls.__mro__}
    if "transformers.PreTrainedModel" in parents:
        return "transformers"
    if "diffusers.ConfigMixin" in parents:
        return "diffusers"
    if "huggingface_hub.ModelHubMixin" in parents:
        return "huggingface_hub"
    raise TypeError(
        f"{cls.__name__} has no stored configuration, because it is not a model of transformers or diffusers "
        f"and has no PyTorchModelHubMixin. Derive a class from both (class Mine({cls.__name__}, "
        "PyTorchModelHubMixin)) and build that, or use xvolution.convert and torch.save(model.state_dict())"
    )


def _init_of_config(cls: Any) -> Callable[..., None]:
    """A constructor for models that are built from a configuration object."""

    def build(self: Any, config: Any, *args: Any, **kwargs: Any) -> None:
        cls.__init__(self, config, *args, **kwargs)
        made = getattr(config, KEY, None)
        if made is not None:
            Recipe.from_dict(made).convert_(self)

    return build


def _init_of_arguments(cls: Any) -> Callable[..., None]:
    """A constructor for models that are built from arguments, with the conversion as one more."""

    def build(self: Any, *args: Any, **kwargs: Any) -> None:
        made = kwargs.pop(KEY, None)
        cls.__init__(self, *args, **kwargs)
        if made is not None:
            Recipe.from_dict(made).convert_(self)
            _KEPT[_kind_of(cls)](self, made)

    given = inspect.signature(cls.__init__)
    parameters = list(given.parameters.values())
    last = len(parameters) - any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
    parameters.insert(last, inspect.Parameter(KEY, inspect.Parameter.KEYWORD_ONLY, default=None))
    vars(build)["__signature__"] = given.replace(parameters=parameters)
    return build


def _keep_in_config(model: Any, made: dict[str, Any]) -> None:
    setattr(model.config, KEY, made)


def _keep_registered(model: Any, made: dict[str, Any]) -> None:
    model.register_to_config(**{KEY: made})


def _keep_in_dictionary(model: Any, made: dict[str, Any]) -> None:
    model._hub_mixin_config = {**(model._hub_mixin_config or {}), KEY: made}


#: How a conversion is noted in a model's configuration.
_KEPT: dict[str, Callable[[Any, dict[str, Any]], None]] = {
    "transformers": _keep_in_config,
    "diffusers": _keep_registered,
    "huggingface_hub": _keep_in_dictionary,
}
