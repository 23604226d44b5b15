"""Operators of every branch in their training and deployed forms, for the tests of execution modes."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from tests.core.networks import SmallNet, randomize
from xvolution import XVolution2d, XVolutionConfig, convert, reparameterize

BRANCHES: dict[str, dict[str, Any]] = {
    "pssa": {},
    "dot": {"similarity": "dot"},
    "linear": {"attention": "linear"},
    "global": {"attention": "global"},
    "image": {"attention": "image"},
    "separable": {"attention": "image", "separable": True},
    "shared": {"attention": "shared"},
}
FORMS = [
    (branch, form)
    for branch in BRANCHES
    for form in ("training", "single", "split")
    if form != "single" or branch in ("pssa", "linear", "image", "separable", "shared")
]


def network(branch: str, form: str, **options: Any) -> nn.Module:
    """A small network in eval mode with random statistics; the same weights for every form of a branch."""
    torch.manual_seed(0)
    model = randomize(convert(SmallNet(), XVolutionConfig(zero_init=False, **BRANCHES[branch], **options))).eval()
    return model if form == "training" else reparameterize(model, layout=form)


def operator(branch: str, form: str, **options: Any) -> nn.Module:
    """One operator on 4 -> 8 channels in eval mode."""
    torch.manual_seed(0)
    module = randomize(XVolution2d(4, 8, 3, padding=1, zero_init=False, **BRANCHES[branch], **options)).eval()
    return module if form == "training" else reparameterize(module, layout=form)


def images(batch: int = 3, height: int = 12, width: int = 10, channels: int = 3) -> torch.Tensor:
    """(batch, channels, height, width), always the same."""
    return torch.randn(batch, channels, height, width, generator=torch.Generator().manual_seed(1))
