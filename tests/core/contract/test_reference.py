"""Outputs and gradients of every branch are those of its slow reference."""

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tests.core import references
from tests.core.cases import CASES
from tests.core.strategies import inputs_for, operators


@pytest.mark.parametrize("branch", CASES)
@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_outputs_and_gradients_are_those_of_the_reference(branch, data):
    operator = data.draw(operators((branch,)))
    assume(not _attends_by_sign(operator))
    x = inputs_for(operator).requires_grad_()
    expected = operator.attention_norm(CASES[branch].reference(operator, x))
    expected = expected + references.convolution_branch(operator, x)
    actual = operator(x)
    assert actual.shape == operator.conv(x).shape
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)
    probe, inputs = torch.randn_like(actual), [x, *operator.parameters()]
    found, wanted = (torch.autograd.grad((y * probe).sum(), inputs, materialize_grads=True) for y in (actual, expected))
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-11)


def _attends_by_sign(operator):
    """Whether heads of one channel are normalized, to ±1: their gradient is 0, and rounding over the channel in both forms."""
    temperature = getattr(operator.attention, "temperature", None)
    return temperature is not None and len(temperature) == operator.attention.query.out_channels
