"""The deployed form is exactly the trained one, over random geometries and random statistics."""

import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tests.core.networks import SmallNet, inputs_for, operators, randomize
from xvolution import (
    ReparameterizationError,
    XVolution2d,
    XVolutionConfig,
    collapse,
    convert,
    dynamic_kernel,
    functional,
    layouts_of,
    reparameterize,
)
from xvolution.deploy.fold import fold, union_of
from xvolution.nn.geometry import Geometry


def relative_error(expected, actual):
    return ((expected - actual).abs().max() / expected.abs().max()).item()


@settings(max_examples=30, deadline=None)
@given(operators())
def test_layout_auto_is_exact_and_leaves_no_batch_norm(operator):
    x = inputs_for(operator)
    deployed = reparameterize(operator, x, layout="auto")
    assert relative_error(operator(x), deployed(x)) <= 1e-12
    assert not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in deployed.modules())


@pytest.mark.parametrize("branch", ["hadamard", "dot", "linear", "image", "shared"])
@settings(max_examples=30, deadline=None)
@given(st.data())
def test_the_dynamic_kernel_reproduces_the_output(branch, data):
    operator = data.draw(operators(branches=(branch,)))
    x = inputs_for(operator)
    y = operator(x)
    position = tuple(data.draw(st.integers(0, size - 1)) for size in y.shape[2:])
    kernel, bias = dynamic_kernel(operator, x, position, return_bias=True)
    folded = fold(operator)
    geometry = folded.convolution.geometry
    if folded.gate is not None:
        geometry = union_of(folded.convolution, folded.gate)
    elif hasattr(operator.attention, "shifts"):
        geometry = geometry.union([operator.attention.shifts])
    elif folded.shared is not None:
        geometry = geometry.followed_by(Geometry.of(operator.attention.window))
    assert kernel.shape == (2, 16, 8 // operator.groups, *geometry.kernel_size)
    taps = functional.window_taps(geometry.pad(x), geometry.kernel_size, geometry.stride, geometry.dilation)
    patch = torch.stack([tap[(slice(None), slice(None), *position)] for tap in taps], 2).unflatten(
        1, (operator.groups, -1)
    )
    product = torch.einsum("ngit,ngoit->ngo", patch, kernel.flatten(3).unflatten(1, (operator.groups, -1))).flatten(1)
    torch.testing.assert_close(product + bias, y[(slice(None), slice(None), *position)], rtol=1e-10, atol=1e-12)


def test_dynamic_kernels_everywhere_are_the_operator():
    operator = randomize(XVolution2d(4, 6, 3, 2, 1, zero_init=False, dtype=torch.float64)).eval()
    x = torch.randn(1, 4, 7, 9, dtype=torch.float64)
    y = operator(x)
    rows, columns = y.shape[2:]
    kernels = [[dynamic_kernel(operator, x, (r, c), return_bias=True) for c in range(columns)] for r in range(rows)]
    kernel = torch.stack([torch.stack([k for k, _ in row], -1) for row in kernels], -2)
    bias = torch.stack([torch.stack([b for _, b in row], -1) for row in kernels], -2)
    torch.testing.assert_close(functional.dynamic_conv2d(x, kernel, bias, stride=2, padding=1), y)


@pytest.mark.parametrize(
    ("operator", "position", "sentence"),
    [
        (XVolution2d(8, 16, 3, attention=None).eval(), (0, 0), "its kernel is the same at every pixel"),
        (XVolution2d(4, 4, 3), (0, 0), "call eval"),
        (XVolution2d(4, 4, 3).eval(), (9, 0), "outside of the output of 5 x 5"),
        (XVolution2d(4, 4, 3, attention="global").eval(), (0, 0), "no dynamic convolution over a window"),
        (XVolution2d(4, 4, 3, norm_layer=lambda c: nn.GroupNorm(2, c)).eval(), (0, 0), "use batch norm"),
        (nn.Conv2d(4, 4, 3), (0, 0), "takes an XVolution"),
    ],
)
def test_dynamic_kernel_refuses_with_a_sentence(operator, position, sentence):
    with pytest.raises(ValueError, match=sentence):
        dynamic_kernel(operator, torch.randn(1, 4, 7, 7), position)


@pytest.mark.parametrize("query_context", [False, True])
@pytest.mark.parametrize("global_term", [False, True])
def test_the_single_layout_is_one_standard_convolution_and_a_gate(global_term, query_context):
    options = {"attention_ratio": 0.25, "global_term": global_term, "query_context": query_context}
    operator = XVolution2d(8, 16, 3, padding=1, **options).eval()
    shapes = {
        name: (type(module), module.in_channels, module.out_channels, module.kernel_size)
        for name, module in reparameterize(operator, layout="single").named_modules()
        if isinstance(module, nn.Conv2d)
    }
    expected = {"conv": (nn.Conv2d, 8, 16 + 2 * 4, (3, 3)), "value": (nn.Conv2d, 4, 16, (1, 1))}
    if global_term or query_context:
        expected["context"] = (nn.Conv2d, 8, 4 * (global_term + query_context), (1, 1))
    assert shapes == expected


@pytest.fixture
def network():
    torch.manual_seed(0)
    return randomize(convert(SmallNet(), XVolutionConfig(gate="tanh", window_norm=True))).eval()


@pytest.fixture
def images():
    return torch.randn(2, 3, 16, 16)


@pytest.mark.parametrize("layout", ["auto", "single", "split"])
def test_networks_reparameterize(network, images, layout):
    deployed = reparameterize(network, images, layout=layout)
    assert relative_error(network(images), deployed(images)) <= 1e-5
    assert not any(isinstance(module, XVolution2d) for module in deployed.modules())
    assert any(isinstance(module, XVolution2d) for module in network.modules())
    assert set(layouts_of(deployed)) == {"layer1.conv1", "layer1.conv2", "layer2.conv1", "layer2.conv2"}
    assert isinstance(deployed.stem_norm, nn.BatchNorm2d)


@pytest.mark.parametrize("with_example", [True, False])
def test_other_norms_fold_on_request(network, images, with_example):
    deployed = reparameterize(network, images if with_example else None, fold_norms=True)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in deployed.modules())
    assert not any(module.training for module in deployed.modules())
    assert relative_error(network(images), deployed(images)) <= 1e-5


def test_a_deployed_state_dict_loads_into_a_freshly_built_deployed_model(network, images):
    deployed = reparameterize(network, images)
    fresh = convert(SmallNet(), XVolutionConfig(gate="tanh", window_norm=True)).eval()
    fresh = reparameterize(fresh, layout=layouts_of(deployed))
    fresh.load_state_dict(deployed.state_dict())
    assert torch.equal(fresh(images), deployed(images))


def test_timm_reparameterizes_as_we_do(network, images):
    timm = pytest.importorskip("timm")
    deployed = timm.utils.reparameterize_model(network)
    assert not any(isinstance(module, XVolution2d) for module in deployed.modules())
    assert relative_error(network(images), deployed(images)) <= 1e-5
    with pytest.raises(ReparameterizationError, match=r"call model\.eval"):
        timm.utils.reparameterize_model(network.train())


def test_train_mode_is_refused_anywhere_in_the_model(network):
    network.layer2.conv1.attention_norm.train()
    with pytest.raises(
        ReparameterizationError, match=r"layer2\.conv1\.attention_norm is in train mode.*call model\.eval"
    ):
        reparameterize(network)


def test_unknown_layouts_are_refused(network):
    with pytest.raises(ValueError, match=r"layout is 'fast'; allowed are 'auto', 'single', 'split'"):
        reparameterize(network, layout="fast")
    with pytest.raises(ValueError, match=r"no layout for layer1\.conv1"):
        reparameterize(network, layout={})


def test_the_first_module_that_differs_is_named(network, images, monkeypatch):
    module = sys.modules["xvolution.deploy.reparameterize"]
    broken = network.layer1.conv2
    fold_right = module.fold

    def fold_wrong(operator):
        folded = fold_right(operator)
        if operator.conv.weight.data_ptr() != 0 and torch.equal(operator.conv.weight, broken.conv.weight):
            folded.convolution.bias += 1
        return folded

    monkeypatch.setattr(module, "fold", fold_wrong)
    with pytest.raises(ReparameterizationError, match=r"first module that differs is layer1\.conv2"):
        reparameterize(network, images)


@pytest.mark.parametrize(
    "options",
    [
        {"norm_layer": lambda channels: nn.GroupNorm(2, channels)},
        {"norm_layer": lambda channels: nn.BatchNorm2d(channels, track_running_stats=False)},
        {"attention": nn.Conv2d(8, 16, 1)},
    ],
)
def test_what_does_not_fold_stays(options):
    operator = XVolution2d(8, 16, 3, padding=1, zero_init=False, dtype=torch.float64, **options).double().eval()
    x = torch.randn(2, 8, 9, 9, dtype=torch.float64)
    for layout in ("single", "split"):
        assert relative_error(operator(x), reparameterize(operator, layout=layout)(x)) <= 1e-12


def test_collapse_recovers_an_operator_that_is_static():
    operator = randomize(XVolution2d(4, 8, 3, 2, 1, groups=2, dtype=torch.float64)).eval()
    nn.init.zeros_(operator.attention_norm.weight)
    static, report = collapse(operator, [torch.randn(4, 4, 12, 12, dtype=torch.float64)])
    assert type(static) is nn.Conv2d
    assert report.output < 1e-6
    x = torch.randn(1, 4, 9, 9, dtype=torch.float64)
    torch.testing.assert_close(static(x), operator(x), rtol=1e-5, atol=1e-6)


def test_collapse_is_the_least_squares_solution():
    torch.manual_seed(0)
    operator = randomize(XVolution2d(3, 4, 3, padding=1, zero_init=False, dtype=torch.float64)).eval()
    batches = [torch.randn(4, 3, 10, 10, dtype=torch.float64) + 1 for _ in range(2)]
    static, report = collapse(operator, batches)
    x = torch.cat(batches)
    patches = nn.functional.unfold(x, 3, padding=1).transpose(1, 2).flatten(0, 1)
    patches = torch.cat([patches, torch.ones_like(patches[:, :1])], 1)
    y = operator(x).flatten(2).transpose(1, 2).flatten(0, 1)
    solution = torch.linalg.lstsq(patches, y).solution
    torch.testing.assert_close(static.weight.flatten(1).T, solution[:-1], rtol=1e-5, atol=1e-6)
    expected = ((static(x) - operator(x)).norm() / operator(x).norm()).item()
    assert report.output == pytest.approx(expected, rel=1e-6)
    assert report.layers[""] == pytest.approx(expected, rel=1e-4)
    assert 0 < expected < 1


def test_collapse_of_a_network(network, images):
    static, report = collapse(network, [images, (torch.randn(2, 3, 16, 16),)])
    assert not any(isinstance(module, XVolution2d) for module in static.modules())
    assert set(report.layers) == {"layer1.conv1", "layer1.conv2", "layer2.conv1", "layer2.conv2"}
    assert "model output" in str(report)
    with pytest.raises(ValueError, match="no batch"):
        collapse(network, [])
    with pytest.raises(ValueError, match="no X-volution"):
        collapse(SmallNet().eval(), [images])
    with pytest.raises(ReparameterizationError, match="train mode"):
        collapse(network.train(), [images])
