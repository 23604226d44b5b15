"""Which parameters are new, and what an optimizer is given."""

from copy import deepcopy
from itertools import product

import pytest
import torch
from torch import nn

from tests.core.networks import SmallNet
from xvolution import OperatorConfig, XVolution2d, XVolutionConfig, convert, parameter_groups
from xvolution.conversion.parameters import new_parameters
from xvolution.conversion.register import operator_names

ONE = "layer1.conv1"


def ids(parameters):
    return {id(parameter) for parameter in parameters}


@pytest.mark.parametrize("name", operator_names())
def test_new_is_what_the_network_did_not_have(name):
    """By identity: whatever its name is now, a parameter that was there is not new, and every other one is."""
    model = SmallNet()
    before = ids(model.parameters())
    convert(model, name, names=(ONE,), inplace=True)
    new = new_parameters(model)
    assert ids(new.values()) == ids(model.parameters()) - before
    assert all(parameter.startswith(ONE) for parameter in new)


def test_what_moved_under_another_name_is_not_new():
    new = new_parameters(convert(SmallNet(), names=(ONE,)))
    assert {"layer1.conv1.attention.value.weight", "layer1.conv1.attention_norm.bias"} <= set(new)
    assert not {"layer1.conv1.conv.weight", "layer1.conv1.conv_norm.weight", "layer1.conv2.weight"} & set(new)


def test_a_kernel_of_another_size_is_new():
    for config in (XVolutionConfig(kernel_size=5), OperatorConfig(operator="se", kernel_size=5)):
        new = set(new_parameters(convert(SmallNet(), config, names=(ONE,))))
        assert "layer1.conv1.conv.weight" in new
        assert "layer1.conv1.conv_norm.weight" not in new
    assert set(new_parameters(convert(SmallNet(), OperatorConfig(operator="conv", kernel_size=5), names=(ONE,)))) == {
        "layer1.conv1.weight"
    }


def test_copies_parts_wrappers_and_second_conversions_know_it_too():
    converted = convert(convert(SmallNet(), "se", names=(ONE,)), names=("layer2.conv1",))
    new = {name for name in new_parameters(converted) if name.startswith("layer2.")}
    assert any(name.startswith("layer1.conv1.excitation") for name in new_parameters(converted))
    assert set(new_parameters(deepcopy(converted))) == set(new_parameters(converted))
    assert {f"layer2.{name}" for name in new_parameters(converted.layer2)} == new
    wrapped = nn.ModuleDict({"module": converted})
    assert {f"module.{name}" for name in new_parameters(converted)} == set(new_parameters(wrapped))


def test_an_operator_that_nobody_converted_keeps_its_convolution():
    operator = XVolution2d(4, 8, 3, num_conv_branches=2)
    kept = set(dict(operator.named_parameters())) - set(new_parameters(operator))
    assert kept == {"conv.weight", "conv.bias", "conv_norm.weight", "conv_norm.bias"}


def test_every_trainable_parameter_is_in_one_group_with_its_rate_and_decay():
    model = convert(SmallNet(), stages=(1,))
    model.stem.weight.requires_grad_(False)
    new = ids(new_parameters(model).values())
    groups = parameter_groups(model, 0.1, new_lr_factor=5, weight_decay=1e-3)
    assert [(group["lr"], group["weight_decay"]) for group in groups] == list(product((0.1, 0.5), (0.0, 1e-3)))
    found = [parameter for group in groups for parameter in group["params"]]
    assert len(found) == len(ids(found))
    assert ids(found) == ids(parameter for parameter in model.parameters() if parameter.requires_grad)
    for group in groups:
        for parameter in group["params"]:
            assert group["lr"] == (0.5 if id(parameter) in new else 0.1)
            assert group["weight_decay"] == (1e-3 if parameter.ndim > 1 else 0)


def test_an_optimizer_steps_by_them():
    model = convert(SmallNet(), names=(ONE,))
    before = deepcopy(model)
    optimizer = torch.optim.SGD(parameter_groups(model, 0.5, new_lr_factor=4, weight_decay=0.1))
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    steps = {name: (dict(before.named_parameters())[name] - now).detach() for name, now in model.named_parameters()}
    old = {name: parameter.detach() for name, parameter in before.named_parameters()}
    torch.testing.assert_close(steps["layer1.conv1.conv.weight"], 0.5 * (1 + 0.1 * old["layer1.conv1.conv.weight"]))
    torch.testing.assert_close(steps["layer1.conv1.conv_norm.weight"], torch.full((8,), 0.5))
    torch.testing.assert_close(
        steps["layer1.conv1.attention.key.weight"], 2 * (1 + 0.1 * old["layer1.conv1.attention.key.weight"])
    )
    torch.testing.assert_close(steps["layer1.conv1.attention_norm.weight"], torch.full((8,), 2.0))


class WithExempt(SmallNet):
    def no_weight_decay(self):
        return {"head.*"}


@pytest.mark.parametrize("build", [SmallNet, WithExempt, lambda: convert(SmallNet())])
@pytest.mark.parametrize("weight_decay", [0.0, 0.05])
def test_with_the_factor_one_the_groups_are_timms(build, weight_decay):
    optim = pytest.importorskip("timm.optim")
    model = build()
    expected = optim.create_optimizer_v2(model, "sgd", lr=0.1, weight_decay=weight_decay).param_groups
    actual = parameter_groups(model, 0.1, weight_decay=weight_decay)
    assert [(ids(group["params"]), group["weight_decay"]) for group in actual] == [
        (ids(group["params"]), group["weight_decay"]) for group in expected
    ]


@pytest.mark.parametrize("name", ["lr", "new_lr_factor", "weight_decay"])
def test_bad_numbers_are_sentences(name):
    with pytest.raises(ValueError, match=f"{name} is -1; it must be"):
        parameter_groups(SmallNet(), **{"lr": 0.1, name: -1})
