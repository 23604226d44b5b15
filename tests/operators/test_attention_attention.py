"""Two attention branches of X-volution, and no convolution."""

import torch

from xvolution import XVolution2d
from xvolution.attention import PixelShift
from xvolution.conversion.summary import count_parameters
from xvolution.operators import AttentionAttention2d


def test_it_is_the_sum_of_the_branches_of_two_x_volutions():
    torch.manual_seed(0)
    operator = AttentionAttention2d(8, 12, 3, 2, 1, dtype=torch.float64).eval()
    x = torch.randn(2, 8, 9, 9, dtype=torch.float64)
    expected = 0
    for branch, norm in zip(operator.attentions, operator.norms, strict=True):
        whole = XVolution2d(8, 12, 3, 2, 1, dtype=torch.float64, zero_init=False).eval()
        torch.nn.init.zeros_(whole.conv_norm.weight)
        whole.attention, whole.attention_norm = branch, norm
        expected = expected + whole(x)
    torch.testing.assert_close(operator(x), expected)
    assert operator(x).abs().max() > 0


def test_its_parameters_are_those_of_two_branches():
    whole = XVolution2d(8, 12, 3, padding=1, attention=PixelShift(attention_ratio=0.5))
    branch = count_parameters(whole.attention) + count_parameters(whole.attention_norm)
    assert count_parameters(AttentionAttention2d(8, 12, 3, padding=1, attention_ratio=0.5)) == 2 * branch
