"""The code that runs on the GPU (see ``triton_gate``): each program computes a tile of pixels and channels.

Maps are (N, H, W, A), weights of the window (T, A), and ``norms`` (8, A): mean, inverse deviation, scale and shift of the
query's norm, then of the window sum's.
"""

import triton
import triton.language as tl


@triton.jit
def _tile(pixels, channels, height, width, BLOCK: tl.constexpr, CHANNELS: tl.constexpr):
    """Image, row, column and channel of each element of this program's tile, and which of them exist."""
    pixel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    image = pixel // (height * width)
    row, column = (pixel // width) % height, pixel % width
    return pixel, channel, image, row, column, pixel < pixels, channel < channels


@triton.jit
def _window_sum(
    key, window, shift, image, row, column, channel, real, kept, height, width, channels,
    KH: tl.constexpr, KW: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr,
    PH: tl.constexpr, PW: tl.constexpr, DH: tl.constexpr, DW: tl.constexpr,
):  # fmt: skip
    """``Σ_δ w_δ ⊙ k_δ`` plus a shift for each image, of one tile."""
    total = tl.load(shift + image[:, None] * channels + channel[None, :], mask=real[:, None] & kept[None, :], other=0.0)
    for tap in tl.static_range(KH * KW):
        y, x = row * SH - PH + (tap // KW) * DH, column * SW - PW + (tap % KW) * DW
        inside = real & (y >= 0) & (y < height) & (x >= 0) & (x < width)
        place = ((image * height + y) * width + x)[:, None] * channels + channel[None, :]
        weight = tl.load(window + tap * channels + channel, mask=kept, other=0.0)
        total += weight[None, :] * tl.load(key + place, mask=inside[:, None] & kept[None, :], other=0.0).to(tl.float32)
    return total


@triton.jit
def _open(x, FUNCTION: tl.constexpr):
    if FUNCTION == 1:
        x = tl.sigmoid(x)
    elif FUNCTION == 2:
        x = 2 * tl.sigmoid(2 * x) - 1
    return x


@triton.jit
def _slope(opened, FUNCTION: tl.constexpr):
    """The derivative of φ from its value."""
    slope = opened * 0 + 1
    if FUNCTION == 1:
        slope = opened * (1 - opened)
    elif FUNCTION == 2:
        slope = 1 - opened * opened
    return slope


@triton.jit
def moments_kernel(
    key, window, shift, means, squares, pixels, channels, out_height, out_width, height, width,
    BLOCK: tl.constexpr, CHANNELS: tl.constexpr,
    KH: tl.constexpr, KW: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr,
    PH: tl.constexpr, PW: tl.constexpr, DH: tl.constexpr, DW: tl.constexpr,
):  # fmt: skip
    """Mean and sum of squared deviations of the window sums of each tile."""
    _, channel, image, row, column, real, kept = _tile(pixels, channels, out_height, out_width, BLOCK, CHANNELS)
    sums = _window_sum(
        key, window, shift, image, row, column, channel, real, kept, height, width, channels,
        KH, KW, SH, SW, PH, PW, DH, DW,
    )  # fmt: skip
    mean = tl.sum(tl.where(real[:, None], sums, 0.0), 0) / tl.sum(real.to(tl.float32), 0)
    deviation = tl.where(real[:, None], sums - mean[None, :], 0.0)
    place = tl.program_id(0) * channels + channel
    tl.store(means + place, mean, mask=kept)
    tl.store(squares + place, tl.sum(deviation * deviation, 0), mask=kept)


@triton.jit
def products_kernel(
    query, key, window, shift, norms, product, pixels, channels, out_height, out_width, height, width,
    FUNCTION: tl.constexpr, BLOCK: tl.constexpr, CHANNELS: tl.constexpr,
    KH: tl.constexpr, KW: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr,
    PH: tl.constexpr, PW: tl.constexpr, DH: tl.constexpr, DW: tl.constexpr,
):  # fmt: skip
    """``φ(norm(q)) ⊙ norm(Σ_δ w_δ ⊙ k_δ + shift)`` of one tile, given the statistics of both norms."""
    pixel, channel, image, row, column, real, kept = _tile(pixels, channels, out_height, out_width, BLOCK, CHANNELS)
    sums = _window_sum(
        key, window, shift, image, row, column, channel, real, kept, height, width, channels,
        KH, KW, SH, SW, PH, PW, DH, DW,
    )  # fmt: skip
    place, exists = pixel[:, None] * channels + channel[None, :], real[:, None] & kept[None, :]
    q = tl.load(query + place, mask=exists, other=0.0).to(tl.float32)
    q = (q - _row(norms, 0, channel, channels, kept)) * _row(norms, 1, channel, channels, kept)
    sums = (sums - _row(norms, 4, channel, channels, kept)) * _row(norms, 5, channel, channels, kept)
    opened = _open(q * _row(norms, 2, channel, channels, kept) + _row(norms, 3, channel, channels, kept), FUNCTION)
    normalized = sums * _row(norms, 6, channel, channels, kept) + _row(norms, 7, channel, channels, kept)
    tl.store(product + place, opened * normalized, mask=exists)


@triton.jit
def _row(matrix, index, channel, channels, kept):
    return tl.load(matrix + index * channels + channel, mask=kept, other=0.0)[None, :]


@triton.jit
def gradients_kernel(
    grad, query, key, window, shift, norms, totals, query_grad, sum_grad,
    pixels, channels, out_height, out_width, height, width,
    WRITE: tl.constexpr, FUNCTION: tl.constexpr, BLOCK: tl.constexpr, CHANNELS: tl.constexpr,
    KH: tl.constexpr, KW: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr,
    PH: tl.constexpr, PW: tl.constexpr, DH: tl.constexpr, DW: tl.constexpr,
):  # fmt: skip
    """Either the four sums over a tile that the gradients of both norms need, or these gradients, given the sums' means."""
    pixel, channel, image, row, column, real, kept = _tile(pixels, channels, out_height, out_width, BLOCK, CHANNELS)
    sums = _window_sum(
        key, window, shift, image, row, column, channel, real, kept, height, width, channels,
        KH, KW, SH, SW, PH, PW, DH, DW,
    )  # fmt: skip
    place, exists = pixel[:, None] * channels + channel[None, :], real[:, None] & kept[None, :]
    product_grad = tl.load(grad + place, mask=exists, other=0.0).to(tl.float32)
    q = tl.load(query + place, mask=exists, other=0.0).to(tl.float32)
    query_inverse, sum_inverse = _row(norms, 1, channel, channels, kept), _row(norms, 5, channel, channels, kept)
    query_scale, sum_scale = _row(norms, 2, channel, channels, kept), _row(norms, 6, channel, channels, kept)
    q = (q - _row(norms, 0, channel, channels, kept)) * query_inverse
    sums = (sums - _row(norms, 4, channel, channels, kept)) * sum_inverse
    opened = _open(q * query_scale + _row(norms, 3, channel, channels, kept), FUNCTION)
    of_query = product_grad * (sums * sum_scale + _row(norms, 7, channel, channels, kept)) * _slope(opened, FUNCTION)
    of_sum = product_grad * opened
    if WRITE:
        of_query -= _row(totals, 1, channel, channels, kept) + q * _row(totals, 0, channel, channels, kept)
        of_sum -= _row(totals, 3, channel, channels, kept) + sums * _row(totals, 2, channel, channels, kept)
        tl.store(query_grad + place, of_query * query_scale * query_inverse, mask=exists)
        tl.store(sum_grad + place, of_sum * sum_scale * sum_inverse, mask=exists)
    else:
        first = totals + tl.program_id(0) * 4 * channels + channel
        tl.store(first, tl.sum(of_query * q, 0), mask=kept)
        tl.store(first + channels, tl.sum(of_query, 0), mask=kept)
        tl.store(first + 2 * channels, tl.sum(of_sum * sums, 0), mask=kept)
        tl.store(first + 3 * channels, tl.sum(of_sum, 0), mask=kept)


@triton.jit
def key_kernel(
    sum_grad, window, shares, key_grad, pixels, channels, out_height, out_width, height, width,
    BLOCK: tl.constexpr, CHANNELS: tl.constexpr,
    KH: tl.constexpr, KW: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr,
    PH: tl.constexpr, PW: tl.constexpr, DH: tl.constexpr, DW: tl.constexpr,
):  # fmt: skip
    """Gradient of the key: each of its pixels gathers from the windows that read it."""
    pixel, channel, image, row, column, real, kept = _tile(pixels, channels, height, width, BLOCK, CHANNELS)
    place, exists = pixel[:, None] * channels + channel[None, :], real[:, None] & kept[None, :]
    total = tl.load(shares + image[:, None] * channels + channel[None, :], mask=exists, other=0.0)
    for tap in tl.static_range(KH * KW):
        y, x = row + PH - (tap // KW) * DH, column + PW - (tap % KW) * DW
        inside = real & (y >= 0) & (y < out_height * SH) & (x >= 0) & (x < out_width * SW)
        inside = inside & (y % SH == 0) & (x % SW == 0)
        source = ((image * out_height + y // SH) * out_width + x // SW)[:, None] * channels + channel[None, :]
        weight = tl.load(window + tap * channels + channel, mask=kept, other=0.0)
        total += weight[None, :] * tl.load(sum_grad + source, mask=inside[:, None] & kept[None, :], other=0.0)
    tl.store(key_grad + place, total, mask=exists)


@triton.jit
def window_kernel(
    sum_grad, key, window_grad, pixels, channels, out_height, out_width, height, width,
    BLOCK: tl.constexpr, CHANNELS: tl.constexpr,
    KH: tl.constexpr, KW: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr,
    PH: tl.constexpr, PW: tl.constexpr, DH: tl.constexpr, DW: tl.constexpr,
):  # fmt: skip
    """Gradient of the window's weights from one tile."""
    pixel, channel, image, row, column, real, kept = _tile(pixels, channels, out_height, out_width, BLOCK, CHANNELS)
    exists = real[:, None] & kept[None, :]
    grad = tl.load(sum_grad + pixel[:, None] * channels + channel[None, :], mask=exists, other=0.0)
    for tap in tl.static_range(KH * KW):
        y, x = row * SH - PH + (tap // KW) * DH, column * SW - PW + (tap % KW) * DW
        inside = real & (y >= 0) & (y < height) & (x >= 0) & (x < width)
        source = ((image * height + y) * width + x)[:, None] * channels + channel[None, :]
        read = tl.load(key + source, mask=inside[:, None] & kept[None, :], other=0.0).to(tl.float32)
        place = (tl.program_id(0) * KH * KW + tap) * channels + channel
        tl.store(window_grad + place, tl.sum(grad * read, 0), mask=kept)
