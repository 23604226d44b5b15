"""ODConv with one kernel."""

from copy import deepcopy

import pytest
import torch
from torch import nn

from tests.core.networks import randomize
from tests.operators.checks import GEOMETRIES, agrees
from xvolution.conversion.summary import count_parameters
from xvolution.operators import ODConv2d


def reference(operator, x):
    """Each image by a kernel of its own, in eval mode."""
    conv, norm = operator.conv, operator.squeeze_norm
    images = []
    for image in x:
        mean = image.flatten(1).sum(1) / image[0].numel()
        squeezed = operator.squeeze.weight.flatten(1) @ mean
        hidden = (squeezed - norm.running_mean) / (norm.running_var + norm.eps).sqrt() * norm.weight + norm.bias

        def weights(layer, count, hidden=hidden):
            if layer is None:
                return hidden.new_ones(count)
            return 1 / (1 + (-(layer.weight.flatten(1) @ hidden.clamp(min=0) + layer.bias)).exp())

        kernel = conv.weight * weights(operator.of_taps, conv.weight[0, 0].numel()).reshape(conv.weight.shape[2:])
        kernel = kernel * weights(operator.of_outputs, len(kernel))[:, None, None, None]
        of_inputs = weights(operator.of_inputs, len(image)).reshape(conv.groups, 1, -1, 1, 1)
        kernel = (kernel.unflatten(0, (conv.groups, -1)) * of_inputs).flatten(0, 1)
        images.append(operator.conv_norm(conv._conv_forward(image[None], kernel, conv.bias))[0])
    return torch.stack(images)


@pytest.mark.parametrize("geometry", [*GEOMETRIES, {"kernel_size": 3, "padding": 1, "groups": 8, "out_channels": 8}])
def test_it_is_its_formula(geometry):
    torch.manual_seed(0)
    operator = randomize(ODConv2d(8, **{"out_channels": 12, **geometry})).double().eval()
    agrees(operator, lambda x: reference(operator, x), torch.randn(2, 8, 9, 9, dtype=torch.float64))


def test_weights_of_one_leave_the_convolution():
    operator = ODConv2d(8, 12, 3, padding=1).double().eval()
    for layer in (operator.of_inputs, operator.of_outputs, operator.of_taps):
        nn.init.constant_(layer.bias, 100.0)
    x = torch.randn(2, 8, 6, 6, dtype=torch.float64)
    torch.testing.assert_close(operator(x), operator.conv(x))


def test_the_graph_for_any_batch_size_computes_the_same():
    torch.manual_seed(0)
    operator = randomize(ODConv2d(8, 12, 3, 2, 1, 2, 4, padding_mode="circular")).double().eval()
    traced = torch.jit.trace(deepcopy(operator), torch.randn(2, 8, 9, 9, dtype=torch.float64))
    x = torch.randn(3, 8, 9, 9, dtype=torch.float64)
    torch.testing.assert_close(traced(x), operator(x))


@pytest.mark.parametrize(
    ("geometry", "parts"),
    [
        ((64, 128, 3), 16 * (64 + 128 + 9) + 64 + 128 + 9),
        ((64, 128, 1), 16 * (64 + 128) + 64 + 128),
        ((512, 512, 3), 32 * (512 + 512 + 9) + 512 + 512 + 9),
    ],
)
def test_its_parameters(geometry, parts):
    """One layer to R channels without bias, its norm, and from there layers with biases to inputs, outputs and taps."""
    hidden = max(geometry[0] // 16, 16)
    convolution = count_parameters(nn.Conv2d(*geometry, bias=False))
    assert count_parameters(ODConv2d(*geometry, bias=False)) == convolution + geometry[0] * hidden + 2 * hidden + parts


def test_a_depthwise_convolution_has_no_weights_of_outputs():
    assert ODConv2d(8, 8, 3, groups=8).of_outputs is None
    assert ODConv2d(8, 16, 3, groups=8).of_outputs is not None


class Standardized(nn.Conv2d):
    def forward(self, x):
        return self._conv_forward(x, self.weight - self.weight.mean(), self.bias)


def test_bad_input_is_a_sentence():
    with pytest.raises(ValueError, match="reduction is 0; it must be a positive integer"):
        ODConv2d(8, 8, 3, reduction=0)
    with pytest.raises(ValueError, match="Standardized computes its kernel from its weights in every call"):
        ODConv2d.from_conv(Standardized(4, 4, 3))
