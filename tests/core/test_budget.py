"""Converting as much of a network as a budget of time allows."""

import pytest
import torch
from torch import nn

from tests.core.networks import SmallNet
from xvolution import XVolution2d, conversion_summary, convert
from xvolution.attention import Linear, PixelShift
from xvolution.conversion.budget import Work, within_budget, work_of, work_of_network
from xvolution.conversion.config import XVolutionConfig
from xvolution.conversion.register import operator_config


def network():
    """Three convolutions behind a stem, each on half the pixels of the one before, in one time of arithmetic."""
    layers = [nn.Conv2d(3, 8, 3, padding=1)]
    for channels in (8, 16, 32):
        layers += [nn.Conv2d(channels, 2 * channels, 3, stride=2, padding=1), nn.BatchNorm2d(2 * channels), nn.ReLU()]
    return nn.Sequential(*layers).eval()


X = torch.randn(1, 3, 64, 64)


def operators_in(model):
    return {name: module for name, module in model.named_modules() if isinstance(module, XVolution2d)}


def test_work_is_that_of_what_runs():
    conv, x = nn.Conv2d(4, 6, 3, padding=1), torch.randn(2, 4, 5, 7)
    assert work_of(lambda: conv(x)) == Work(2 * 6 * 4 * 9 * 35, 2 * 6 * 35, 1)
    folded = nn.Sequential(conv, nn.BatchNorm2d(6), nn.ReLU()).train()
    assert work_of_network(folded, x) == work_of(lambda: conv(x))
    assert folded.training
    assert work_of(lambda: nn.GroupNorm(2, 4)(x)).numbers >= x.numel()
    assert work_of(lambda: conv(x).sigmoid()) == Work(2 * 6 * 4 * 9 * 35, 2 * 2 * 6 * 35, 2)


def test_the_cheapest_are_taken_first_and_all_where_all_fit():
    model, names = network(), ["1", "4", "7"]
    config = operator_config(XVolutionConfig(attention=PixelShift(attention_ratio=0.25)))
    alone = {name: within_budget(model, [name], config, 100, X).estimate - 1 for name in names}
    cheap, middle, dear = sorted(alone, key=alone.get)
    within = within_budget(model, names, config, 1 + alone[cheap] + alone[middle] + 1e-9, X)
    assert within.names == sorted((cheap, middle))
    assert within.config == config
    assert within.estimate == pytest.approx(1 + alone[cheap] + alone[middle])
    everything = within_budget(model, names, config, 1 + sum(alone.values()) + 1e-9, X)
    assert everything.names == names
    assert dear not in within.names


def test_fewer_attention_channels_where_more_fit_so_and_nobody_gave_them():
    model, names = network(), ["1", "4", "7"]
    wide = within_budget(model, names, XVolutionConfig(), 100, X)
    assert wide.config == XVolutionConfig()
    narrow = within_budget(model, names, XVolutionConfig(), wide.estimate - 1e-9, X)
    assert narrow.names == names
    assert narrow.config == XVolutionConfig(attention=PixelShift(attention_ratio=0.125))
    for attention in (PixelShift(attention_ratio=0.25), PixelShift(attention_channels=8), Linear(), None):
        assert XVolutionConfig(attention=attention).narrower() is None


def test_a_network_is_converted_within_its_budget_and_says_so():
    everything = within_budget(network(), ["1", "4", "7"], XVolutionConfig(), 100, X).estimate
    assert len(operators_in(convert(network(), budget=everything + 0.01, example_inputs=X))) == 3
    part = convert(
        network(),
        XVolutionConfig(attention=PixelShift(attention_ratio=0.25)),
        budget=everything - 0.01,
        example_inputs=X,
    )
    assert 0 < len(operators_in(part)) < 3
    assert "its operator would exceed budget=" in str(conversion_summary(part))


def test_other_operators_have_a_price_too():
    choice = within_budget(SmallNet().eval(), ["layer1.conv1"], operator_config("se"), 10, torch.randn(1, 3, 16, 16))
    assert choice.estimate > 1


@pytest.mark.parametrize("budget", [1.0, 0.5, float("nan"), -1])
def test_a_budget_is_more_than_the_plain_network(budget):
    with pytest.raises(
        ValueError,
        match=r"budget is .*give the largest ratio of the deployed network's time to the plain network's time, such as 1.05",
    ):
        convert(network(), budget=budget, example_inputs=X)


def test_where_nothing_fits_the_cheapest_is_named():
    with pytest.raises(
        ValueError, match=r"no convolution fits into budget=1.000001: the cheapest one, \d, is estimated at 1\.\d+"
    ):
        convert(network(), budget=1.000001, example_inputs=X)


def test_convolutions_that_do_not_run_have_no_price():
    model = network()
    model.idle = nn.Identity()
    model.idle.conv = nn.Conv2d(8, 8, 3)
    with pytest.raises(ValueError, match=r"none of idle.conv runs on these inputs; give example_inputs"):
        within_budget(model, ["idle.conv"], XVolutionConfig(), 1.1, X)
