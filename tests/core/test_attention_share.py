"""The share of attention, by the norms' scales and by what was measured, and the sentence where it is too small to matter."""

import pytest
import torch
from torch import nn

from xvolution import XVolution2d, convert
from xvolution.conversion.attention_share import (
    HARDLY,
    attending,
    estimated_shares,
    hardly_begun,
    share_of,
    usual_variance,
)


def set_scales(norm: nn.Module, scale: float) -> None:
    nn.init.constant_(norm.weight, scale)


def network() -> nn.Sequential:
    """Two operators between norms of scale 2; the second has two convolution branches."""
    model = nn.Sequential(
        nn.BatchNorm2d(4),
        XVolution2d(4, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        XVolution2d(6, 8, 3, padding=1, num_conv_branches=2),
        nn.PReLU(8),
        nn.BatchNorm2d(8),
    )
    for norm in (model[0], model[2], model[5]):
        set_scales(norm, 2.0)
    set_scales(model[1].conv_norm, 4.0)
    set_scales(model[1].attention_norm, 3.0)
    set_scales(model[3].conv_norm, 2.0)
    set_scales(model[3].parallel[0].norm, 1.0)
    set_scales(model[3].attention_norm, 0.5)
    return model


def test_shares_are_told_by_the_scales_of_the_norms() -> None:
    shares = estimated_shares(network())
    assert shares == pytest.approx({"1": 9 / (9 + 16), "3": 0.25 / (0.25 + 4 + 1)})


def test_norms_of_attention_are_not_usual_and_what_is_no_norm_does_not_count() -> None:
    model = network()
    assert usual_variance(model) == 4.0
    set_scales(model[3].attention_norm, 100.0)
    nn.init.constant_(model[4].weight, 100.0)
    for module in model[3].attention.modules():
        if isinstance(module, nn.BatchNorm2d):
            set_scales(module, 100.0)
    assert usual_variance(model) == 4.0
    assert usual_variance(nn.Conv2d(3, 3, 1)) == 0.0


def test_a_part_of_a_branch_that_says_nothing_is_a_small_share() -> None:
    """As in a residual block whose last norm begins at zero: attention is as large as a convolution that is nearly silent."""
    model = network()
    set_scales(model[1].conv_norm, 1e-3)
    set_scales(model[1].attention_norm, 1e-3)
    assert estimated_shares(model)["1"] == pytest.approx(1e-6 / 4, rel=1e-3)


def test_the_scales_tell_what_is_measured_on_the_data_of_the_statistics() -> None:
    torch.manual_seed(0)
    model = network().double()
    images = torch.randn(8, 4, 12, 12, dtype=torch.float64)
    with torch.no_grad():
        for norm in (module for module in model.modules() if isinstance(module, nn.BatchNorm2d)):
            norm.momentum = 1.0
        model(images)
        x = model.eval()[0](images)
        operator = model[1]
        attention, convolution = (y.var((0, 2, 3)) for y in (operator.attended(x), operator.convolved(x)))
    measured = share_of(attention, convolution, usual_variance(model))
    assert measured == pytest.approx(estimated_shares(model)["1"], rel=0.02)


def test_a_channel_that_does_not_vary_counts_as_nothing() -> None:
    assert share_of(torch.tensor([0.0, 1.0]), torch.tensor([0.0, 3.0]), 0.0) == pytest.approx(0.125)


def test_a_fresh_conversion_has_hardly_begun_and_a_share_above_the_threshold_has() -> None:
    plain = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4))
    model = convert(plain, names=("0",), verify=False)
    shares = estimated_shares(model)
    assert list(shares) == list(attending(model)) == ["0"]
    sentence = hardly_begun(shares, "on 12 images")
    assert sentence is not None
    assert sentence.startswith(
        "attention hardly contributes yet: it is at most 0 of the variance of an operator's output, on 12"
    )
    assert "--new-lr-factor is 1 by default, and five times what it was is worth a try" in sentence
    assert hardly_begun({"a": 0.0, "b": 1.01 * HARDLY}) is None
    assert hardly_begun({"a": 0.0, "b": 0.99 * HARDLY}) is not None
    assert hardly_begun({}) is None


def test_what_has_no_scale_is_not_estimated() -> None:
    model = nn.Sequential(XVolution2d(3, 4, 3, norm_layer=None), nn.BatchNorm2d(4))
    assert estimated_shares(model) == {}
    assert estimated_shares(nn.Sequential(XVolution2d(3, 4, 3, attention=None))) == {}
