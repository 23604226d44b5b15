"""A detector's deployed form, part by part, and its comparison with the trained detector."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from xvolution.copying import working_copy
from xvolution.deploy.measure import AUTO, TORCH, Progress, choose_layouts
from xvolution.deploy.reparameterize import reparameterize
from xvolution.models.detect_match import match_detections
from xvolution.operator import ReparameterizationError, XVolution

# Everything of a detector with convolutions; between them lie proposals and suppression, which jump where scores are equal.
_PIECES = ("backbone", "rpn.head", "roi_heads.box_head", "roi_heads.mask_head", "head")


def deploy_detector(
    detector: nn.Module,
    images: Sequence[Tensor] | None = None,
    layout: str | Mapping[str, str] = AUTO,
    fold_norms: bool = False,
    inplace: bool = False,
    runtime: str = TORCH,
    threads: int | None = None,
    progress: Progress | None = None,
) -> nn.Module:
    """Replace every X-volution of a detector by its deployed form.

    ``reparameterize(detector, example_inputs=(images,))`` does the same and compares the lists of boxes one by one. In fp32
    rounding may swap two boxes with nearly equal scores. Here the backbone and each head are compared on the features that
    they receive, and detections are compared after matching.

    Args:
        detector: in eval mode.
        images: each (3, H, W) in [0, 1]; one of random numbers when None.
        layout: as for ``reparameterize``; a mapping is by module name in the detector, as ``layouts_of`` returns it.
        fold_norms: also fold the other batch norms into the convolutions before them.
        inplace: change ``detector`` itself instead of a copy.
        runtime, threads, progress: for timing the layouts with ``"auto"``, each distinct operator once; see
            ``xvolution.choose_layouts``.

    Raises:
        ReparameterizationError: train mode, or outputs that differ.
        ValueError: no such runtime or layout, or ``threads`` below 1.
    """
    training = next((name for name, module in detector.named_modules() if module.training), None)
    if training is not None:
        raise ReparameterizationError(f"{training or 'the detector'} is in train mode; call detector.eval() first")
    if images is None:
        images = [_random_image(detector)]
    pieces = {name: piece for name in _PIECES if (piece := _submodule(detector, name)) is not None}
    if isinstance(layout, str):
        operators = (name for name, module in detector.named_modules() if isinstance(module, XVolution))
        layout = dict.fromkeys(operators, layout)
    if AUTO in layout.values():
        choice = choose_layouts(detector, (list(images),), runtime, threads, progress)
        layout = {name: choice.layouts[name] if each == AUTO else each for name, each in layout.items()}
    seen, expected = _watch(detector, pieces, images)
    deployed = working_copy(detector, inplace, ReparameterizationError)
    for name in pieces:
        piece = deployed.get_submodule(name)
        reparameterize(piece, seen.get(name), _below(layout, name), inplace=True, fold_norms=fold_norms)
    with torch.no_grad():
        agreement = match_detections(expected, deployed(list(images)))
    if not agreement.holds():
        raise ReparameterizationError(
            f"the detections of the deployed detector differ from those of the trained one: {agreement}"
        )
    return deployed


def _random_image(detector: Any) -> Tensor:
    parameter = next(detector.parameters())
    side = int(min(detector.transform.min_size))
    generator = torch.Generator().manual_seed(0)
    return torch.rand(3, side, side, generator=generator).to(parameter)


def _submodule(detector: nn.Module, name: str) -> nn.Module | None:
    try:
        return detector.get_submodule(name)
    except AttributeError:
        return None


def _below(layout: Mapping[str, str], name: str) -> dict[str, str]:
    return {key.removeprefix(f"{name}."): value for key, value in layout.items() if key.startswith(f"{name}.")}


def _watch(
    detector: nn.Module, pieces: Mapping[str, nn.Module], images: Sequence[Tensor]
) -> tuple[dict[str, Any], Any]:
    """The first arguments of every piece, and the detections."""
    seen: dict[str, Any] = {}

    def record(name: str) -> Any:
        # A copy, because torchvision's pyramid is handed lists that it goes on to change.
        return lambda module, args: seen.setdefault(name, deepcopy(args))

    handles = [piece.register_forward_pre_hook(record(name)) for name, piece in pieces.items()]
    try:
        with torch.no_grad():
            detections = detector(list(images))
    finally:
        for handle in handles:
            handle.remove()
    empty = [name for name, args in seen.items() if isinstance(args[0], Tensor) and not args[0].shape[0]]
    # No detection, no region for the mask head: random features take their place.
    for name in empty:
        seen[name] = (torch.randn(2, *seen[name][0].shape[1:]).to(seen[name][0]),)
    return seen, detections
