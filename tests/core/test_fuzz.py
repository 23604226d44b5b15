"""Random operators in every dimension, dtype, memory format, norm and layout: one property, as many cases as asked for.

``XVOLUTION_FUZZ_CASES`` is the number of cases over all parameters (``make fuzz`` asks for 20,000); the worst errors are appended
to the file ``XVOLUTION_FUZZ_REPORT`` names, if it does.
"""

import copy
import json
import os

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.core.networks import inputs_for, operators
from xvolution import reparameterize
from xvolution.deploy.deployed import DeployedXVolution

CASES = int(os.environ.get("XVOLUTION_FUZZ_CASES", "240"))
REPORT = os.environ.get("XVOLUTION_FUZZ_REPORT")

#: Relative error of one operator that rounding explains. bfloat16 and float16 keep 8 and 11 bits of each product.
ALLOWED = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 6e-2, torch.float16: 1e-2}
MEMORY_FORMATS = {1: [None], 2: [None, torch.channels_last], 3: [None, torch.channels_last_3d]}


def relative_error(expected, actual):
    return ((expected - actual).abs().max() / expected.abs().max().clamp(min=1e-30)).item()


@pytest.mark.parametrize("branch", ["hadamard", "dot", "linear", "global", "image", "shared"])
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_the_deployed_form_is_the_trained_one(dims, branch):
    worst, cases = dict.fromkeys(map(str, ALLOWED), 0.0), 0

    @settings(max_examples=max(CASES // 12, 1), deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(
        operators((branch,), (dims,), ("batch", "batch", "none", "group", "instance")),
        st.sampled_from(["single", "split"]),
        st.sampled_from(list(ALLOWED)),
        st.sampled_from(MEMORY_FORMATS[dims]),
        st.booleans(),
    )
    def check(operator, layout, dtype, memory_format, batched):
        nonlocal cases
        cases += 1
        x = inputs_for(operator)
        if memory_format is not None:
            operator, x = operator.to(memory_format=memory_format), x.contiguous(memory_format=memory_format)
        low = copy.deepcopy(operator).to(dtype)
        x = x.to(dtype) if batched else x[0].to(dtype)
        with torch.no_grad():
            expected = low(x)
            deployed = reparameterize(low, layout=layout)
            error = relative_error(expected.double(), deployed(x).double())
            wide = operator(x.double())
        assert isinstance(deployed, DeployedXVolution)
        assert expected.dtype == dtype
        assert expected.shape == low.conv(x).shape
        assert torch.isfinite(expected).all()
        # An instance or group norm of an almost constant map divides rounding by almost nothing, in the trained form as well:
        # there both forms are as far from fp64 as from each other. A trained form in fp64 has no such excuse.
        trained_error = relative_error(wide, expected.double())
        assert error <= ALLOWED[dtype] + 4 * trained_error
        # The low-precision form computes the same function as the one in fp64.
        assert relative_error(wide, deployed(x).double()) <= 4 * (ALLOWED[dtype] + trained_error)
        worst[str(dtype)] = max(worst[str(dtype)], error)

    check()
    if REPORT:
        with open(REPORT, "a", encoding="utf-8") as report:
            report.write(json.dumps({"dims": dims, "branch": branch, "cases": cases, "worst": worst}) + "\n")
