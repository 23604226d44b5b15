"""Stand-alone self-attention against its formula."""

import pytest
import torch

from tests.operators.checks import agrees, runs_everywhere, window_pixels
from xvolution.operators import LocalAttention2d


def build(in_channels=6, out_channels=8, kernel_size=3, stride=1, padding=1, **options):
    torch.manual_seed(0)
    return LocalAttention2d(in_channels, out_channels, kernel_size, stride, padding, dtype=torch.float64, **options)


def formula(module, kernel_size, stride, padding):
    """Head by head: softmax of <q, k + r> over the window, then the sum of the values."""

    def attention(x):
        key, value = (window_pixels(conv(x), kernel_size, stride, padding) for conv in (module.key, module.value))
        query, parts = module.query(x), []
        for head, channels in enumerate(torch.arange(query.shape[1]).chunk(module.heads)):
            half = len(channels) // 2
            row = module.row_embedding[head].repeat_interleave(kernel_size, 1)
            column = module.column_embedding[head].repeat(1, kernel_size)
            position = torch.cat([row, column])[None, :, :, None, None]
            assert position.shape[1] == 2 * half
            scores = (query[:, channels].unsqueeze(2) * (key[:, channels] + position)).sum(1, keepdim=True)
            parts.append((scores.softmax(2) * value[:, channels]).sum(2))
        return torch.cat(parts, 1) + module.bias.reshape(-1, 1, 1)

    return attention


@pytest.mark.parametrize(("kernel_size", "stride", "padding"), [(3, 1, 1), (3, 2, 1), (5, 2, 2), (1, 1, 0)])
def test_outputs_and_gradients_are_those_of_the_formula(kernel_size, stride, padding):
    module = build(kernel_size=kernel_size, stride=stride, padding=padding, num_heads=2)
    agrees(module, formula(module, kernel_size, stride, padding), torch.randn(2, 6, 7, 9, dtype=torch.float64))


def test_weights_are_one_in_sum_and_nothing_outside_of_the_window_counts():
    module = build()
    x = torch.randn(1, 6, 9, 9, dtype=torch.float64)
    weights = module.weights(x)
    assert (weights > 0).all()
    torch.testing.assert_close(weights.sum(2), torch.ones_like(weights[:, :, 0]))
    changed = x.clone()
    changed[..., 6:, :] = 7.0
    torch.testing.assert_close(module(changed)[..., :5, :], module(x)[..., :5, :])
    assert not torch.allclose(module(changed)[..., 5, :], module(x)[..., 5, :])


def test_parameter_count():
    # Three 1x1 projections, and one embedding of half a head's channels for each row and each column of the window.
    module = LocalAttention2d(64, 64, 7, padding=3, bias=False)
    assert sum(p.numel() for p in module.parameters()) == 3 * 64 * 64 + 32 * (7 + 7)


def test_resnet50_gets_the_size_of_the_paper():
    # The paper's ResNet-50 with attention has 18.0 million parameters, 29 % fewer than the convolutional one of 25,557,032,
    # of which the bottlenecks' 3x3 convolutions have 9 C² each.
    total = 25_557_032
    for width, blocks in {64: 3, 128: 4, 256: 6, 512: 3}.items():
        with torch.device("meta"):
            module = LocalAttention2d(width, width, 7, padding=3, bias=False)
        total += blocks * (sum(parameter.numel() for parameter in module.parameters()) - 9 * width**2)
    assert total == pytest.approx(18.0e6, abs=0.05e6)


def test_it_runs_everywhere():
    runs_everywhere(build(stride=2).float(), torch.randn(2, 6, 8, 8))


def test_bad_arguments_are_sentences():
    with pytest.raises(ValueError, match="needs an even number, half of them for the rows"):
        LocalAttention2d(6, 9, 3)
    with pytest.raises(ValueError, match="num_heads is 8, which leaves 1 channels to each"):
        LocalAttention2d(8, 8, 3, num_heads=8)
