"""A 1x1 convolution with a stride is computed as one of stride 1 over the pixels that it reads."""

import pytest
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from tests.core.networks import randomize
from xvolution import XVolution2d, reparameterize
from xvolution.attention import ATTENTION
from xvolution.convolutions import CONVOLUTIONS, ExplicitPadding, conv_over, geometry_of
from xvolution.operator import fold

CONVOLVE = (torch.conv1d, torch.conv2d, torch.conv3d)


class RecordedConvolutions(TorchFunctionMode):
    """Keeps the kernel size and the stride of every convolution that torch is asked for."""

    def __init__(self):
        super().__init__()
        self.windows = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function in CONVOLVE:
            names = ("input", "weight", "bias", "stride")
            given = dict(zip(names, args, strict=False)) | (kwargs or {})
            dims = given["weight"].dim() - 2
            stride = given.get("stride", 1)
            strides = (stride,) * dims if isinstance(stride, int) else tuple(stride)
            self.windows.append((tuple(given["weight"].shape[2:]), strides))
        return function(*args, **(kwargs or {}))

    @property
    def strided_pointwise(self):
        return [window for window in self.windows if max(window[0]) == 1 < max(window[1])]


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("seed", range(8))
def test_outputs_and_gradients_are_those_of_torch(dims, seed):
    generator = torch.Generator().manual_seed(seed)

    def number(low, high):
        return int(torch.randint(low, high + 1, (1,), generator=generator))

    def random(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    groups = number(1, 2)
    in_channels, out_channels = groups * number(1, 4), groups * number(1, 4)
    stride = (number(2, 4), *(number(1, 4) for _ in range(dims - 1)))
    padding = tuple(number(0, 2) for _ in range(dims))
    mode = ("zeros", "circular")[number(0, 1)]
    expected = CONVOLUTIONS[dims](
        in_channels, out_channels, 1, stride, padding, groups=groups, padding_mode=mode, dtype=torch.float64
    )
    actual = conv_over(geometry_of(expected), in_channels, out_channels, groups=groups, dtype=torch.float64)
    assert isinstance(actual, ExplicitPadding)
    actual.load_state_dict(expected.state_dict())
    x = random(2, in_channels, *(number(3, 7) for _ in range(dims))).requires_grad_()
    y = expected(x)
    cotangent = random(*y.shape)
    torch.testing.assert_close(actual(x), y, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(actual(x[0]), y[0], rtol=1e-12, atol=1e-12)
    for found, wanted in zip(
        torch.autograd.grad(actual(x), (x, *actual.parameters()), cotangent),
        torch.autograd.grad(y, (x, *expected.parameters()), cotangent),
        strict=True,
    ):
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("branch", ATTENTION)
def test_no_branch_gives_torch_a_strided_pointwise_convolution(branch):
    module = randomize(XVolution2d(4, 8, 3, stride=2, padding=1, zero_init=False, attention=branch)).eval()
    for form in (module, *(reparameterize(module, layout=layout) for layout in fold(module).layouts)):
        with RecordedConvolutions() as recorded:
            form(torch.randn(2, 4, 9, 9))
        assert recorded.windows
        assert not recorded.strided_pointwise


def test_a_strided_operator_of_few_channels_trains_in_channels_last():
    """On a CPU with AVX2 alone torch's own strided convolution corrupts memory here."""
    torch.manual_seed(0)
    module = randomize(XVolution2d(4, 16, 3, stride=2, padding=1, zero_init=False))
    x = torch.randn(32, 4, 16, 16)

    def gradients(memory_format):
        module.to(memory_format=memory_format).zero_grad()
        module(x.to(memory_format=memory_format)).square().mean().backward()
        return [parameter.grad.clone() for parameter in module.parameters()]

    expected = gradients(torch.contiguous_format)
    for found, wanted in zip(gradients(torch.channels_last), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-5)


def test_the_record_sees_a_strided_pointwise_convolution():
    with RecordedConvolutions() as recorded:
        nn.Conv2d(4, 8, 1, stride=2)(torch.randn(2, 4, 9, 9))
        nn.Conv2d(4, 8, 3, stride=2)(torch.randn(2, 4, 9, 9))
    assert recorded.strided_pointwise == [((1, 1), (2, 2))]
