"""FLOPs and parameters before and after a conversion, counted when they are asked for."""

import pytest
import torch
from torch import nn

from tests.core.networks import SmallNet
from xvolution import XVolution2d, XVolutionConfig, conversion_summary, convert
from xvolution.attention import Global
from xvolution.conversion.summary import count_flops, count_parameters


class Several(nn.Module):
    """Strides, groups, a module that runs twice, one that runs at two sizes, and one that does not run."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.strided = nn.Conv2d(8, 16, 3, stride=(2, 1), padding=1, bias=False)
        self.norm = nn.BatchNorm2d(16)
        self.grouped = nn.Conv2d(16, 16, (5, 3), padding=(2, 1), groups=4)
        self.depthwise = nn.Conv2d(16, 16, 3, padding=2, dilation=2, groups=16)
        self.twice = nn.Conv2d(16, 16, 3, padding=1)
        self.again = self.twice
        self.idle = nn.Conv2d(16, 16, 3, padding=1)
        self.head = nn.Linear(16, 4)

    def forward(self, x):
        x = self.depthwise(self.grouped(self.norm(self.strided(self.stem(x)))))
        x = self.again(nn.functional.max_pool2d(self.twice(x), 2))
        return self.head(x.mean((2, 3)))


@pytest.mark.parametrize("config", ["xvolution", "linear", XVolutionConfig(attention=Global()), "conv-conv", "acmix"])
def test_flops_are_those_of_the_plain_and_of_the_converted_network(config):
    torch.manual_seed(0)
    model = Several().eval()
    names = ("strided", "twice", "idle") if config == "acmix" else ("*",)
    images = torch.randn(2, 3, 16, 12)
    converted = convert(model, config, names=names, example_inputs=images)
    summary = conversion_summary(converted)
    assert summary.flops_before == count_flops(model, images)
    assert summary.flops_after == count_flops(converted, images)
    assert summary.flops_after != summary.flops_before
    assert summary.parameters_before == count_parameters(model)
    assert summary.parameters_after == count_parameters(converted)
    assert summary.input_shape == (2, 3, 16, 12)
    larger = torch.randn(1, 3, 24, 24)
    assert conversion_summary(converted, larger).flops_before == count_flops(model, larger)
    assert conversion_summary(converted, larger).input_shape == (1, 3, 24, 24)


def test_nothing_is_counted_before_it_is_asked_for(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("counted")

    monkeypatch.setattr("torch.utils.flop_counter.FlopCounterMode.__init__", refuse)
    converted = convert(SmallNet().eval())
    with pytest.raises(AssertionError, match="counted"):
        conversion_summary(converted)


def test_counting_changes_nothing():
    model = convert(SmallNet(), example_inputs=torch.randn(2, 3, 8, 8))
    model.layer1.eval()
    next(model.parameters()).requires_grad_(False)
    modes = [module.training for module in model.modules()]
    gradients = [parameter.requires_grad for parameter in model.parameters()]
    state = {name: value.clone() for name, value in model.state_dict().items()}
    conversion_summary(model)
    assert [module.training for module in model.modules()] == modes
    assert [parameter.requires_grad for parameter in model.parameters()] == gradients
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_without_inputs_nothing_is_counted():
    converted = convert(SmallNet().eval(), verify=False)
    summary = conversion_summary(converted)
    assert summary.flops_before is summary.flops_after is summary.input_shape is None
    assert "FLOPs" not in str(summary)
    images = {"x": torch.randn(1, 3, 8, 8)}
    assert conversion_summary(converted, images).flops_after == count_flops(converted, images)


def test_a_network_that_was_not_converted_is_told():
    with pytest.raises(ValueError, match="SmallNet has no record of a conversion; convert it first"):
        conversion_summary(SmallNet())


def test_half_precision_is_counted_in_its_dtype():
    model = SmallNet().to(torch.bfloat16).eval()
    summary = conversion_summary(convert(model))
    assert summary.flops_before == count_flops(model, torch.randn(summary.input_shape, dtype=torch.bfloat16))
    assert any(isinstance(module, XVolution2d) for module in convert(model).modules())
