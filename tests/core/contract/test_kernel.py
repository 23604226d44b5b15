"""The kernel of an operator at one pixel gives the output there."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tests.core.cases import CASES
from tests.core.execution import TRAINING, operator
from tests.core.strategies import inputs_for, operators
from xvolution import XVolution2d, dynamic_kernel, functional
from xvolution.attention.reference import windows

WITH_KERNEL = [branch for branch, case in CASES.items() if case.window is not None]


@pytest.mark.parametrize("branch", WITH_KERNEL)
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_it_reproduces_the_output_anywhere(branch, data):
    trained = data.draw(operators((branch,)))
    x = inputs_for(trained)
    y = trained(x)
    # Corners and edges, where padding is read, as often as the middle.
    position = tuple(data.draw(st.sampled_from([0, size - 1]) | st.integers(0, size - 1)) for size in y.shape[2:])
    kernel, bias = dynamic_kernel(trained, x, position, return_bias=True)
    geometry, groups = CASES[branch].window(trained), trained.groups
    assert kernel.shape == (2, 16, 8 // groups, *geometry.kernel_size)
    assert bias.shape == (2, 16)
    patches = windows(geometry.pad(x), geometry.kernel_size, geometry.stride, geometry.dilation)
    patch = patches[(slice(None), slice(None), slice(None), *position)].unflatten(1, (groups, -1))
    product = torch.einsum("ngit,ngoit->ngo", patch, kernel.flatten(3).unflatten(1, (groups, -1))).flatten(1)
    torch.testing.assert_close(product + bias, y[(slice(None), slice(None), *position)], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("branch", ["pixel_shift", "linear", "channel_gate"])
def test_kernels_everywhere_are_the_operator(branch):
    """As the kernels of ``functional.dynamic_conv``, where the window is the convolution's."""
    trained = operator(branch, "default", TRAINING, stride=2).double()
    x = torch.randn(1, 4, 7, 9, dtype=torch.float64)
    y = trained(x)
    rows, columns = y.shape[2:]
    kernels = [[dynamic_kernel(trained, x, (r, c), return_bias=True) for c in range(columns)] for r in range(rows)]
    kernel = torch.stack([torch.stack([k for k, _ in row], -1) for row in kernels], -2)
    bias = torch.stack([torch.stack([b for _, b in row], -1) for row in kernels], -2)
    torch.testing.assert_close(functional.dynamic_conv2d(x, kernel, bias, stride=2, padding=1), y)


@pytest.mark.parametrize("branch", WITH_KERNEL)
def test_what_has_no_kernel_at_a_pixel_is_refused_with_a_sentence(branch):
    x = torch.randn(1, 4, 7, 7)
    with pytest.raises(ValueError, match=r"call eval\(\)"):
        dynamic_kernel(XVolution2d(4, 4, 3, attention=branch), x, (0, 0))
    trained = XVolution2d(4, 4, 3, attention=branch).eval()
    for position in ((5, 0), (0, -1), (0,)):
        with pytest.raises(ValueError, match="outside of the output of 5 x 5"):
            dynamic_kernel(trained, x, position)
    with pytest.raises(ValueError, match=r"must be \(N, C_in, \.\.\.\) with 2 dimensions"):
        dynamic_kernel(trained, x[0], (0, 0))
    unfolded = XVolution2d(4, 4, 3, attention=branch, norm_layer=lambda channels: nn.GroupNorm(2, channels)).eval()
    with pytest.raises(ValueError, match=r"GroupNorm does not fold into a kernel.*use batch norm"):
        dynamic_kernel(unfolded, x, (0, 0))


@pytest.mark.parametrize("branch", sorted(set(CASES) - set(WITH_KERNEL)))
def test_a_branch_without_one_says_so(branch):
    with pytest.raises(ValueError, match="not a dynamic convolution over a window"):
        dynamic_kernel(XVolution2d(4, 4, 3, attention=branch).eval(), torch.randn(1, 4, 7, 7), (0, 0))


@pytest.mark.parametrize(
    ("other", "sentence"),
    [
        (XVolution2d(4, 4, 3, attention=None), "its kernel is the same at every pixel"),
        (
            XVolution2d(4, 4, 3, attention=nn.Conv2d(4, 4, 3)),
            "the branch Conv2d is not a dynamic convolution over a window",
        ),
        (nn.Conv2d(4, 4, 3), "takes an XVolution, got Conv2d"),
    ],
    ids=["no attention", "a module", "no operator"],
)
def test_other_modules_are_refused(other, sentence):
    with pytest.raises(ValueError, match=sentence):
        dynamic_kernel(other.eval(), torch.randn(1, 4, 7, 7), (0, 0))
