"""The GPU's kernels against the portable ones, outputs and gradients, on a GPU and through Triton's interpreter on the CPU.

Triton reads ``TRITON_INTERPRET`` when it is imported, so the comparison on the CPU runs in a process of its own.
"""

import os
import subprocess
import sys
from copy import deepcopy
from importlib.util import find_spec

import pytest
import torch
import torch.nn.functional as F

from xvolution import XVolution2d
from xvolution.kernels import branch as algebra
from xvolution.kernels import gate as portable
from xvolution.kernels.branch import Branch
from xvolution.kernels.gate import Gate
from xvolution.nn import fused

#: Batch, attention channels, height, width, kernel, stride, padding, dilation, gate, with a mean term.
CASES = {
    "odd sizes": (2, 5, 7, 9, (3, 3), (1, 1), (1, 1), (1, 1), "sigmoid", True),
    "two blocks of channels": (1, 70, 5, 6, (3, 3), (1, 1), (1, 1), (1, 1), "identity", False),
    "stride and dilation": (3, 6, 8, 9, (3, 2), (2, 1), (2, 0), (2, 1), "tanh", True),
    "several blocks of pixels": (3, 4, 21, 20, (1, 3), (1, 2), (0, 1), (1, 1), "sigmoid", True),
}
#: Largest error against float64, relative to the largest number of a tensor.
TOLERANCES = {torch.float32: 4e-6, torch.bfloat16: 2e-2, torch.float16: 1e-3}


def branch_of(batch, channels, height, width, kernel, stride, padding, dilation, function, mean, dtype, device="cpu"):
    generator = torch.Generator().manual_seed(0)

    def random(*shape):
        return torch.randn(*shape, generator=generator).to(device)

    key, window = random(batch, channels, height, width), random(channels, 1, *kernel)
    query = random(*F.conv2d(key, window, None, stride, padding, dilation, channels).shape)
    read = (query.to(dtype), key.to(dtype), window, random(channels) if mean else None)
    affine = (random(2, channels), random(2, channels))
    gate = Gate(*read, *affine, 1e-5, 1e-4, function, stride, padding, dilation)
    return Branch(gate, random(2 * channels, channels, 1, 1), random(2, 2 * channels), 1e-3)


def step(branch, backend):
    """Every output and gradient of the branch."""
    generator = torch.Generator().manual_seed(1)
    shape = (len(branch.gate.query), len(branch.value), *branch.gate.query.shape[2:])
    # Numbers that every dtype has
    y, cotangent = (torch.randn(shape, generator=generator).bfloat16().to(branch.gate.query) for _ in range(2))
    output, statistics = algebra.add_to(y, branch, backend)
    inputs, value, affine = algebra.gradients(branch, cotangent, statistics, backend)
    return [output, *statistics, *(x for x in inputs if x is not None), value, affine]


def in_double(branch):
    """The same numbers, to be computed with in float64."""
    gate = {name: x.double() if isinstance(x, torch.Tensor) else x for name, x in vars(branch.gate).items()}
    return Branch(Gate(**gate), branch.value.double(), branch.affine.double(), branch.eps)


def relative_error(actual, expected):
    return ((actual.double() - expected).abs().max() / expected.abs().max()).item()


def tolerance(dtype, portable, expected):
    """What the dtype allows; on a GPU twice what the portable operators are off by there, where that is more."""
    return max(TOLERANCES[dtype], 2 * relative_error(portable, expected) if expected.is_cuda else 0.0)


def compare(case, dtype, device="cpu"):
    from xvolution.kernels import triton_gate

    branch = branch_of(*CASES[case], dtype, device)
    assert triton_gate.serves(branch.gate)
    computed = (step(branch, triton_gate), step(branch, portable), step(in_double(branch), portable))
    for actual, usual, expected in zip(*computed, strict=True):
        assert actual.shape == expected.shape
        error, allowed = relative_error(actual, expected), tolerance(dtype, usual, expected)
        assert error < allowed, f"{case}, {dtype}: relative error {error:.1e} in {tuple(actual.shape)}"


@pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")
@pytest.mark.skipif(sys.platform != "linux", reason="triton needs Linux")
def test_kernels_compute_what_the_portable_ones_do():
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    run = subprocess.run([sys.executable, __file__], env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr


gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")


@gpu
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("case", CASES)
def test_kernels_compute_it_on_a_gpu(case, dtype):
    with torch.backends.cudnn.flags(allow_tf32=False):
        compare(case, dtype, "cuda")


@gpu
@pytest.mark.parametrize("kernel_size", [3, 5])
def test_an_operator_trains_on_a_gpu_as_it_does_on_the_cpu(kernel_size, monkeypatch):
    monkeypatch.setattr(fused, "DEVICES", {"cpu", "cuda"})
    torch.manual_seed(0)
    operator = XVolution2d(16, 24, kernel_size, padding=kernel_size // 2, zero_init=False).double()
    x, cotangent = torch.randn(32, 16, 28, 28).double(), torch.randn(32, 24, 28, 28).double()
    expected = trained(operator, x, cotangent)
    with torch.backends.cudnn.flags(allow_tf32=False):
        on_gpu = trained(deepcopy(operator).float().cuda(), x.float().cuda(), cotangent.float().cuda())
        for actual, right in zip(on_gpu, expected, strict=True):
            if right.abs().max() > 1e-6:  # a bias before a batch norm has no gradient but what rounding leaves
                assert relative_error(actual.cpu(), right) < 1e-4


def trained(operator, x, cotangent):
    """The output in train mode, and the gradient of every parameter."""
    operator.zero_grad()
    y = operator(x)
    y.backward(cotangent)
    return [y.detach(), *(parameter.grad for parameter in operator.parameters())]


def test_other_dimensions_and_dtypes_take_the_portable_ones():
    if find_spec("triton") is None:
        pytest.skip("triton is not installed")
    from xvolution.kernels import triton_gate

    gate = branch_of(*CASES["odd sizes"], torch.float64).gate
    assert not triton_gate.serves(gate)


if __name__ == "__main__":
    torch.set_num_threads(1)
    for name in CASES:
        compare(name, torch.float32)
    for half in (torch.bfloat16, torch.float16):
        compare("odd sizes", half)
