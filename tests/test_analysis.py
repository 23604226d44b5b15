"""The look inside agrees with the operator it looks into."""

import pytest
import torch
from torch import nn

from xvolution import XVolution2d, dynamic_kernel
from xvolution.analysis import (
    BranchMaps,
    attention_kernel,
    branch_maps,
    branch_statistics,
    half_radius,
    receptive_field,
    silenced,
)
from xvolution.attention import GatedDepthwise, PixelShift
from xvolution.operator import fold


def trained(operator: XVolution2d) -> XVolution2d:
    """Random statistics and affine parameters, as after training."""
    for module in operator.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor, low in (
                (module.running_mean, -1),
                (module.running_var, 0.5),
                (module.weight, 0.5),
                (module.bias, -1),
            ):
                nn.init.uniform_(tensor, low, low + 1.5)
    return operator.eval()


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), trained(XVolution2d(4, 6, 3, padding=1))).eval()


def test_maps_measure_the_branches(model):
    images = torch.randn(2, 3, 5, 7)
    maps = branch_maps(model, images, "1")
    operator = model[1]
    assert torch.equal(maps.operand, model[0](images))
    assert torch.allclose(
        maps.attention, operator.attention_norm(operator.attention(maps.operand)).square().sum(1).sqrt()
    )
    assert torch.allclose(maps.convolution, operator.conv_norm(operator.conv(maps.operand)).square().sum(1).sqrt())


def test_share_of_an_untrained_attention_is_zero():
    model = nn.Sequential(XVolution2d(3, 4, 3, padding=1)).eval()
    assert torch.equal(branch_maps(model, torch.randn(1, 3, 4, 4), "0").share, torch.zeros(1, 4, 4))


def test_share_is_zero_where_both_are_silent():
    attention = torch.tensor([[[3.0, 0.0]]])
    convolution = torch.tensor([[[1.0, 0.0]]])
    assert BranchMaps(attention, convolution, attention).share.tolist() == [[[0.75, 0.0]]]


def test_strongest_is_a_row_and_a_column():
    attention = torch.zeros(2, 3, 5)
    attention[0, 2, 1] = attention[1, 0, 4] = 1.0
    assert BranchMaps(attention, attention, attention).strongest() == [(2, 1), (0, 4)]


def test_a_wrong_name_lists_the_operators(model):
    with pytest.raises(ValueError, match="the model has no XVolution2d with attention called '0'; it has 1"):
        branch_maps(model, torch.randn(1, 3, 5, 5), "0")


def test_training_mode_is_refused(model):
    with pytest.raises(ValueError, match="training mode"):
        branch_maps(model.train(), torch.randn(1, 3, 5, 5), "1")


def test_attention_kernel_is_the_dynamic_part():
    """Written out: the tap δ of the dynamic kernel is scale · W^v diag(q_0 ⊙ w_δ) W^k."""
    torch.manual_seed(1)
    operator = trained(
        XVolution2d(4, 6, 3, padding=1, attention=PixelShift(gate="identity", query_norm=False, window_norm=False))
    )
    attention, norm = operator.attention, operator.attention_norm
    x = torch.randn(2, 4, 5, 5)
    row, column = 2, 3
    query = attention.in_context(attention.query(x), x)[:, :, row, column]
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    value, key = attention.value.weight[:, :, 0, 0], attention.key.weight[:, :, 0, 0]
    window = attention.windows[0].weight[:, 0]
    dynamic = torch.einsum("o,oa,na,ahw,ai->noihw", scale, value, query, window, key)
    expected = dynamic.square().sum((1, 2)).sqrt()
    torch.testing.assert_close(attention_kernel(operator, x, (row, column)), expected)
    assert operator.conv.weight.abs().sum() > 0


def test_attention_kernel_of_shared_values_is_what_is_left_without_the_convolution():
    torch.manual_seed(1)
    operator = trained(XVolution2d(4, 6, 3, padding=1, attention=GatedDepthwise(window=3)))
    x = torch.randn(2, 4, 7, 7)
    whole, static = dynamic_kernel(operator, x, (3, 2)), fold(operator).convolution.weight.float()
    whole[:, :, :, 1:4, 1:4] -= static
    torch.testing.assert_close(attention_kernel(operator, x, (3, 2)), whole.norm(dim=(1, 2)))
    torch.testing.assert_close(branch_maps(nn.Sequential(operator), x, "0").attention, operator.attended(x).norm(dim=1))


def test_statistics_are_those_of_all_images_at_once(model):
    operator, images = model[1], torch.randn(7, 3, 5, 6)
    found = branch_statistics(model, images.split(3))["1"]
    x = model[0](images)
    attended, convolved = operator.attention_norm(operator.attention(x)).double(), operator.convolved(x).double()
    products = []
    operator.attention.value.register_forward_pre_hook(lambda _, inputs: products.append(inputs[0].double()))
    operator(x)

    def variance(maps):
        return maps.var((0, 2, 3), correction=0)

    centred = products[0] - products[0].mean((0, 2, 3), keepdim=True)
    kurtosis = centred.pow(4).mean((0, 2, 3)) / variance(products[0]).square()
    usual = operator.conv_norm.weight.detach().double().square().mean()
    share = variance(attended) / (variance(attended) + variance(convolved).clamp(min=usual))
    context = attended.mean((2, 3)).var(0, correction=0) / variance(attended)
    assert found.size == (5, 6)
    assert found.share == pytest.approx(share.mean().item(), rel=1e-4)
    assert found.context == pytest.approx(context.mean().item(), rel=1e-4)
    assert found.kurtosis == pytest.approx(kurtosis.mean().item(), rel=1e-4)
    torch.testing.assert_close(found.mean, attended.mean((0, 2, 3)).float(), rtol=1e-4, atol=1e-5)


def test_a_branch_that_sees_no_place_is_all_context():
    class Mean(nn.Module):
        def forward(self, x):
            return x.mean((2, 3), keepdim=True).expand_as(x)

    model = nn.Sequential(XVolution2d(4, 4, 3, padding=1, attention=Mean(), norm_layer=None, zero_init=False)).eval()
    found = branch_statistics(model, [torch.randn(5, 4, 6, 6)])["0"]
    assert found.context == pytest.approx(1, abs=1e-6)
    assert found.kurtosis is None


def test_silenced_branches_say_their_average_and_come_back(model):
    images = torch.randn(2, 3, 5, 7)
    expected, mean = model(images), torch.randn(6)
    with silenced(model, {"1": mean}):
        torch.testing.assert_close(model(images), model[1].convolved(model[0](images)) + mean[:, None, None])
    assert torch.equal(model(images), expected)


def test_products_that_do_not_vary_have_no_kurtosis(model):
    nn.init.zeros_(model[1].attention.query_norm.weight)
    nn.init.zeros_(model[1].attention.window_norm.weight)
    assert branch_statistics(model, [torch.randn(2, 3, 5, 5)])["1"].kurtosis is None


def test_only_operators_can_be_silenced(model):
    with (
        pytest.raises(ValueError, match="the model has no XVolution2d with attention called '0'; it has 1"),
        silenced(model, {"0": torch.zeros(4)}),
    ):
        pass


def test_statistics_need_a_network_with_attention(model):
    with pytest.raises(ValueError, match="no XVolution2d with attention"):
        branch_statistics(nn.Sequential(nn.Conv2d(3, 4, 3)).eval(), [torch.randn(1, 3, 5, 5)])
    with pytest.raises(ValueError, match="no batch of images"):
        branch_statistics(model, [])
    with pytest.raises(ValueError, match="training mode"):
        branch_statistics(model.train(), [torch.randn(1, 3, 5, 5)])


def test_the_receptive_field_of_a_convolution_is_its_kernel():
    conv = nn.Conv2d(2, 3, 3, padding=1)
    field = receptive_field(nn.Sequential(conv, nn.ReLU()).eval(), torch.randn(2, 2, 7, 9), "0")
    expected = torch.zeros(7, 9)
    expected[2:5, 3:6] = conv.weight.sum(0).abs().sum(0)
    torch.testing.assert_close(field, expected / expected.sum())
    with pytest.raises(ValueError, match="no module 'head'"):
        receptive_field(nn.Sequential(conv), torch.randn(1, 2, 7, 9), "head")
    unused = nn.Sequential(conv).eval()
    unused.head = nn.Conv2d(3, 3, 1)
    unused.forward = conv.forward
    with pytest.raises(ValueError, match="did not run 'head'"):
        receptive_field(unused.eval(), torch.randn(1, 2, 7, 9), "head")
    with pytest.raises(ValueError, match="training mode"):
        receptive_field(nn.Sequential(conv), torch.randn(1, 2, 7, 9), "0")


def test_half_of_a_receptive_field():
    ring = torch.zeros(9, 9)
    ring[4, 4], ring[4, 7], ring[1, 4] = 0.4, 0.3, 0.3
    assert half_radius(ring) == 3
    ring[4, 4] = 0.6
    assert half_radius(ring) == 0
