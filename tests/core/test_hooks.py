"""Hooks that read gradients, such as those of Grad-CAM, on operators, on their deployed forms and on all their parts."""

import pytest
import torch
from torch import nn

from tests.core.execution import FORMS, TRAINING, operator, relative_error
from xvolution.attention.fused import step

GEOMETRIES = {
    "plain": {},
    "groups": {"groups": 2},
    "stride": {"stride": 2},
    "group norm": {"norm_layer": lambda channels: nn.GroupNorm(2, channels)},
    "no norm": {"norm_layer": None},
}


#: A group norm depends on the whole map, so behind it two convolutions stay two. In layout "parts" query and key are two
#: convolutions where they would be one otherwise, which takes stride 1 and no groups.
CASES = [
    (*form, geometry)
    for form in FORMS
    for geometry in GEOMETRIES
    if not (geometry == "group norm" and form[2] == "single" and form[0] != "pixel_shift")
    and not (form[2] == "parts" and geometry in ("groups", "stride"))
]


def hooked(module, parts):
    """The module with hooks on ``parts``; what their backward hooks saw, and the outputs whose gradients are kept."""
    seen, kept = set(), []

    def keep_gradient(part, args, output):
        if output.requires_grad:
            output.retain_grad()
            kept.append(output)

    for name, part in parts:
        part.register_full_backward_hook(lambda part, before, after, name=name: seen.add(name))
        part.register_forward_hook(keep_gradient)
    return seen, kept


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(("branch", "variant", "form", "geometry"), CASES)
@pytest.mark.filterwarnings(
    "ignore:Full backward hook is firing when gradients are computed with respect to module outputs"
)
def test_outputs_are_no_views_and_hooks_see_gradients(branch, variant, form, geometry, channels_last, monkeypatch):
    monkeypatch.setattr(step, "SMALLEST", 1)
    for training in (False, True) if form == TRAINING else (False,):
        module = operator(branch, variant, form, **GEOMETRIES[geometry]).train(training)
        x = torch.randn(2, 4, 9, 8)
        if channels_last:
            module, x = module.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last)
        expected = module(x)
        inside = [(name, part) for name, part in module.named_modules() if name]
        for parts in (inside, [("itself", module)]):
            seen, kept = hooked(module, parts)
            for needs_gradient in (False, True):
                inputs = x.clone().requires_grad_(needs_gradient)
                y = module(inputs)
                assert relative_error(expected, y) <= 1e-4
                if parts is inside:
                    assert not y._is_view()
                    y *= 1  # as a ReLU in place behind it
                y.sum().backward()
                assert seen
                assert any(output.grad is not None for output in kept)
                seen.clear()
                kept.clear()
