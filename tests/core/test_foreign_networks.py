"""What networks do with their convolutions beside calling them: keep them in lists, read their attributes, hide them."""

from collections import namedtuple

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.core.execution import relative_error
from tests.core.networks import randomize
from xvolution import ConversionError, XVolution2d, conversion_summary, convert, reparameterize

Pair = namedtuple("Pair", "first second")


@pytest.fixture
def images():
    return torch.randn(2, 3, 12, 11, generator=torch.Generator().manual_seed(1))


class Net(nn.Module):
    """A stem, a convolution and a norm; subclasses say what happens between."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x):
        return self.norm(self.conv(self.stem(x)))


class Holder:
    """No module."""


class HoldsItElsewhere(Net):
    """Calls its convolution by a list, a tuple in a tuple, a named tuple, a dict, an object, or an attribute."""

    def __init__(self, by):
        super().__init__()
        self.by = by
        self.layers = [self.conv]
        self.nested = ((self.conv, 1), self.norm)
        self.pair = Pair(self.conv, self.norm)
        self.table = {"convs": {"first": [self.conv]}}
        self.holder = Holder()
        self.holder.conv, self.holder.back = self.conv, self
        object.__setattr__(self, "plain", self.conv)

    def forward(self, x):
        conv = {
            "a list": lambda: self.layers[0],
            "a tuple": lambda: self.nested[0][0],
            "a named tuple": lambda: self.pair.first,
            "a dict": lambda: self.table["convs"]["first"][0],
            "an object": lambda: self.holder.conv,
            "an attribute": lambda: self.plain,
        }[self.by]()
        norm = self.pair.second if self.by == "a named tuple" else self.norm
        return norm(conv(self.stem(x)))


@pytest.mark.parametrize("by", ["a list", "a tuple", "a named tuple", "a dict", "an object", "an attribute"])
@pytest.mark.parametrize("inplace", [False, True])
def test_convolutions_are_replaced_wherever_they_are_held(by, inplace, images):
    torch.manual_seed(0)
    model = randomize(HoldsItElsewhere(by)).eval()
    expected = model(images)
    converted = convert(model, example_inputs=images, inplace=inplace)
    assert isinstance(converted.conv.conv_norm, nn.BatchNorm2d)
    held = (converted.layers[0], converted.nested[0][0], converted.pair.first, converted.holder.conv, converted.plain)
    assert all(conv is converted.conv for conv in (*held, converted.table["convs"]["first"][0]))
    assert type(converted.pair) is Pair
    assert converted.pair.second is converted.nested[1] is converted.norm
    assert torch.equal(converted(images), expected)
    converted.train()(images).sum().backward()
    assert converted.conv.attention_norm.bias.grad is not None
    assert inplace or type(model.layers[0]) is nn.Conv2d
    deployed = reparameterize(converted.eval(), images, inplace=True)
    assert deployed.layers[0] is deployed.conv is deployed.pair.first


class ScalesInPlace(Net):
    """Changes its images, as super-resolution networks do."""

    def forward(self, x):
        x *= 255
        return super().forward(x)


@pytest.mark.parametrize(
    "wrap",
    [lambda x: x, lambda x: (x,), lambda x: {"x": x}, lambda x: None],
    ids=["tensor", "tuple", "mapping", "none"],
)
def test_a_network_that_changes_its_images_sees_them_as_they_were(wrap, images):
    torch.manual_seed(0)
    model, before = randomize(ScalesInPlace()).eval(), images.clone()
    converted = convert(model, example_inputs=wrap(images))
    assert conversion_summary(converted, images).proof == "outputs before and after differ by 0e+00"
    assert isinstance(converted.conv.conv_norm, nn.BatchNorm2d)
    nn.init.normal_(converted.conv.attention_norm.weight)
    deployed = reparameterize(converted, wrap(images))
    assert torch.equal(images, before)
    assert relative_error(converted(images.clone()), deployed(images.clone())) <= 1e-5


class Hidden(Net):
    """Calls its convolution by a closure."""

    def __init__(self):
        super().__init__()
        conv = self.conv
        self.call = lambda x: conv(x)

    def forward(self, x):
        return self.norm(self.call(self.stem(x)))


@pytest.mark.parametrize("config", ["xvolution", "conv"])
def test_an_operator_that_never_runs_is_named(config, images):
    model = Hidden().eval()
    with pytest.raises(ConversionError, match=r"the network does not call the operator that replaced conv"):
        convert(model, config, example_inputs=images)
    with pytest.raises(ConversionError, match="does not call the operator"):
        convert(model, config, example_inputs=images, inplace=True)
    assert type(model.conv) is nn.Conv2d


class WithCache(nn.Conv2d):
    """Takes the border of the image before, as causal video networks do."""

    def forward(self, x, border=None):
        return super().forward(x if border is None else torch.cat([border, x], 2))


@pytest.mark.parametrize("drop", [0.0, 0.5])
def test_a_convolution_with_more_arguments_is_named(drop, images):
    class Caches(Net):
        def __init__(self):
            super().__init__()
            self.conv = WithCache(4, 4, 3, padding=1)

        def forward(self, x):
            x = self.stem(F.dropout(x, drop))
            return self.norm(self.conv(x, x[:, :, :1]))

    with pytest.raises(ConversionError, match=r"cannot be run \(.*2 positional arguments .* in conv\)"):
        convert(Caches().eval(), example_inputs=images)


def test_notes_that_are_modules_are_not_registered(images):
    model = Net().eval()
    vars(model.conv)["owner"] = model
    vars(model.conv)["index"] = 3
    converted = convert(model, example_inputs=images)
    assert converted.conv.index == 3
    assert "owner" not in converted.conv._modules
    assert reparameterize(converted, images).conv.index == 3


def test_a_convolution_that_never_ran_may_stay_idle(images):
    model = Net()
    model.spare = nn.Conv2d(4, 4, 3)
    assert isinstance(convert(model.eval(), example_inputs=images).spare, XVolution2d)


class KeepsTensors(Net):
    """Keeps what it computes on itself, as super-resolution networks do with the mean of their images."""

    def __init__(self):
        super().__init__()
        self.mean = torch.zeros(1, 3, 1, 1)
        self.seen = []

    def forward(self, x):
        self.mean = self.mean.type_as(x)
        self.seen.append(x)
        return super().forward(x - self.mean)


@pytest.mark.parametrize("inplace", [False, True])
def test_tracing_leaves_the_network_as_it_was(inplace, images):
    torch.manual_seed(0)
    model = randomize(KeepsTensors()).eval()
    expected = model(images)
    converted = convert(model, example_inputs=images, inplace=inplace)
    assert isinstance(converted.conv.conv_norm, nn.BatchNorm2d)
    assert torch.equal(converted(images), expected)
    assert torch.equal(model(images), expected)
    assert all(type(x) is torch.Tensor for x in (model.mean, converted.mean, *model.seen, *converted.seen))


def test_a_network_that_cannot_be_copied_is_converted_in_place(images):
    model = randomize(Net()).eval()
    model.names = {"a": 1}.keys()
    expected = model(images)
    with pytest.raises(ConversionError, match=r"cannot be copied .*; give inplace=True to change the model itself"):
        convert(model, example_inputs=images)
    assert isinstance(convert(model, example_inputs=images, inplace=True).conv.conv_norm, nn.BatchNorm2d)
    assert torch.equal(model(images), expected)


@pytest.mark.filterwarnings("ignore:.*torch.jit")
@pytest.mark.parametrize("compiled", [torch.jit.script, lambda net: torch.jit.trace(net, torch.ones(1, 3, 8, 8))])
def test_compiled_networks_are_refused_by_their_name(compiled, images):
    with pytest.raises(ConversionError, match=r"Module comes from torch\.jit.*convert the original network"):
        convert(compiled(Net().eval()), example_inputs=images)
    model = nn.Sequential(nn.Conv2d(3, 3, 3), compiled(Net().eval()), nn.Conv2d(4, 4, 3)).eval()
    converted = convert(model, example_inputs=images)
    assert isinstance(converted[2], XVolution2d)
    assert torch.equal(converted(images), model(images))
    assert all(parameter.is_leaf and parameter.requires_grad for parameter in converted[1].parameters())
    left = {row.name: (row.geometry, row.reason) for row in conversion_summary(converted, images).left}
    assert left["1.conv"] == ("3x3 4->4", "compiled by torch.jit")


class Asks(Net):
    """Asks its convolution for something beside calling it."""

    def __init__(self, asks):
        super().__init__()
        self.conv.index = 7
        self.asks = asks

    def forward(self, x):
        if x.sum() > 1e9:  # as in many networks, torch.fx cannot read it
            return x
        x = self.stem(x)
        conv = self.conv
        x = {
            "dtype": lambda: x.to(conv.weight.dtype),
            "device": lambda: x.to(conv.weight.device),
            "like the weight": lambda: x.to(conv.weight).type_as(conv.weight),
            "shape": lambda: x[:, : conv.weight.shape[1]].flip(0)[: len(conv.weight), : conv.weight.size(1)],
            "bias": lambda: x if conv.bias is None else x.to(conv.bias.dtype) * 2,
            "geometry": lambda: F.pad(x, [(k - 1) * d // 2 - p for k, d, p in self.sides() for _ in range(2)]),
            "a note": lambda: x * conv.index,
        }[self.asks]()
        return self.norm(conv(x))

    def sides(self):
        conv = self.conv
        assert conv.stride == (1, 1)
        assert (conv.in_channels, conv.out_channels, conv.groups, conv.padding_mode) == (4, 4, 1, "zeros")
        return zip(conv.kernel_size, conv.dilation, conv.padding, strict=True)


@pytest.mark.parametrize("asks", ["dtype", "device", "like the weight", "shape", "bias", "geometry", "a note"])
def test_operators_answer_for_the_convolution_that_they_replace(asks, images):
    torch.manual_seed(0)
    model = randomize(Asks(asks)).double().eval()
    x = images.double()
    converted = convert(model, example_inputs=x)
    assert isinstance(converted.conv, XVolution2d)
    assert isinstance(converted.conv.conv_norm, nn.BatchNorm2d)
    assert torch.equal(converted(x), model(x))
    deployed = reparameterize(converted, x)
    torch.testing.assert_close(deployed(x), model(x))
    torch.testing.assert_close(
        torch.export.export(Straight(deployed.conv), (x.repeat(1, 2, 1, 1)[:, :4],)).module()(
            x.repeat(1, 2, 1, 1)[:, :4]
        ),
        deployed.conv(x.repeat(1, 2, 1, 1)[:, :4]),
    )


class Straight(nn.Module):
    """Reads the dtype of a layer's weight in a graph."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x.to(self.layer.weight.dtype))


def test_a_convolution_without_bias_has_none_afterwards(images):
    model = Net()
    model.conv = nn.Conv2d(4, 4, 3, padding=1, bias=False)
    converted = convert(model.eval(), example_inputs=images)
    assert converted.conv.bias is None
    assert reparameterize(converted).conv.bias is None


@pytest.mark.parametrize(
    "computes",
    [
        lambda weight, x: F.conv2d(x, weight, padding=1),
        lambda weight, x: x * weight.mean(),
        lambda weight, x: x * weight[0, 0, 0, 0],
        lambda weight, x: x + (weight * 2).sum(),
        lambda weight, x: x + weight.data.sum(),
        lambda weight, x: torch.cat([w.flatten() for w in weight]).sum() + x,
    ],
)
def test_computing_with_the_weight_is_an_error_that_names_it(computes, images):
    class Computes(Net):
        def forward(self, x):
            return self.norm(self.conv(computes(self.conv.weight, self.stem(x))))

    model = Computes().eval()
    with pytest.raises(ConversionError, match=r"the network reads conv\.weight, but an X-volution has replaced"):
        convert(model, example_inputs=images)
    operator = convert(Net().eval(), example_inputs=images).conv
    for net in (operator, reparameterize(operator)):
        with pytest.raises(ConversionError, match=r"reads conv\.weight"):
            computes(net.weight, images)
        with pytest.raises(AttributeError):
            _ = net.weight.no_attribute_of_tensors


class BuiltAnew(nn.Module):
    """Keeps what it was made of as its state, as einops' layers do, and so forgets its mode in a copy."""

    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def __getstate__(self):
        return {"factor": self.factor}

    def __setstate__(self, state):
        self.__init__(**state)

    def forward(self, x):
        return x * self.factor


@pytest.mark.parametrize("training", [True, False])
def test_copies_keep_the_mode_of_modules_that_build_themselves_anew(training, images):
    network = nn.Sequential(Net(), BuiltAnew(2.0)).train(training)
    converted = convert(network, example_inputs=images)
    assert {module.training for module in converted.modules()} == {training}
    deployed = reparameterize(randomize(converted).eval(), images)
    assert not any(module.training for module in deployed.modules())
