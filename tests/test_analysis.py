"""The look inside agrees with the operator it looks into."""

import pytest
import torch
from torch import nn

from xvolution import XVolution2d
from xvolution.analysis import BranchMaps, attention_kernel, branch_maps


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
    with pytest.raises(ValueError, match="'0' is no XVolution2d with attention of this model; it has 1"):
        branch_maps(model, torch.randn(1, 3, 5, 5), "0")


def test_training_mode_is_refused(model):
    with pytest.raises(ValueError, match="training mode"):
        branch_maps(model.train(), torch.randn(1, 3, 5, 5), "1")


def test_attention_kernel_is_the_dynamic_part():
    """Written out: the tap δ of the dynamic kernel is scale · W^v diag(q_0 ⊙ w_δ) W^k."""
    torch.manual_seed(1)
    operator = trained(XVolution2d(4, 6, 3, padding=1, gate="identity", query_norm=False, window_norm=False))
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
