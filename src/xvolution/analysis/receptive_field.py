"""The effective receptive field: how strongly each pixel of an image influences one pixel of a feature map."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def receptive_field(model: nn.Module, images: Tensor, name: str) -> Tensor:
    """The effective receptive field of the central pixel of one module's output.

    Args:
        model: in evaluation mode.
        images: (N, C, H, W), what the model takes.
        name: path of a module in ``model.named_modules()`` that returns (N, C', H', W').

    Returns:
        (H, W): size of the gradient of that pixel, summed over its channels, for each pixel of the image; sum over the image's
        channels and mean over images, scaled to a sum of 1 (all 0 if no pixel influences it).

    Raises:
        ValueError: the model has no module of that name, did not run it, or is in training mode.

    Source: Luo, Li, Urtasun, Zemel, Understanding the effective receptive field in deep convolutional neural networks, 2016.
    """
    modules = dict(model.named_modules())
    if name not in modules:
        raise ValueError(f"the model has no module {name!r}; give a name of model.named_modules()")
    if model.training:
        raise ValueError(
            "the model is in training mode, where the images of a batch influence each other; call model.eval() first"
        )
    outputs: list[Tensor] = []
    handle = modules[name].register_forward_hook(lambda _, __, y: outputs.append(y))
    images = images.detach().clone().requires_grad_()
    try:
        with torch.enable_grad():
            model(images)
    finally:
        handle.remove()
    if not outputs:
        raise ValueError(f"the model did not run {name!r}; give a module that the model's forward calls")
    output = outputs[0]
    centre = output[..., output.shape[-2] // 2, output.shape[-1] // 2].sum()
    (gradient,) = torch.autograd.grad(centre, images)
    field = gradient.abs().sum(1).mean(0)
    return field / field.sum().clamp(min=torch.finfo(field.dtype).tiny)


def half_radius(field: Tensor) -> float:
    """Distance in pixels from the centre of a receptive field (H, W) within which half of its sum lies."""
    rows, columns = (torch.arange(n, device=field.device) - (n // 2) for n in field.shape)
    distance = (rows[:, None].square() + columns.square()).float().sqrt().flatten()
    order = distance.argsort()
    reached = field.flatten()[order].cumsum(0) >= field.sum() / 2
    return float(distance[order][int(reached.int().argmax())])
