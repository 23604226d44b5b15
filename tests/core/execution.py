"""Operators and small networks of every case, in their training form and in each layout."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tests.core.cases import CAPTURED, CASES, VARIANTS
from tests.core.networks import SmallNet, randomize
from xvolution import XVolution2d, XVolutionConfig, convert, reparameterize
from xvolution.operator import fold

TRAINING = "training"


def build(branch: str, variant: str, *place: Any, **options: Any) -> XVolution2d:
    """A fresh operator of a case; 8 -> 16 channels and a 3x3 kernel where no ``place`` is given."""
    arguments = {"padding": 1, **options} if not place else options
    return XVolution2d(*(place or (8, 16, 3)), attention=CASES[branch].variants[variant], **arguments)


def layouts(branch: str, variant: str) -> tuple[str, ...]:
    """The layouts that a case deploys in, where all its norms fold."""
    return fold(build(branch, variant).eval()).layouts


def forms(variants: list[tuple[str, str]]) -> list[tuple[str, str, str]]:
    """(branch, variant, form) for the training form and for each layout."""
    return [(branch, variant, form) for branch, variant in variants for form in (TRAINING, *layouts(branch, variant))]


FORMS = forms(VARIANTS)
CAPTURED_FORMS = forms(CAPTURED)


def operator(branch: str, variant: str, form: str, **options: Any) -> nn.Module:
    """One operator on 4 -> 8 channels in eval mode with random statistics."""
    torch.manual_seed(0)
    module = randomize(build(branch, variant, 4, 8, 3, **{"padding": 1, "zero_init": False, **options})).eval()
    return module if form == TRAINING else reparameterize(module, layout=form)


def network(branch: str, variant: str, form: str, **options: Any) -> nn.Module:
    """A small network in eval mode with random statistics; the same weights for every form of a case."""
    torch.manual_seed(0)
    config = XVolutionConfig(attention=CASES[branch].variants[variant], **{"zero_init": False, **options})
    model = randomize(convert(SmallNet(), config)).eval()
    return model if form == TRAINING else reparameterize(model, layout=form)


def images(batch: int = 3, height: int = 12, width: int = 10, channels: int = 3) -> Tensor:
    """(batch, channels, height, width), always the same."""
    return torch.randn(batch, channels, height, width, generator=torch.Generator().manual_seed(1))


def relative_error(expected: Tensor, actual: Tensor) -> float:
    """Relative to the largest magnitude that is expected."""
    return ((expected - actual).abs().max() / expected.abs().max().clamp(min=1e-30)).item()
