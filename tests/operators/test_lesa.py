"""LESA against its formula."""

import pytest
import torch
from torch import nn

from tests.core.networks import randomize
from tests.operators.checks import agrees, runs_everywhere
from xvolution.operators import LESA2d


def build(stride=1, **options):
    torch.manual_seed(0)
    options = {"num_heads": 2, "map_size": 7} | options
    return randomize(LESA2d(6, 8, 3, stride, 1, dtype=torch.float64, **options))


def formula(module):
    """The unary term plus the gated binary term, pair of pixels by pair of pixels."""

    def lesa(x):
        unary, binary = module.unary(x), module.binary
        heads, height, width = module.heads, *x.shape[2:]
        maps = binary.project_norm(binary.project(x)).unflatten(1, (heads, -1))
        query, key, value = (part.flatten(3) for part in maps.split(binary.split, 2))
        scores = binary.content_norm(torch.einsum("nhdi,nhdj->nhij", query, key))
        if binary.row_embedding is not None:
            places = [(i // width, i % width) for i in range(height * width)]
            middle = (binary.row_embedding.shape[1] - 1) // 2
            relative = torch.stack([
                torch.stack([
                    binary.row_embedding[:, middle + b[0] - a[0]] + binary.column_embedding[:, middle + b[1] - a[1]]
                    for b in places
                ])
                for a in places
            ])  # fmt: skip
            scores = scores + binary.position_norm(torch.einsum("nhdi,ijd->nhij", query, relative))
        context = torch.einsum("nhij,nhdj->nhdi", scores.softmax(-1), value)
        context = binary.norm(context.flatten(1, 2).unflatten(2, (height, width)))
        y = unary + module.fusion(torch.cat([unary, context], 1)) * context
        return nn.functional.avg_pool2d(y, module.stride, ceil_mode=True) if max(module.stride) > 1 else y

    return lesa


@pytest.mark.parametrize("options", [{}, {"stride": 2}, {"map_size": None}], ids=str)
def test_outputs_and_gradients_are_those_of_the_formula(options):
    module = build(**options).eval()
    agrees(module, formula(module), torch.randn(2, 6, 7, 7, dtype=torch.float64))


@pytest.mark.parametrize("gate", [0.0, 1.0])
def test_the_gate_decides_between_the_local_term_alone_and_both(gate):
    module = build().eval()
    x = torch.randn(1, 6, 7, 7, dtype=torch.float64)
    with torch.no_grad():
        module.fusion[5].weight.zero_()
        module.fusion[5].bias.fill_(100.0 if gate else -100.0)
        torch.testing.assert_close(module(x), module.unary(x) + gate * module.binary(x))


def test_the_local_term_is_local_and_the_context_is_not():
    module = build().eval()
    x = torch.randn(1, 6, 9, 9, dtype=torch.float64, requires_grad=True)
    (unary,) = torch.autograd.grad(module.unary(x)[0, :, 0, 0].sum(), x)
    (binary,) = torch.autograd.grad(module.binary(x)[0, :, 0, 0].sum(), x)
    assert (unary[0, :, 2:, :] == 0).all()
    assert (unary[0, :, :, 2:] == 0).all()
    assert (binary.abs().sum(1) > 0).all()


def test_positions_are_interpolated_for_other_sizes():
    module = build().eval()
    assert module(torch.randn(1, 6, 5, 11, dtype=torch.float64)).shape == (1, 8, 5, 11)


def test_parameter_count():
    # The authors' layout (LESA.py) on C channels with 8 heads: a 3x3 in 8 groups, a 1x1 and a norm; qkv with half of C for q and
    # k each, its norm, one for each kind of score and one for the sum; two embeddings (C/16, 27); the fusion.
    c = 64
    unary = 9 * c * c // 8 + c * c + 2 * c
    binary = 2 * c * c + 4 * c + 2 * 16 + 2 * c + 2 * (c // 16) * 27
    fusion = 2 * c * c + 2 * c + c * c + 2 * c
    assert sum(p.numel() for p in LESA2d(c, c, 3, padding=1).parameters()) == unary + binary + fusion


def test_it_runs_everywhere():
    runs_everywhere(build(stride=2).float(), torch.randn(2, 6, 8, 8))


def test_bad_arguments_are_sentences():
    with pytest.raises(ValueError, match="it must be even"):
        LESA2d(6, 9, 3)
    with pytest.raises(ValueError, match="num_heads is 5; it must be positive and divide the 6 input channels"):
        LESA2d(6, 8, 3, num_heads=5)
    with pytest.raises(ValueError, match="map_size is 0"):
        LESA2d(6, 8, 3, map_size=0)
