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


class Mixed(nn.Module):
    """Convolutions that stay for every reason there is."""

    class Squared(nn.Conv2d):
        def forward(self, x):
            return super().forward(x * x)

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.layer1 = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 1))
        self.layer2 = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.Conv2d(8, 8, 1))
        self.squared = self.Squared(8, 8, 3, padding=1)
        self.lazy = nn.LazyConv2d(8, 3, padding=1)
        self.signal = nn.Conv1d(1, 1, 3, padding=1)
        self.up = nn.ConvTranspose2d(8, 8, 2, stride=2)

    def forward(self, x):
        return self.up(self.squared(self.layer2(self.layer1(self.stem(x)))))


def test_what_was_left_alone_is_listed_with_the_reason():
    model, images = Mixed().eval(), torch.randn(1, 3, 16, 16)
    summary = conversion_summary(convert(model, example_inputs=images))
    assert [row.name for row in summary.replaced] == ["layer1.0", "layer2.1"]
    assert {row.name: row.reason for row in summary.left} == {
        "stem": "the stem",
        "layer1.1": "a kernel of one pixel",
        "layer2.0": "its projection layer2.1 is replaced instead",
        "squared": "Squared does not compute a plain convolution of its input",
        "lazy": "LazyConv2d has no weights yet",
        "signal": "it does not have 2 dimensions as the stem has",
        "up": "a transposed convolution",
    }
    said = str(summary).splitlines()
    assert "stem        3x3 3->8 /2        the stem" in said
    assert "layer2.0    3x3 8->8 groups=8  its projection layer2.1 is replaced instead" in said
    staged = conversion_summary(convert(model, stages=(2,), at_projections=False, example_inputs=images))
    assert [row.name for row in staged.replaced] == ["layer2.0"]
    assert {row.reason for row in staged.left if row.name in ("stem", "layer1.0")} == {"outside of the stages 2"}
    named = conversion_summary(convert(model, names=["layer1.0"], example_inputs=images))
    assert "its name matches none of layer1.0" in {row.reason for row in named.left}
    sized = conversion_summary(convert(model, kernel_sizes=[1], example_inputs=images))
    assert "its kernel size is none of 1" in {row.reason for row in sized.left}
    chosen = conversion_summary(convert(model, filter_fn=lambda _, name: name == "stem", example_inputs=images))
    assert "excluded by filter_fn" in {row.reason for row in chosen.left}
    with pytest.raises(
        ValueError, match=r"its convolutions are: stem 3x3.*; not converted: squared \(Squared does not compute a plain"
    ):
        convert(model, names=["squared"], example_inputs=images)


def test_operators_of_an_earlier_conversion_are_not_left_alone():
    model = convert(SmallNet(), stages=(1,))
    summary = conversion_summary(convert(model, stages=(2,)))
    assert {row.name for row in summary.left} == {"stem"}


def test_a_network_of_which_all_is_replaced_lists_nothing():
    model = nn.Sequential(nn.Conv2d(3, 3, 3), nn.Conv2d(3, 3, 3))
    summary = conversion_summary(convert(model, names=["*"]))
    assert summary.left == ()
    assert "left alone" not in str(summary)


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


def test_a_second_conversion_is_told_of_with_the_first():
    plain, images = SmallNet().eval(), torch.randn(1, 3, 16, 16)
    whole = conversion_summary(convert(plain, example_inputs=images))
    first = convert(plain, names=["layer1.*"], example_inputs=images)
    both = conversion_summary(convert(first, example_inputs=images))
    assert {row.name for row in both.replaced} == {row.name for row in whole.replaced}
    assert (both.parameters_before, both.parameters_after) == (whole.parameters_before, whole.parameters_after)
    assert (both.flops_before, both.flops_after) == (whole.flops_before, whole.flops_after)
    assert [row.name for row in both.left] == [row.name for row in whole.left] == ["stem"]
