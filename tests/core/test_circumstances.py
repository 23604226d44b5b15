"""Conversion and deployment under inference mode, of what cannot be copied, and on devices without float64."""

import threading

import pytest
import torch
from torch import Tensor

from tests.core.networks import SmallNet, randomize
from xvolution import (
    ConversionError,
    ReparameterizationError,
    XVolution2d,
    collapse,
    convert,
    dynamic_kernel,
    numerics,
    reparameterize,
)


@pytest.fixture
def images():
    return torch.randn(2, 3, 12, 10, generator=torch.Generator().manual_seed(1))


def network():
    torch.manual_seed(0)
    return randomize(SmallNet()).eval()


def tensors(model):
    return [*model.parameters(), *model.buffers()]


def train(model, images):
    model(images).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters() if parameter.requires_grad)


@pytest.mark.parametrize("inplace", [False, True])
def test_under_inference_mode_tensors_are_normal(inplace, images):
    model, seen = network(), network()(images)
    with torch.inference_mode():
        noise = torch.randn_like(images)
        converted = convert(model, example_inputs=noise, inplace=inplace)
        acmix = convert(network(), "acmix")
        deployed = reparameterize(converted, noise, fold_norms=True)
        fused = converted.layer1.conv1.fuse()
        static, _ = collapse(converted, [noise])
        assert torch.is_inference_mode_enabled()
    for each in (converted, acmix, deployed, fused, static):
        assert not any(tensor.is_inference() for tensor in tensors(each))
    for each in (converted, deployed, static):
        assert torch.allclose(each(images), seen, atol=1e-4)
        train(each, images)
    train(acmix.train(), images)


def test_weights_made_under_inference_mode(images):
    with torch.inference_mode():
        model = network()
    converted = convert(model, example_inputs=images)
    deployed = reparameterize(converted, images)
    for each in (converted, deployed):
        assert not any(tensor.is_inference() for tensor in tensors(each))
        with torch.no_grad():
            assert torch.equal(converted(images), model(images))
    with pytest.raises(ConversionError, match=r"created under torch\.inference_mode.*or use inplace=False"):
        convert(model, inplace=True)


class Locked(SmallNet):
    """Holds what cannot be copied."""

    def __init__(self):
        super().__init__()
        self.layer1.lock = threading.Lock()


def test_what_cannot_be_copied_is_changed_in_place(images):
    torch.manual_seed(0)
    model = randomize(Locked()).eval()
    expected = model(images)
    with pytest.raises(ConversionError, match=r"^Locked cannot be copied \(.*lock.*\); give inplace=True"):
        convert(model)
    converted = convert(model, inplace=True)
    assert torch.equal(converted(images), expected)
    with pytest.raises(ReparameterizationError, match=r"^Locked cannot be copied \(.*lock.*\); give inplace=True"):
        reparameterize(converted)
    deployed = reparameterize(converted, images, inplace=True)
    assert torch.allclose(deployed(images), expected, atol=1e-5)


@pytest.mark.parametrize("tampered", [False, True])
def test_an_operator_that_cannot_be_copied_is_checked_in_its_own_dtype(tampered):
    operator = randomize(XVolution2d(4, 8, 3, padding=1, zero_init=False)).eval()
    operator.conv.lock = threading.Lock()
    x = torch.randn(2, 4, 9, 8)
    if not tampered:
        assert torch.allclose(operator.fuse()(x), operator(x), atol=1e-5)
        return
    operator._convolve = lambda x, value: value
    with pytest.raises(ReparameterizationError, match="does not compute the same as its deployed form"):
        operator.fuse()


@pytest.fixture
def without_float64(monkeypatch):
    """The CPU behaves as a device without fp64; what was moved to a CPU is told by a wrapper around ``Tensor.cpu``."""
    moved = set()
    to_cpu, double = Tensor.cpu, Tensor.double

    def cpu(tensor, *args, **options):
        copy = to_cpu(tensor, *args, **options).clone()
        moved.add(copy.data_ptr())
        return copy

    def checked_double(tensor, *args, **options):
        if tensor.is_floating_point() and tensor.numel() and tensor.data_ptr() not in moved:
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64")
        return double(tensor, *args, **options)

    monkeypatch.setattr(numerics, "has_float64", lambda device_type: False)
    monkeypatch.setattr(Tensor, "cpu", cpu)
    monkeypatch.setattr(Tensor, "double", checked_double)


@pytest.mark.parametrize(
    "attention", ["pixel_shift", "pixel_shift_dot", "linear", "global", "channel_gate", "gated_depthwise", None]
)
def test_devices_without_float64_fold_and_compare_on_the_cpu(attention, images, without_float64):
    model = network()
    with pytest.raises(TypeError, match="MPS"):
        model.stem.weight.double()
    config = "xvolution" if attention is None else attention
    converted = randomize(convert(model, config, example_inputs=images)).eval()
    deployed = reparameterize(converted, images, fold_norms=True)
    assert torch.allclose(deployed(images), converted(images), atol=1e-4)
    assert {tensor.dtype for tensor in tensors(deployed) if tensor.is_floating_point()} == {torch.float32}
    assert dynamic_kernel(XVolution2d(3, 4, 3).eval(), images, (1, 2)).dtype == torch.float32
    static, _ = collapse(converted, [images])
    assert static(images).shape == converted(images).shape


def test_which_devices_have_float64():
    assert numerics.has_float64("cpu")
    assert numerics.has_float64("meta")
