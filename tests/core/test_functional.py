"""The references themselves: against their formulas, pixel by pixel, and against what torch has."""

import pytest
import torch
from torch import nn

from xvolution import XVolution2d, functional
from xvolution.geometry import as_tuple
from xvolution.numerics import image_mean


def random(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def by_pixel(weight, x):
    """The 1x1 convolution of one image: (A, C, 1, 1), (C, H, W) -> (A, H, W)."""
    return torch.einsum("ac,chw->ahw", weight[..., 0, 0], x)


def neighbours(row, column, height, width):
    """(dy, dx, row, column) of the pixels in a 3x3 window that are inside of the image."""
    for dy in (-1, 0, 1):
        for dx in (-1, 0, 1):
            if 0 <= row + dy < height and 0 <= column + dx < width:
                yield dy, dx, row + dy, column + dx


def test_shift_reads_the_pixel_at_the_offset():
    x = torch.arange(2 * 3 * 5 * 7.0).reshape(2, 3, 5, 7)
    shifted = functional.shift(x, (2, -1))
    assert shifted[1, 2, 1, 3] == x[1, 2, 3, 2]
    assert (shifted[:, :, 3:] == 0).all()
    assert (shifted[:, :, :, 0] == 0).all()
    assert functional.shift(x, (0, 8)).eq(0).all()


def test_shift_wraps_around_in_circular_mode():
    x = torch.randn(1, 2, 5, 7)
    assert torch.equal(functional.shift(x, (1, -2), "circular"), torch.roll(x, (-1, 2), (2, 3)))


def test_pixel_shift_products_are_products_with_shifted_keys():
    query, key = torch.randn(2, 4, 6, 7), torch.randn(2, 4, 6, 7)
    products = functional.pixel_shift_products(query, key, 3, padding=2, dilation=2)
    offsets = [(dy, dx) for dy in (-2, 0, 2) for dx in (-2, 0, 2)]
    for tap, offset in enumerate(offsets):
        torch.testing.assert_close(products[:, :, tap], query * functional.shift(key, offset))


@pytest.mark.parametrize(("row", "column"), [(0, 2), (2, 4), (1, 1)])
def test_pixel_shift_is_the_sum_over_the_window(row, column):
    torch.manual_seed(0)
    x, query_weight, key_weight, value_weight = (
        random(1, 3, 4, 5),
        random(4, 3, 1, 1),
        random(4, 3, 1, 1),
        random(6, 4, 1, 1),
    )
    window, query_bias, window_bias, mean_weight, context = random(4, 3, 3), *random(3, 4), random(4, 3, 1, 1)
    y = functional.pixel_shift_attention(
        x, query_weight, key_weight, value_weight, window, query_bias, window_bias, mean_weight, context,
        gate=torch.sigmoid, padding=1,
    )  # fmt: skip
    query, key = by_pixel(query_weight, x[0]), by_pixel(key_weight, x[0])
    opened = query[:, row, column] + query_bias + context[..., 0, 0] @ x[0].mean((1, 2))
    total = window_bias + mean_weight * key.mean((1, 2))
    for dy, dx, i, j in neighbours(row, column, 4, 5):
        total = total + window[:, dy + 1, dx + 1] * key[:, i, j]
    torch.testing.assert_close(y[0, :, row, column], value_weight[..., 0, 0] @ (opened.sigmoid() * total))


def test_attention_of_the_paper_is_the_sum_of_products():
    """Without a gate or a term over all pixels: Σ_δ w_δ q_0 k_δ, as the paper writes it."""
    torch.manual_seed(0)
    x, weights, window = (
        random(1, 3, 4, 5),
        [random(4, 3, 1, 1), random(4, 3, 1, 1), random(6, 4, 1, 1)],
        random(4, 3, 3),
    )
    y = functional.pixel_shift_attention(x, *weights, window, padding=1)
    query, key = by_pixel(weights[0], x[0]), by_pixel(weights[1], x[0])
    total = torch.zeros(4, dtype=torch.float64)
    for dy, dx, i, j in neighbours(0, 2, 4, 5):
        total += window[:, dy + 1, dx + 1] * query[:, 0, 2] * key[:, i, j]
    torch.testing.assert_close(y[0, :, 0, 2], weights[2][..., 0, 0] @ total)


def test_dot_attention_is_equation_9():
    torch.manual_seed(0)
    x, weights, window = (
        random(1, 3, 4, 5),
        [random(4, 3, 1, 1), random(4, 3, 1, 1), random(6, 3, 1, 1)],
        random(2, 3, 3),
    )
    y = functional.pixel_shift_dot_attention(x, *weights, window, padding=1)
    query, key, value = (by_pixel(weight, x[0]) for weight in weights)
    for row, column in ((2, 3), (3, 0)):
        expected = torch.zeros(6, dtype=torch.float64)
        for head in range(2):
            channels, outputs = slice(2 * head, 2 * head + 2), slice(3 * head, 3 * head + 3)
            for dy, dx, i, j in neighbours(row, column, 4, 5):
                score = query[channels, row, column] @ key[channels, i, j]
                expected[outputs] += window[head, dy + 1, dx + 1] * score * value[outputs, i, j]
        torch.testing.assert_close(y[0, :, row, column], expected)


def test_linear_attention_is_the_mean_of_scores_times_values():
    torch.manual_seed(0)
    query, key, value = random(1, 4, 2, 3), random(1, 4, 3, 3), random(1, 6, 3, 3)
    y = functional.linear_attention(query, key, value, heads=2)
    for head in range(2):
        channels, outputs = slice(2 * head, 2 * head + 2), slice(3 * head, 3 * head + 3)
        expected = sum(
            (query[0, channels, 1, 2] @ key[0, channels, i, j]) * value[0, outputs, i, j]
            for i in range(3)
            for j in range(3)
        )
        torch.testing.assert_close(y[0, outputs, 1, 2], expected / 9)


def test_global_attention_is_softmax_attention():
    torch.manual_seed(0)
    query, key, value = random(2, 4, 3, 3), random(2, 4, 3, 3), random(2, 6, 3, 3)
    tokens = [maps.flatten(2).unflatten(1, (2, -1)).transpose(2, 3) for maps in (query, key, value)]
    expected = nn.functional.scaled_dot_product_attention(*tokens).transpose(2, 3).reshape(2, 6, 3, 3)
    torch.testing.assert_close(functional.global_attention(query, key, value, heads=2), expected)
    temperature = torch.tensor([3.0, 7.0], dtype=torch.float64)
    cosines = torch.cosine_similarity(tokens[0].unsqueeze(3), tokens[1].unsqueeze(2), dim=4)
    weights = (temperature.reshape(2, 1, 1) * cosines).softmax(3)
    expected = (weights @ tokens[2]).transpose(2, 3).reshape(2, 6, 3, 3)
    torch.testing.assert_close(functional.global_attention(query, key, value, 2, temperature), expected)


def test_the_channel_gate_is_a_weighted_convolution():
    torch.manual_seed(0)
    x, query, bias, value, key = (
        random(2, 4, 5, 5),
        random(6, 2, 1, 1),
        random(6),
        random(6, 2, 3, 3),
        random(4, 2, 1, 1),
    )
    mean, options = x.mean((2, 3), keepdim=True), {"stride": 2, "padding": 1, "groups": 2}
    opened = nn.functional.conv2d(mean, query, bias, groups=2).sigmoid()
    plain = functional.channel_gate_attention(x, query, bias, value, **options)
    torch.testing.assert_close(plain, opened * nn.functional.conv2d(x, value, **options))
    keys = nn.functional.conv2d(mean, key, groups=2).sigmoid()
    keyed = functional.channel_gate_attention(x, query, bias, value, key, 0 * bias[:4], **options)
    torch.testing.assert_close(keyed, opened * nn.functional.conv2d(keys * x, value, **options))


def test_gated_depthwise_attention_is_a_weighted_window_over_the_values():
    torch.manual_seed(0)
    x, value = random(2, 4, 5, 5), random(2, 6, 3, 4)
    query, bias, window, mean = random(6, 4, 1, 1), random(6), random(6, 5, 5), random(6)
    y = functional.gated_depthwise_attention(x, value, query, bias, window, mean, gate=torch.tanh)
    opened = nn.functional.conv2d(x.mean((2, 3), keepdim=True), query, bias).tanh()
    terms = nn.functional.conv2d(value, window.unsqueeze(1), padding=2, groups=6)
    terms = terms + mean.reshape(-1, 1, 1) * value.mean((2, 3), keepdim=True)
    torch.testing.assert_close(y, opened * terms)
    torch.testing.assert_close(functional.gated_depthwise_attention(x, value, None, None, window, mean), terms)


def test_dynamic_convolution_with_one_kernel_everywhere_is_a_convolution():
    x, weight, bias = random(2, 4, 7, 8), random(6, 2, 3, 2), random(6)
    options = {"stride": (2, 1), "padding": (1, 0), "dilation": (1, 2), "groups": 2}
    expected = nn.functional.conv2d(x, weight, bias, **options)
    kernel = weight[None, ..., None, None].expand(2, -1, -1, -1, -1, *expected.shape[2:])
    torch.testing.assert_close(functional.dynamic_conv2d(x, kernel, bias, **options), expected)


@pytest.mark.parametrize("kernel_size", [1, 2, 3, 4, (4, 5)])
def test_the_centre_under_same_padding_is_the_pixel_itself(kernel_size):
    x = torch.randn(1, 2, 6, 7)
    query = torch.eye(2)[:, :, None, None]
    ones = torch.ones(2, *as_tuple(kernel_size, 2))
    # Keys of zero and a window bias of one leave the query that each pixel reads.
    read = functional.pixel_shift_attention(x, query, 0 * query, query, ones, window_bias=torch.ones(2), padding="same")
    torch.testing.assert_close(read, x)
    for branch in ("linear", "global", "pixel_shift", "pixel_shift_dot"):
        module = XVolution2d(2, 2, kernel_size, padding="same", attention=branch).attention.query
        torch.testing.assert_close(module(x), nn.functional.conv2d(x, module.weight, module.bias))


@pytest.mark.parametrize("size", [(9,), (6, 5), (1, 1), (4, 3, 5)], ids=str)
@pytest.mark.parametrize("channels_last", [False, True])
def test_the_mean_of_an_image(size, channels_last):
    x = random(2, 3, *size)
    x = (x.movedim(1, -1).contiguous().movedim(-1, 1) if channels_last else x).requires_grad_()
    expected = x.mean(tuple(range(2, x.dim())), keepdim=True)
    torch.testing.assert_close(image_mean(x), expected, rtol=1e-12, atol=1e-12)
    assert torch.autograd.gradcheck(image_mean, x)
    assert torch.autograd.gradgradcheck(lambda x: image_mean(x).square(), x)
