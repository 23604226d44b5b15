"""What is built has the memory format, the dtype and the device of what it replaces; else torch reorders it in every call."""

import pytest
import torch
from torch import nn

from tests.core.cases import CASES, VARIANTS
from tests.core.execution import TRAINING, layouts, operator
from tests.core.networks import SmallNet, randomize
from xvolution import XVolution2d, XVolution3d, XVolutionConfig, collapse, convert, reparameterize
from xvolution.attention import PixelShift
from xvolution.conversion.register import operator_names
from xvolution.memory_format import memory_format_of, with_format_of

FORMATS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}
DEPLOYED = [(branch, variant, layout) for branch, variant in VARIANTS for layout in layouts(branch, variant)]


def plain(memory_format, dtype=torch.float64):
    torch.manual_seed(0)
    return randomize(SmallNet()).to(dtype).to(memory_format=memory_format).eval()


def check(model, memory_format, dtype=torch.float64):
    """All weights and buffers with maps are in this format and dtype, but for vectors, which are in every format."""
    found = [tensor for tensor in (*model.parameters(), *model.buffers()) if tensor.dim() == 4 and tensor.numel() > 0]
    with_maps = [tensor for tensor in found if max(tensor.shape[1:]) > 1]
    assert with_maps
    assert {memory_format_of(tensor) for tensor in with_maps} == {memory_format}
    assert {tensor.dtype for tensor in model.parameters()} == {dtype}
    assert {tensor.device for tensor in model.parameters()} == {torch.device("cpu")}


@pytest.mark.parametrize("memory_format", FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize(("branch", "variant"), VARIANTS)
def test_convert(branch, variant, memory_format):
    config = {"attention": CASES[branch].variants[variant]}
    several = {} if branch == "gated_depthwise" else {"num_conv_branches": 2}
    for options in ({}, several, {"kernel_size": 5}):
        model = convert(plain(memory_format), XVolutionConfig(**config, **options))
        check(model, memory_format)


@pytest.mark.parametrize("memory_format", FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize("name", [name for name in operator_names() if name not in CASES])
def test_every_other_operator(name, memory_format):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)).to(
        memory_format=memory_format
    )
    model = convert(network, name, names=["1"], example_inputs=torch.randn(1, 3, 16, 16))
    check(model, memory_format, torch.float32)


@pytest.mark.parametrize("memory_format", FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize(("branch", "variant", "layout"), DEPLOYED)
def test_reparameterize(branch, variant, layout, memory_format):
    model = convert(plain(memory_format), XVolutionConfig(attention=CASES[branch].variants[variant]))
    x = torch.randn(1, 3, 12, 12, dtype=torch.float64)
    deployed = reparameterize(model, x, layout=layout, fold_norms=True)
    check(deployed, memory_format)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in deployed.modules())


@pytest.mark.parametrize("memory_format", FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize("kernel_size", [1, 3])
def test_a_window_beside_a_convolution_of_one_pixel(kernel_size, memory_format):
    trained = XVolution2d(8, 16, kernel_size, padding=kernel_size // 2).eval().to(memory_format=memory_format)
    for layout in ("split", "parts", "single"):
        check(reparameterize(trained, layout=layout), memory_format, torch.float32)


@pytest.mark.parametrize("memory_format", FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("layout", ["split", "parts", "single"])
def test_outputs_keep_the_format_of_images(layout, channels, memory_format):
    torch.manual_seed(0)
    trained = XVolution2d(4, 4, 3, padding=1, attention=PixelShift(attention_channels=channels), zero_init=False)
    deployed = reparameterize(randomize(trained).eval(), layout=layout).to(memory_format=memory_format)
    x = torch.randn(2, 4, 7, 6).to(memory_format=memory_format)
    y = deployed(x)
    assert memory_format_of(y) is memory_format
    torch.testing.assert_close(y, trained(x))


@pytest.mark.parametrize("memory_format", FORMATS.values(), ids=FORMATS)
def test_collapse(memory_format):
    model = convert(plain(memory_format), stages=(2,))
    static, _ = collapse(model, [torch.randn(4, 3, 12, 12, dtype=torch.float64)])
    check(static, memory_format)


def test_videos_and_vectors():
    trained = XVolution3d(8, 16, 3, padding=1).eval().to(memory_format=torch.channels_last_3d)
    weights = [weight for weight in reparameterize(trained).parameters() if weight.dim() == 5]
    assert {memory_format_of(weight) for weight in weights} == {torch.channels_last_3d}
    assert memory_format_of(torch.zeros(4)) is torch.contiguous_format
    module = nn.Linear(4, 4)
    assert with_format_of(torch.zeros(2, 2), module) is module


def test_a_strange_order_of_strides_counts_as_contiguous():
    assert memory_format_of(torch.zeros(2, 3, 4, 5).transpose(0, 1)) is torch.contiguous_format
    assert memory_format_of(operator("pixel_shift", "default", TRAINING).conv.weight) is torch.contiguous_format
