"""Half precision, autocast and memory formats, in training and in deployment."""

import copy

import pytest
import torch

from tests.core.cases import VARIANTS
from tests.core.execution import CAPTURED_FORMS, FORMS, TRAINING, build, images, layouts, network, operator
from tests.core.networks import randomize
from xvolution import ReparameterizationError, XVolution2d, reparameterize
from xvolution.attention import ChannelGate


@pytest.mark.parametrize(("branch", "variant"), VARIANTS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 0.01), (torch.bfloat16, 0.06)])
def test_half_precision_computes_the_same(branch, variant, dtype, tolerance):
    torch.manual_seed(0)
    x = torch.randn(2, 16, 12, 12).to(dtype)
    low = randomize(build(branch, variant, 16, 16, 3, padding=1, zero_init=False)).eval().to(dtype)
    expected = copy.deepcopy(low).double()(x.double())
    for layer in (low, *(reparameterize(low, layout=layout) for layout in layouts(branch, variant))):
        assert layer(x).dtype == dtype
        assert (layer(x).double() - expected).abs().max() / expected.abs().max() < tolerance


@pytest.mark.parametrize(("branch", "variant"), VARIANTS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("zero_init", [True, False])
def test_activations_of_a_thousand_do_not_overflow(branch, variant, dtype, zero_init):
    torch.manual_seed(0)
    x = 1e3 * torch.randn(2, 16, 12, 12)
    layer = build(branch, variant, 16, 16, 3, padding=1, zero_init=zero_init)
    low = copy.deepcopy(layer).eval().to(dtype)
    with torch.autocast("cpu", dtype=dtype):
        y = layer(x)
    assert torch.isfinite(y).all()
    y.float().square().mean().backward()
    assert all(torch.isfinite(p.grad).all() for p in layer.parameters())
    assert torch.isfinite(low(x.to(dtype))).all()
    for layout in layouts(branch, variant):
        assert torch.isfinite(reparameterize(low, layout=layout)(x.to(dtype))).all()
        with torch.autocast("cpu", dtype=dtype):
            y = reparameterize(layer.eval(), layout=layout)(x)
        assert y.dtype == dtype
        assert torch.isfinite(y).all()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 3e-2), (torch.float16, 5e-3)])
@pytest.mark.parametrize(("branch", "variant", "form"), CAPTURED_FORMS)
def test_autocast_stays_close(branch, variant, form, dtype, tolerance):
    model, x = network(branch, variant, form), images()
    with torch.autocast("cpu", dtype=dtype):
        y = model(x)
    y.float().square().sum().backward()
    assert y.dtype == dtype
    expected = model(x)
    assert ((y.float() - expected).abs().max() / expected.abs().max()).item() < tolerance
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize(("branch", "variant", "form"), FORMS)
def test_channels_last_goes_in_and_comes_out(branch, variant, form):
    module = operator(branch, variant, form).to(memory_format=torch.channels_last)
    x = images(channels=4)
    y = module(x.to(memory_format=torch.channels_last))
    assert y.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(y, operator(branch, variant, form)(x), rtol=1e-4, atol=1e-5)
    assert operator(branch, variant, form)(x).is_contiguous()


@pytest.mark.parametrize(("branch", "variant"), VARIANTS)
def test_a_strided_step_in_channels_last_is_that_in_rows(branch, variant):
    """Forward and backward in both memory formats give the same numbers."""
    x, gradients = images(channels=8), []
    for memory_format in (torch.contiguous_format, torch.channels_last):
        torch.manual_seed(0)
        layer = randomize(build(branch, variant, 8, 16, 3, 2, 1, zero_init=False)).double()
        layer = layer.to(memory_format=memory_format)
        operand = x.double().contiguous(memory_format=memory_format).requires_grad_()
        layer(operand).sin().sum().backward()
        gradients.append([operand.grad, *(parameter.grad for parameter in layer.parameters())])
    for rows, channels in zip(*gradients, strict=True):
        torch.testing.assert_close(channels, rows, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("branch", "variant"), VARIANTS)
def test_the_mode_of_the_training_form_is_that_of_its_dtype(branch, variant):
    """fp32 stays fp32 and fp64 fp64, whatever the norms compute in."""
    for dtype in (torch.float32, torch.float64):
        assert operator(branch, variant, TRAINING).to(dtype)(images(channels=4).to(dtype)).dtype == dtype


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("where", ["activation", "weight"])
@pytest.mark.parametrize(("branch", "variant", "form"), FORMS)
def test_what_is_not_finite_in_fp16_stays_so(branch, variant, form, where, number):
    """Wherever the plain convolution returns no finite number, the operator returns none.

    The weight is the middle one of either kernel: CPUs with AVX512-FP16 skip taps beyond the border, and so their NaN.
    """
    module, x = operator(branch, variant, form).half(), images(channels=4).half()
    plain = operator(branch, variant, TRAINING).half().conv
    if where == "activation":
        x[0, 1, 5, 3] = number
    else:
        with torch.no_grad():
            for weight in (module.conv.weight, plain.weight):
                weight[0, 0, weight.shape[2] // 2, weight.shape[3] // 2] = number
    lost = ~torch.isfinite(plain(x))
    assert lost.any()
    assert not torch.isfinite(module(x))[lost].any()


@pytest.mark.parametrize("magnitude", [3e2, 3e3, 2e4])
@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize(("branch", "variant"), VARIANTS)
def test_deployed_forms_overflow_in_fp16_no_earlier_than_the_trained_one(branch, variant, offset, magnitude):
    trained = operator(branch, variant, TRAINING).half()
    x = ((images(channels=4) / 4 + offset / 2) * magnitude).half()
    plain = torch.isfinite(trained.conv_norm(trained.conv(x)))
    assert torch.isfinite(trained(x))[plain].all()
    for layout in layouts(branch, variant):
        assert torch.isfinite(reparameterize(trained, layout=layout)(x))[plain].all()


@pytest.mark.parametrize("zero_init", [False, True])
@pytest.mark.parametrize("magnitude", [3e3, 2e4, 6e4])
@pytest.mark.parametrize("config", [ChannelGate(gate="identity", channel_keys=keys) for keys in (False, True)])
def test_unbounded_gates_stay_finite_in_fp16(config, magnitude, zero_init):
    trained = XVolution2d(4, 8, 3, padding=1, attention=config, zero_init=zero_init).eval().half()
    x = (images(channels=4).sigmoid() * magnitude).half()
    plain = torch.isfinite(trained.conv_norm(trained.conv(x)))
    assert plain.any()
    assert torch.isfinite(trained(x))[plain].all()
    for layout in ("single", "split"):
        assert torch.isfinite(reparameterize(trained, layout=layout)(x))[plain].all()


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
@pytest.mark.parametrize(("branch", "variant"), VARIANTS)
def test_weights_that_are_not_finite_are_not_deployed(branch, variant, number):
    trained = operator(branch, variant, TRAINING)
    for name, parameter in trained.named_parameters():
        first = parameter.data.flatten()[0].clone()
        parameter.data.view(-1)[0] = number
        with pytest.raises(ReparameterizationError, match=f"{name} holds infinite or NaN values"):
            reparameterize(trained)
        parameter.data.view(-1)[0] = first
    reparameterize(trained)
