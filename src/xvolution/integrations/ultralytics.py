"""Converted YOLO networks that Ultralytics can train, validate and export.

Ultralytics is licensed under the AGPL-3.0. Importing this module imports it.

Ultralytics builds a network anew wherever it trains: from its ``yaml`` dictionary, which its checkpoints carry along. A converted
network has its conversion in that dictionary, under ``xvolution``, and constructors that find one there convert.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import replace
from functools import wraps
from typing import Any, TypeVar

from torch import nn
from ultralytics.engine.model import Model
from ultralytics.nn import tasks
from ultralytics.nn.modules.block import RepVGGDW
from ultralytics.nn.modules.conv import Conv2, RepConv

from xvolution.conversion.config import ConversionConfig, Placement
from xvolution.conversion.convert import convert
from xvolution.conversion.modules import call, evaluating, infer_inputs
from xvolution.conversion.projections import at_projections_of
from xvolution.conversion.recipe import Recipe
from xvolution.conversion.register import operator_config
from xvolution.conversion.selection import reasons
from xvolution.conversion.summary import forget, left_alone, remember
from xvolution.deploy.reparameterize import reparameterize
from xvolution.operator import XVolution

Given = TypeVar("Given", bound=nn.Module)

#: Where a network's ``yaml`` says how it was converted.
KEY = "xvolution"
#: Blocks whose ``fuse`` adds up kernels of several convolutions; an operator has no kernel that could be added.
_ADD_UP_KERNELS = (RepConv, RepVGGDW, Conv2)


def convert_yolo(
    model: Given,
    config: ConversionConfig | str | None = None,
    *,
    kernel_sizes: Sequence[int] | None = None,
    names: Sequence[str] | None = None,
    at_projections: bool = True,
    example_inputs: Any = None,
) -> Given:
    """Replace convolutions of a YOLO, as ``xvolution.convert`` does, so that Ultralytics keeps the operators.

    ``train``, also resumed and on several GPUs, trains the operators from the weights that are there. ``val``, ``predict`` and
    ``export`` fuse a copy of the network first, which deploys the operators. Files of weights load with ``YOLO(path)`` wherever
    xvolution is installed. Convolutions in blocks that add up several kernels when they fuse (``RepConv``, ``RepVGGDW``,
    ``Conv2``) stay, and those that do not run on an image (YOLOE's for visual prompts).

    Args:
        model: a ``YOLO`` (``RTDETR``, ``YOLOWorld``, ...) or the network in its ``model``.
        config, kernel_sizes, names, at_projections: as of ``xvolution.convert``; the configuration must have a JSON form.
        example_inputs: images (N, C, H, W) to check the outputs with; noise when None.

    Returns:
        A converted copy of a network; for a ``YOLO`` the object itself, with a converted copy as its network.

    Raises:
        TypeError: neither a ``YOLO`` with a network nor a network of Ultralytics.
        ValueError: as of ``xvolution.convert``; or a network that is converted, or fused so that its norms are gone.
        ConversionError: as of ``xvolution.convert``.
    """
    if isinstance(model, Model):
        options: dict[str, Any] = {"kernel_sizes": kernel_sizes, "names": names, "at_projections": at_projections}
        _exchange(model, convert_yolo(model.model, config, **options, example_inputs=example_inputs))
        return model
    if not isinstance(model, tasks.BaseModel):
        raise TypeError(
            f"convert_yolo takes a YOLO or the network in its .model, not a {type(model).__name__}; an "
            "exported file holds no network, and other networks are converted by xvolution.convert"
        )
    if model.is_fused():
        raise ValueError(
            "the network is fused and has no norms any more; convert it before fuse, or load the checkpoint "
            "of its training"
        )
    if KEY in model.yaml:
        raise ValueError("the network is already converted; give the network before its conversion")
    operator = operator_config(config)
    operator.to_dict()  # raises for a function before anything is converted
    found = _reasons(model, Placement.of(None, kernel_sizes, names, at_projections), operator, example_inputs)
    chosen = [name for name, reason in found.items() if reason is None]
    network: Any = convert(model, operator, names=chosen, at_projections=False, example_inputs=example_inputs)
    remember(network, replace(forget(network), left=left_alone(model, found)))
    _become_converted(network, Recipe.of(network, operator))
    return network


def _reasons(
    model: nn.Module, where: Placement, config: ConversionConfig, example_inputs: Any
) -> dict[str, str | None]:
    """The reason why each convolution is not replaced, by name; None for those to replace.

    Raises:
        ValueError: none of the selected convolutions can be replaced.
    """
    inputs = infer_inputs(model) if example_inputs is None else example_inputs
    found = reasons(model, where)
    selected = [name for name, reason in found.items() if reason is None]
    if where.kernel_sizes is None and where.names is None and where.at_projections and config.takes_projections:
        selected, behind = at_projections_of(model, selected, lambda: inputs)
        found |= {name: f"its projection {projection} is replaced instead" for name, projection in behind.items()}
    adding = tuple(f"{name}." for name, module in model.named_modules() if isinstance(module, _ADD_UP_KERNELS))
    ran = _run(model, selected, inputs)
    for name in selected:
        idle = None if name in ran else "it does not run on an image"
        found[name] = "its block adds up kernels when it fuses" if name.startswith(adding) else idle
    if selected and None not in found.values():
        said = ", ".join(f"{name} ({found[name]})" for name in selected[:5])
        raise ValueError(f"none of the selected convolutions can be replaced: {said}; select others")
    return found


def _run(model: nn.Module, names: Sequence[str], inputs: Any) -> set[str]:
    """Which of the modules called ``names`` run; all of them where there are no inputs."""
    if inputs is None:
        return set(names)
    ran: set[str] = set()
    handles = [model.get_submodule(name).register_forward_hook(lambda *_, name=name: ran.add(name)) for name in names]
    try:
        with evaluating(model):
            call(model, inputs)
    finally:
        for handle in handles:
            handle.remove()
    return ran


def _exchange(yolo: Any, network: nn.Module) -> None:
    """Put a converted network into a ``YOLO``, whose training is to start from its weights."""
    yolo.model, yolo.predictor = network, None
    if not yolo.ckpt:
        yolo.ckpt = {"epoch": -1}  # of a YOLO that has no checkpoint, training would build a network with new weights
    if yolo.overrides.get("pretrained"):
        yolo.overrides["pretrained"] = True  # the weights of a file are in the network already, and were converted


def _become_converted(network: Any, recipe: Recipe) -> None:
    """Store the conversion for constructors, and make ``fuse`` deploy the network."""
    network.yaml[KEY] = recipe.to_dict()
    network.__class__ = _CONVERTED[type(network).__name__]


def _convert_(network: Any, recipe: Recipe) -> None:
    recipe.convert_(network)
    _become_converted(network, recipe)


class ConvertedNetwork:
    """Mixin of converted networks of Ultralytics: ``fuse`` deploys them, and ``load`` also reads unconverted weights."""

    yaml: dict[str, Any]

    def fuse(self: Any, verbose: bool = True, imgsz: Any = 640) -> Any:
        """Deploy the operators, and fold the other norms as Ultralytics does.

        Raises:
            ReparameterizationError: as of ``xvolution.reparameterize``.
        """
        if any(isinstance(module, XVolution) for module in self.modules()):
            with evaluating(self):
                reparameterize(self, inplace=True)
        plain: Any = super()
        return plain.fuse(verbose=verbose, imgsz=imgsz)

    def load(self: Any, weights: Any, verbose: bool = True) -> None:
        """Load weights of a network with the same conversion, or of an unconverted one."""
        given = (weights.get("ema") or weights["model"]) if isinstance(weights, dict) else weights
        if isinstance(given, tasks.BaseModel) and KEY not in given.yaml:
            given = deepcopy(given).float()
            _convert_(given, Recipe.from_dict(self.yaml[KEY]))
        plain: Any = super()
        plain.load(given, verbose=verbose)


def _converted_classes() -> dict[str, type]:
    """For each class of networks the converted one, under its name in this module, where checkpoints look for it."""
    found = {}
    for name, base in list(vars(tasks).items()):
        if isinstance(base, type) and issubclass(base, tasks.BaseModel) and base is not tasks.BaseModel:
            found[name] = type(f"Converted{name}", (ConvertedNetwork, base), {"__module__": __name__})
    globals().update({cls.__name__: cls for cls in found.values()})
    return found


def _converting(init: Callable[..., None]) -> Callable[..., None]:
    """A constructor that converts the network if its dictionary has a conversion."""

    @wraps(init)
    def build(self: Any, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **kwargs)
        if KEY in self.yaml:
            _convert_(self, Recipe.from_dict(self.yaml[KEY]))

    return build


_CONVERTED = _converted_classes()
for _base in (tasks.DetectionModel, tasks.ClassificationModel, tasks.SemanticSegmentationModel):
    _base.__init__ = _converting(_base.__init__)
