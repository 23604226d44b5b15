"""Involution against its formula."""

import pytest
import torch
from torch import nn

from tests.core.networks import randomize
from tests.operators.checks import agrees, runs_everywhere, window_pixels
from xvolution.operators import Involution2d


def build(in_channels=8, out_channels=8, kernel_size=3, stride=1, padding=1, **options):
    torch.manual_seed(0)
    return randomize(
        Involution2d(in_channels, out_channels, kernel_size, stride, padding, dtype=torch.float64, **options)
    )


def formula(module, kernel_size, stride, padding, dilation=1):
    """Each output pixel: the sum over its window of the pixel's own kernel times the pixels."""

    def involution(x):
        x = module.project(x)
        windows = window_pixels(x, kernel_size, stride, padding, dilation)
        pooled = nn.functional.avg_pool2d(x, stride) if stride > 1 else x
        kernels = module.span(torch.relu(module.norm(module.reduce(pooled))))
        channels = [
            (windows[:, channel] * kernels.unflatten(1, (-1, kernel_size**2))[:, channel // module.group_channels]).sum(
                1
            )
            for channel in range(x.shape[1])
        ]
        return torch.stack(channels, 1)

    return involution


@pytest.mark.parametrize(
    ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation"),
    [(8, 8, 3, 1, 1, 1), (8, 12, 3, 2, 1, 1), (6, 8, 5, 2, 2, 1), (8, 8, 3, 1, 2, 2)],
)
@pytest.mark.parametrize("training", [True, False])
def test_outputs_and_gradients_are_those_of_the_formula(
    in_channels, out_channels, kernel_size, stride, padding, dilation, training
):
    module = build(in_channels, out_channels, kernel_size, stride, padding, dilation=dilation, group_channels=2)
    x = torch.randn(2, in_channels, 6, 8, dtype=torch.float64)
    agrees(module.train(training), formula(module, kernel_size, stride, padding, dilation), x)


def test_a_kernel_is_shared_by_the_channels_of_a_group_and_differs_by_pixel():
    module = build(group_channels=4).eval()
    x = torch.randn(1, 8, 6, 6, dtype=torch.float64)
    weights = torch.autograd.functional.jacobian(
        lambda pixels: module_with(module, module.kernels(x).detach(), pixels), x
    )[0, :, 2:4, 2:4, 0]
    at_first, at_second = weights[:, 0, 0, :, 1:4, 1:4], weights[:, 1, 1, :, 2:5, 2:5]
    own = at_first.diagonal().movedim(-1, 0)
    assert torch.equal(at_first.sum(1), own)
    assert torch.equal(own[:4], own[:1].expand(4, 3, 3))
    assert not torch.allclose(own[0], own[4])
    assert torch.equal(at_second.diagonal().movedim(-1, 0)[0], module.kernels(x)[0, 0, :, 3, 3].unflatten(0, (3, 3)))
    assert (module.kernels(x).std((3, 4)) > 0).any()


def module_with(module, kernels, x):
    """The output for ``x`` with the kernels held fixed."""
    held = Involution2d(8, 8, 3, padding=1, group_channels=4, dtype=torch.float64)
    held.load_state_dict(module.state_dict())
    held.kernels = lambda _: kernels
    return held(x)


@pytest.mark.parametrize(
    ("in_channels", "out_channels", "bias", "expected"),
    [
        # The authors' layout (involution_naive.py) on C channels with kernel K: reduce C·C/4 without bias, its batch norm
        # 2·C/4, span (C/4 + 1)·K²·C/16 with bias.
        (64, 64, True, 64 * 16 + 2 * 16 + (16 + 1) * 49 * 4),
        (64, 64, False, 64 * 16 + 2 * 16 + (16 + 1) * 49 * 4),
        # Ours goes before it: a 1x1 convolution that changes the channels.
        (32, 64, False, 32 * 64 + 64 * 16 + 2 * 16 + (16 + 1) * 49 * 4),
        (32, 64, True, 32 * 64 + 64 + 64 * 16 + 2 * 16 + (16 + 1) * 49 * 4),
    ],
)
def test_parameter_count(in_channels, out_channels, bias, expected):
    module = Involution2d(in_channels, out_channels, 7, padding=3, bias=bias)
    assert sum(parameter.numel() for parameter in module.parameters()) == expected


def test_resnet50_gets_the_size_of_rednet50():
    # RedNet-50 has 15.54 million parameters (the paper's table 2). ResNet-50 has 25,557,032, of which the bottlenecks'
    # 3x3 convolutions have 9 C² each. (RedNet's stem also differs, by less than 0.01 million.)
    widths = {64: 3, 128: 4, 256: 6, 512: 3}
    total = 25_557_032 - sum(blocks * 9 * width**2 for width, blocks in widths.items())
    for width, blocks in widths.items():
        with torch.device("meta"):
            module = Involution2d(width, width, 7, padding=3, bias=False)
        total += blocks * sum(parameter.numel() for parameter in module.parameters())
    assert total == pytest.approx(15.54e6, abs=0.03e6)


@pytest.mark.parametrize("padding_mode", ["zeros", "reflect", "replicate", "circular"])
@pytest.mark.parametrize(
    ("size", "kernel_size", "stride", "padding", "dilation"),
    [(7, 3, 2, 1, 1), (8, 3, 1, 0, 1), (9, 5, 3, 1, 1), (8, (1, 3), (2, 1), (0, 1), 1), (7, 2, 1, "same", 2)],
)
def test_any_geometry_of_a_convolution(padding_mode, size, kernel_size, stride, padding, dilation):
    window = (kernel_size, stride, padding, dilation, 1, True, padding_mode)
    x = torch.randn(1, 16, size, size)
    assert Involution2d(16, 16, *window)(x).shape == nn.Conv2d(16, 16, *window)(x).shape


def test_it_runs_everywhere():
    runs_everywhere(build(8, 16, stride=2).float(), torch.randn(2, 8, 8, 8))


def test_bad_arguments_are_sentences():
    with pytest.raises(ValueError, match="groups is 4; involution can replace only convolutions with groups=1"):
        Involution2d(16, 16, 3, groups=4)
    with pytest.raises(ValueError, match="group_channels is 3; it must be positive and divide the 16"):
        Involution2d(16, 16, 3, group_channels=3)
    with pytest.raises(ValueError, match="reduction is 0; it must be between 1 and the 16"):
        Involution2d(16, 16, 3, reduction=0)
    with pytest.raises(ValueError, match="smaller than the window"):
        Involution2d(16, 16, 7)(torch.randn(1, 16, 4, 4))
