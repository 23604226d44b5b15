"""Mixed precision, memory format, activation checkpointing and moving averages, in training and in deployment."""

import copy

import pytest
import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.checkpoint import checkpoint

from tests.core.execution import BRANCHES, FORMS, images, network, operator
from xvolution import XVolution2d, reparameterize
from xvolution.nn.geometry import image_mean


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 3e-2), (torch.float16, 5e-3)])
@pytest.mark.parametrize(("branch", "form"), FORMS)
def test_autocast_stays_close(branch, form, dtype, tolerance):
    model, x = network(branch, form), images()
    with torch.autocast("cpu", dtype=dtype):
        y = model(x)
    y.float().square().sum().backward()
    assert y.dtype == dtype
    expected = model(x)
    assert ((y.float() - expected).abs().max() / expected.abs().max()).item() < tolerance
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize(("branch", "form"), FORMS)
def test_channels_last_goes_in_and_comes_out(branch, form):
    module = operator(branch, form).to(memory_format=torch.channels_last)
    x = images(channels=4)
    y = module(x.to(memory_format=torch.channels_last))
    assert y.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(y, operator(branch, form)(x), rtol=1e-4, atol=1e-5)
    assert operator(branch, form)(x).is_contiguous()


@pytest.mark.parametrize("images", [1, 8], ids=["modules", "fused"])
@pytest.mark.parametrize("branch", ["pssa", "image"])
def test_the_gradient_of_channels_last_is_channels_last(branch, images):
    """A gradient in another memory format is as right, and slows everything down that takes it from there."""
    module = XVolution2d(64, 64, 3, padding=1, attention=branch).to(memory_format=torch.channels_last)
    x = torch.randn(images, 64, 32, 32).contiguous(memory_format=torch.channels_last).requires_grad_()
    formats = []
    operand = x.relu()
    operand.register_hook(lambda grad: formats.append(grad.is_contiguous(memory_format=torch.channels_last)))
    module(operand).square().sum().backward()
    assert formats == [True]


@pytest.mark.parametrize("size", [(9,), (6, 5), (1, 1), (4, 3, 5)], ids=str)
@pytest.mark.parametrize("channels_last", [False, True])
def test_the_mean_of_an_image(size, channels_last):
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    x = (x.movedim(1, -1).contiguous().movedim(-1, 1) if channels_last else x).requires_grad_()
    expected = x.mean(tuple(range(2, x.dim())), keepdim=True)
    torch.testing.assert_close(image_mean(x), expected, rtol=1e-12, atol=1e-12)
    assert torch.autograd.gradcheck(image_mean, x)
    assert torch.autograd.gradgradcheck(lambda x: image_mean(x).square(), x)


@pytest.mark.parametrize(("branch", "form"), FORMS)
def test_activation_checkpointing_changes_no_gradient(branch, form):
    model, x = network(branch, form), images()
    saving = copy.deepcopy(model)
    model(x).square().sum().backward()
    y = saving.stem_norm(saving.stem(x)).relu()
    for stage in (saving.layer1, saving.layer2):
        y = checkpoint(stage, y, use_reentrant=False)
    saving.head(y.mean((2, 3))).square().sum().backward()
    for expected, actual in zip(model.parameters(), saving.parameters(), strict=True):
        torch.testing.assert_close(actual.grad, expected.grad)


@pytest.mark.parametrize("branch", BRANCHES)
def test_a_moving_average_reparameterizes(branch):
    model, x = network(branch, "training").train(), images()
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.5), use_buffers=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
        average.update_parameters(model)
    average.eval()
    torch.testing.assert_close(reparameterize(average, x)(x), average(x), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(average(x), model.eval()(x))


def test_a_moving_average_of_timm_reparameterizes():
    utils = pytest.importorskip("timm.utils")
    model, x = network("pssa", "training"), images()
    average = utils.ModelEmaV3(model, decay=0.5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.1)
    average.update(model)
    deployed = reparameterize(average.module.eval(), x)
    torch.testing.assert_close(deployed(x), average(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("images", [1, 32], ids=["modules", "fused"])
@pytest.mark.parametrize(
    "options",
    [
        {"shift_distance": 2},
        {"shift_distance": [1, 3]},
        {"dilation": 2},
        {"stride": 2},
        {"stride": 2, "shift_distance": 2},
        {"window": 5},
    ],
    ids=str,
)
@pytest.mark.parametrize("kernel_size", [3, 4])
def test_the_gradient_of_windows_in_bfloat16(images, options, kernel_size):
    """In channels-last, torch's own weight gradient of a dilated depthwise convolution is memory that nobody wrote."""
    torch.manual_seed(0)
    options = {"padding": "same_upper", "zero_init": False} | options
    module = XVolution2d(64, 64, kernel_size, **options)
    module = module.to(memory_format=torch.channels_last)
    x = torch.randn(images, 64, 32, 32).contiguous(memory_format=torch.channels_last)
    cotangent = torch.randn_like(module(x))

    def gradients(enabled):
        module.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            y = module(x)
        (y.float() * cotangent).sum().backward()
        return [window.weight.grad.clone() for window in module.attention.windows]

    for expected, found in zip(gradients(False), gradients(True), strict=True):
        assert ((found - expected).norm() / expected.norm()).item() < 0.1
