"""Exact global attention in the place of a convolution."""

import pytest
import torch

from tests.operators.checks import agrees, runs_everywhere
from xvolution.attention import GlobalAttention
from xvolution.operators import global_attention


@pytest.mark.parametrize("qk_norm", [False, True])
@pytest.mark.parametrize("stride", [1, 2])
def test_outputs_and_gradients_are_those_of_the_formula(stride, qk_norm):
    torch.manual_seed(0)
    module = global_attention(6, 8, 3, stride, 1, num_heads=2, qk_norm=qk_norm, dtype=torch.float64)
    assert isinstance(module, GlobalAttention)
    temperatures = (None, None)
    if qk_norm:
        temperatures = module.temperature
        torch.nn.init.uniform_(temperatures, 1, 5)

    def formula(x):
        # Every pixel attends to every pixel: softmax(q k / √d) v, or softmax(τ cos(q, k)) v, head by head.
        query, key, value = (conv(x) for conv in (module.query, module.key, module.value))
        parts = []
        tokens = (maps.flatten(2).chunk(2, 1) for maps in (query, key, value))
        for q, k, v, temperature in zip(*tokens, temperatures, strict=True):
            logits = q.transpose(1, 2) @ k
            if temperature is None:
                logits = logits / q.shape[1] ** 0.5
            else:
                logits = temperature * logits / (q.norm(dim=1)[:, :, None] * k.norm(dim=1)[:, None])
            weights = logits.softmax(-1)
            parts.append(v @ weights.transpose(1, 2))
        return torch.cat(parts, 1).unflatten(2, query.shape[2:])

    agrees(module, formula, torch.randn(2, 6, 7, 5, dtype=torch.float64))


def test_every_pixel_counts():
    module = global_attention(4, 8, 3, padding=1, dtype=torch.float64)
    x = torch.randn(1, 4, 9, 9, dtype=torch.float64, requires_grad=True)
    module(x)[0, :, 0, 0].sum().backward()
    assert (x.grad.abs().sum(1) > 0).all()


def test_parameter_count():
    # Three 1x1 projections with a bias each.
    assert sum(p.numel() for p in global_attention(64, 64, 3).parameters()) == 3 * (64 * 64 + 64)
    assert sum(p.numel() for p in global_attention(64, 64, 3, bias=False).parameters()) == 3 * 64 * 64 + 2 * 64


def test_it_runs_everywhere():
    torch.manual_seed(0)
    runs_everywhere(global_attention(4, 8, 3, 2, 1), torch.randn(2, 4, 8, 8))
