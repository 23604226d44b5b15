"""ACmix against its two paths."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.operators.checks import agrees, runs_everywhere, window_pixels
from xvolution.operators import ACmix2d


def build(in_channels=6, out_channels=8, kernel_size=3, stride=1, padding=1, **options):
    torch.manual_seed(0)
    module = ACmix2d(in_channels, out_channels, kernel_size, stride, padding, window=5, dtype=torch.float64, **options)
    nn.init.normal_(module.shift.weight)
    return module


def formula(module, kernel_size, stride, padding, window):
    """Softmax attention with positions over the reflected window, and the shifted maps of the convolution path."""

    def acmix(x):
        query, key, value = module.project(x).chunk(3, 1)
        heads, channels = module.heads, query.shape[1] // module.heads
        height, width = x.shape[2:]
        rows = torch.linspace(-1, 1, height, dtype=x.dtype)[:, None].expand(height, width)
        columns = torch.linspace(-1, 1, width, dtype=x.dtype)[None].expand(height, width)
        position = module.position(torch.stack([columns, rows])[None])
        # Windows of the attention sit on the centres of the convolution's windows.
        reach = window // 2 + padding - kernel_size // 2
        keys, values, places = (window_pixels(m, window, stride, reach, mode="reflect") for m in (key, value, position))
        centres = query[:, :, ::stride, ::stride], position[:, :, ::stride, ::stride]
        attended = []
        for head in range(heads):
            own = slice(head * channels, (head + 1) * channels)
            difference = keys[:, own] + centres[1].unsqueeze(2) - places
            scores = (centres[0][:, own].unsqueeze(2) * difference).sum(1, keepdim=True) / channels**0.5
            attended.append((scores.softmax(2) * values[:, own]).sum(2))
        stacked = torch.stack([query, key, value], 1).reshape(len(x), 3 * heads, channels, height, width)
        maps = torch.einsum("tm,nmchw->ncthw", module.mix.weight, stacked).flatten(1, 2)
        convolved = F.conv2d(maps, module.shift.weight, stride=stride, padding=padding, groups=channels)
        return module.alpha * torch.cat(attended, 1) + module.beta * convolved

    return acmix


@pytest.mark.parametrize("stride", [1, 2])
def test_outputs_and_gradients_are_those_of_the_formula(stride):
    module = build(stride=stride, num_heads=2)
    agrees(module, formula(module, 3, stride, 1, 5), torch.randn(2, 6, 7, 9, dtype=torch.float64))


def test_each_path_alone():
    module = build()
    x = torch.randn(2, 6, 8, 8, dtype=torch.float64)
    projected = module.project(x)
    with torch.no_grad():
        module.alpha.fill_(1)
        module.beta.fill_(0)
        torch.testing.assert_close(module(x), module.attend(*projected.chunk(3, 1)))
        module.alpha.fill_(0)
        module.beta.fill_(1)
        torch.testing.assert_close(module(x), module.convolve(projected))


def test_the_convolution_path_begins_as_shifts_and_is_a_convolution():
    torch.manual_seed(0)
    module = ACmix2d(3, 4, 3, padding=1, num_heads=1, bias=False, dtype=torch.float64)
    x = torch.randn(2, 3, 8, 7, dtype=torch.float64)
    # One head: y_c = Σ_δ Σ_m mix_{δ,m} (W_m x)_{c, δ} is a 3x3 convolution with this kernel.
    projections = module.project.weight.flatten(1).unflatten(0, (3, 4))
    kernel = torch.einsum("tm,mci->cit", module.mix.weight, projections).unflatten(2, (3, 3))
    torch.testing.assert_close(module.convolve(module.project(x)), F.conv2d(x, kernel, padding=1))


def test_parameter_count():
    # The authors' layout (ResNet/test_bottleneck.py) on C channels with 4 heads: three 1x1 with bias, conv_p 2·C/4 + C/4, fc
    # 3·4·9 without bias, dep_conv C·9·9 with one input map for each shift (C/4 groups), and the two rates. Their dep_conv is
    # built with a bias, which its initialization then replaces by None.
    channels, head = 64, 16
    expected = 3 * (channels * channels + channels) + 3 * head + 3 * 4 * 9 + channels * 9 * 9 + 2
    assert sum(p.numel() for p in ACmix2d(channels, channels, 3, padding=1).parameters()) == expected


def test_it_runs_everywhere():
    runs_everywhere(build(stride=2).float(), torch.randn(2, 6, 8, 8))


def test_bad_arguments_are_sentences():
    with pytest.raises(ValueError, match="groups is 2; acmix can replace only convolutions with groups=1"):
        ACmix2d(8, 8, 3, groups=2)
    with pytest.raises(ValueError, match="num_heads is 3; it must be positive and divide the 8"):
        ACmix2d(8, 8, 3, num_heads=3)
    with pytest.raises(ValueError, match="window is 4; it must be odd"):
        ACmix2d(8, 8, 3, window=4)
