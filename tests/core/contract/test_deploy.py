"""Deployed forms are exactly the trained ones: every layout, dtype, dimension and memory format, whatever the norms.

``XVOLUTION_FUZZ_CASES`` is the number of random operators (``make fuzz`` searches longer, see ``benchmarks/fuzz.py``); the worst
errors are appended to the file that ``XVOLUTION_FUZZ_REPORT`` names, if it does.
"""

import copy
import json
import os

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from tests.core.cases import CASES, VARIANTS
from tests.core.execution import TRAINING, images, layouts, network, operator, relative_error
from tests.core.networks import SmallNet, randomize
from tests.core.strategies import inputs_for, operators
from xvolution import XVolution3d, XVolutionConfig, convert, layouts_of, reparameterize, unfolded_of
from xvolution.attention.deployed import DeployedOperator
from xvolution.attention.folded import LayoutError
from xvolution.operator import fold

FUZZED = int(os.environ.get("XVOLUTION_FUZZ_CASES", "240"))
REPORT = os.environ.get("XVOLUTION_FUZZ_REPORT")

#: Relative error of one operator that rounding explains. bfloat16 and float16 keep 8 and 11 bits of each product.
ALLOWED = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 6e-2, torch.float16: 1e-2}
MEMORY_FORMATS = {1: [None], 2: [None, torch.channels_last], 3: [None, torch.channels_last_3d]}
DEPLOYED = [(branch, variant, layout) for branch, variant in VARIANTS for layout in layouts(branch, variant)]


@pytest.mark.parametrize("branch", CASES)
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_the_deployed_form_is_the_trained_one(dims, branch):
    worst, cases = dict.fromkeys(map(str, ALLOWED), 0.0), 0

    @settings(
        max_examples=max(FUZZED // (3 * len(CASES)), 1),
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(
        operators((branch,), (dims,), ("batch", "batch", "none", "group", "instance")),
        st.integers(0, 1),
        st.sampled_from(list(ALLOWED)),
        st.sampled_from(MEMORY_FORMATS[dims]),
        st.booleans(),
    )
    def check(trained, choice, dtype, memory_format, batched):
        nonlocal cases
        cases += 1
        x = inputs_for(trained)
        if memory_format is not None:
            trained, x = trained.to(memory_format=memory_format), x.contiguous(memory_format=memory_format)
        low = copy.deepcopy(trained).to(dtype)
        x = x.to(dtype) if batched else x[0].to(dtype)
        layout = fold(low).layouts[choice % len(fold(low).layouts)]
        with torch.no_grad():
            expected = low(x)
            deployed = reparameterize(low, layout=layout)
            error = relative_error(expected.double(), deployed(x).double())
            wide = trained(x.double())
        assert isinstance(deployed, DeployedOperator)
        assert layouts_of(deployed) == {"": layout}
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


@pytest.mark.parametrize("branch", CASES)
@settings(max_examples=10, deadline=None)
@given(data=st.data())
def test_every_layout_is_exact_and_leaves_no_batch_norm(branch, data):
    trained = data.draw(operators((branch,)))
    x = inputs_for(trained)
    for layout in (*fold(trained).layouts, "auto"):
        deployed = reparameterize(trained, x, layout=layout)
        assert relative_error(trained(x), deployed(x)) <= 1e-12
        assert not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in deployed.modules())
        assert not unfolded_of(deployed)


@pytest.mark.parametrize(("branch", "variant"), VARIANTS)
def test_layouts_that_there_are_not_are_refused_with_those_there_are(branch, variant):
    trained, there = operator(branch, variant, TRAINING), layouts(branch, variant)
    assert set(there) <= {"single", "split", "parts"}
    for layout in {"single", "split", "parts", "fast"} - set(there):
        listed = ", ".join(map(repr, there))
        with pytest.raises(LayoutError, match=f"the operator: it has no layout '{layout}'; it has {listed}; give one"):
            reparameterize(trained, layout=layout)
        with pytest.raises(LayoutError, match=r"layer1\.conv1: it has no layout"):
            reparameterize(network(branch, variant, TRAINING), layout=layout)


@pytest.mark.parametrize("norm", ["group", "layer", "none"])
@pytest.mark.parametrize(("branch", "variant"), VARIANTS)
def test_norms_that_cannot_fold_stay(branch, variant, norm):
    layers = pytest.importorskip("timm.layers")
    norm_layer = {"group": lambda channels: nn.GroupNorm(2, channels), "layer": layers.LayerNorm2d, "none": None}[norm]
    plain = SmallNet()
    for stage in (plain.layer1, plain.layer2):
        stage.norm1 = stage.norm2 = nn.Identity() if norm_layer is None else norm_layer(8)
    config = XVolutionConfig(attention=CASES[branch].variants[variant], norm_layer=norm_layer, zero_init=False)
    model = randomize(convert(plain, config)).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.rand_like(parameter))
    x = images().double()
    for layout in fold(model.layer1.conv1).layouts:
        deployed = reparameterize(model, x, layout=layout, rtol=1e-11, atol=1e-11)
        kept = {name.split(".")[-1] for name in unfolded_of(deployed) if name.startswith("layer1.conv1.")}
        assert kept == (set() if norm == "none" else {"attention_norm"})


@pytest.mark.parametrize(("branch", "variant", "layout"), DEPLOYED)
@pytest.mark.parametrize("channels_last", [False, True])
def test_deployed_weights_keep_the_memory_format(branch, variant, layout, channels_last):
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    trained = operator(branch, variant, TRAINING).to(memory_format=memory_format)
    for deployed in (
        reparameterize(trained, layout=layout),
        reparameterize(nn.Sequential(trained).eval(), layout=layout),
    ):
        weights = [weight for weight in deployed.parameters() if weight.dim() == 4]
        assert any(max(weight.shape[2:]) > 1 for weight in weights)
        assert all(weight.is_contiguous(memory_format=memory_format) for weight in weights)
    assert trained.conv.weight.is_contiguous(memory_format=memory_format)


@pytest.mark.parametrize("branch", CASES)
def test_deployed_weights_of_videos_keep_the_memory_format(branch):
    trained = XVolution3d(8, 16, 3, padding=1, attention=branch).eval().to(memory_format=torch.channels_last_3d)
    for layout in fold(trained).layouts:
        deployed = reparameterize(trained, layout=layout)
        assert all(
            weight.is_contiguous(memory_format=torch.channels_last_3d)
            for weight in deployed.parameters()
            if weight.dim() == 5
        )
