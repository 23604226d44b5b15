"""Convolutions of classes of their own: understood exactly by running them, or left alone."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

from tests.core.networks import randomize
from xvolution import XVolution2d, convert, reparameterize
from xvolution.attention import Global, Linear, PixelShift, PixelShiftDot
from xvolution.convolutions import conv_over, geometry_of, is_convolution, kernel_of, padding_of
from xvolution.geometry import Geometry


class Standardized(nn.Conv2d):
    """Weights of zero mean and unit variance for each output channel."""

    def forward(self, x):
        weight = F.batch_norm(self.weight.reshape(1, self.out_channels, -1), None, None, training=True)
        return F.conv2d(
            x, weight.reshape_as(self.weight), self.bias, self.stride, self.padding, self.dilation, self.groups
        )


class PaddedBySize(nn.Conv2d):
    """TensorFlow's SAME: as much padding as ceil(n / stride) outputs need."""

    def forward(self, x):
        widths = []
        for n, k, s, d in zip(
            reversed(x.shape[2:]), *map(reversed, (self.kernel_size, self.stride, self.dilation)), strict=False
        ):
            total = max((-(-n // s) - 1) * s + (k - 1) * d + 1 - n, 0)
            widths += [total // 2, total - total // 2]
        return F.conv2d(F.pad(x, widths), self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


class PaddedByModule(nn.Conv2d):
    """TensorFlow's SAME for one image size, by a module of its own, as EfficientNet's ports have it."""

    def __init__(self, *args, image_size=16, **options):
        super().__init__(*args, **options)
        widths = []
        for k, s, d in zip(*map(reversed, (self.kernel_size, self.stride, self.dilation)), strict=True):
            total = max((-(-image_size // s) - 1) * s + (k - 1) * d + 1 - image_size, 0)
            widths += [total // 2, total - total // 2]
        self.static_padding = nn.ZeroPad2d(widths)

    def forward(self, x):
        x = self.static_padding(x)
        return F.conv2d(x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class Around(nn.Conv2d):
    """Puts ``widths`` pixels around the image in a mode of its own, and cuts its output by ``cut`` pixels on the right."""

    def __init__(self, *args, widths, mode="constant", value=0.0, cut=0, **options):
        super().__init__(*args, **options)
        self.widths, self.mode, self.value, self.cut = widths, mode, value, cut

    def forward(self, x):
        x = (
            F.pad(x, self.widths, self.mode, self.value)
            if self.mode == "constant"
            else F.pad(x, self.widths, self.mode)
        )
        return super().forward(x)[..., : -self.cut or None]


class Squared(nn.Conv2d):
    """Not linear in its input."""

    def forward(self, x):
        return super().forward(x * x)


class Twice(nn.Conv2d):
    """Two convolutions in one module."""

    def forward(self, x):
        return super().forward(x) + F.conv2d(x, self.weight[:, :, 1:2, 1:2])


def parametrized():
    conv = nn.Conv2d(4, 8, 3, padding=1)
    parametrize.register_parametrization(conv, "weight", nn.Tanh())
    return conv


UNDERSTOOD = {
    "standardized": lambda: Standardized(4, 8, 3, padding=1),
    "padded by size": lambda: PaddedBySize(4, 8, 3, stride=2),
    "padded by size, dilated": lambda: PaddedBySize(4, 8, 5, stride=(2, 1), dilation=2),
    "padded by size, stride 1": lambda: PaddedBySize(4, 8, 3),
    "padded by size, even": lambda: PaddedBySize(4, 8, 4, groups=4),
    "padded by a module": lambda: PaddedByModule(4, 8, 3, bias=False),
    "padded by a module, even": lambda: PaddedByModule(4, 8, 4, dilation=3),
    "padded by a module, stride 2": lambda: PaddedByModule(4, 8, 3, stride=2),
    "padded by a module, stride 3": lambda: PaddedByModule(4, 8, (5, 3), stride=3, image_size=17),
    "padded before alone, and by its own": lambda: Around(4, 8, 3, widths=(2, 0, 0, 0), padding=(1, 0)),
    "every side its own": lambda: Around(4, 8, 3, widths=(0, 1, 2, 3), stride=(1, 2)),
    "cropped": lambda: Around(4, 8, 3, widths=(0, -1, 2, 0)),
    "reflected": lambda: Around(4, 8, 3, widths=(1, 2, 0, 1), mode="reflect"),
    "repeated": lambda: Around(4, 8, 3, widths=(2, 0, 0, 0), mode="replicate"),
    "cut behind": lambda: Around(4, 8, 3, widths=(0, 0, 0, 0), padding=2, cut=2),
    "cut behind, stride 2": lambda: Around(4, 8, 3, widths=(1, 0, 0, 0), stride=2, padding=2, cut=1),
    "parametrized": parametrized,
    "weight norm": lambda: parametrizations.weight_norm(nn.Conv2d(4, 8, 3, padding=1)),
    "spectral norm": lambda: parametrizations.spectral_norm(nn.Conv2d(4, 8, 3, padding=1)),
}


def network(conv):
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), conv, nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1))


@pytest.mark.parametrize("name", UNDERSTOOD)
@pytest.mark.parametrize("size", [(13, 16), (12, 9)])
def test_understood_convolutions_convert_and_deploy_exactly(name, size):
    torch.manual_seed(0)
    model = randomize(network(UNDERSTOOD[name]())).double().eval()
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    converted = convert(model, example_inputs=x, at_projections=False)
    operator = converted[1]
    assert isinstance(operator, XVolution2d)
    assert torch.equal(converted(x), model(x))
    nn.init.normal_(operator.attention_norm.weight)
    nn.init.normal_(operator.attention_norm.bias)
    for layout in ("single", "split"):
        deployed = reparameterize(converted, x, layout=layout)
        torch.testing.assert_close(deployed(x), converted(x), rtol=1e-10, atol=1e-11)
        assert not any(parametrize.is_parametrized(module) for module in deployed.modules())


def test_causal_videos_and_signals():
    class Causal(nn.Conv3d):
        def forward(self, x):
            return super().forward(F.pad(x, (0, 0, 0, 0, self.dilation[0] * (self.kernel_size[0] - 1), 0)))

    torch.manual_seed(0)
    video = Causal(3, 4, 3, padding=(0, 1, 1), dilation=(2, 1, 1))
    assert geometry_of(video).padding == ((4, 0), (1, 1), (1, 1))
    model = nn.Sequential(nn.Conv3d(3, 3, 1), video).double().eval()
    x = torch.randn(1, 3, 6, 5, 7, dtype=torch.float64)
    converted = convert(model, names=["1"], example_inputs=x)
    nn.init.normal_(converted[1].attention_norm.weight)
    torch.testing.assert_close(reparameterize(converted, x)(x), converted(x), rtol=1e-10, atol=1e-11)
    first = x.clone()
    first[:, :, 3:] += 1
    assert torch.equal(model(x)[:, :, :3], model(first)[:, :, :3])


def test_a_padding_that_is_no_mode_of_torch_is_left_alone():
    with pytest.raises(ValueError, match="Around does not compute a plain convolution"):
        kernel_of(Around(4, 8, 3, widths=(1, 1, 1, 1), value=-1.0))
    # zeros on some sides and repeated pixels on others
    with pytest.raises(ValueError, match="Around does not compute a plain convolution"):
        kernel_of(Around(4, 8, 3, widths=(2, 0, 0, 0), mode="replicate", padding=(1, 0)))


@pytest.mark.parametrize("stride", [2, 3, 5])
def test_padding_by_the_size_of_the_image_is_told_from_constant_padding(stride):
    for side in (2, 3, 4):
        assert geometry_of(PaddedBySize(4, 4, side, stride=stride)) == Geometry.create(side, stride, "same_upper")


@pytest.mark.parametrize("name", UNDERSTOOD)
def test_networks_without_values_are_understood_alike(name):
    conv = UNDERSTOOD[name]()
    bare = UNDERSTOOD[name]().to("meta")
    assert geometry_of(bare) == geometry_of(conv)
    assert kernel_of(bare).weight.is_meta
    assert kernel_of(bare).weight.shape == kernel_of(conv).weight.shape
    with torch.device("meta"):  # where `evaluate` builds the network of a file
        assert geometry_of(UNDERSTOOD[name]()) == geometry_of(conv)
    converted = convert(network(bare).to("meta"), at_projections=False)
    assert isinstance(converted[1], XVolution2d)
    assert converted.state_dict().keys() == convert(network(conv), at_projections=False).state_dict().keys()


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated")
@pytest.mark.parametrize(
    "computes_weights",
    [
        torch.nn.utils.weight_norm,
        torch.nn.utils.spectral_norm,
        lambda conv: prune.l1_unstructured(conv, "weight", 0.5),
    ],
)
@pytest.mark.parametrize("run_before", [True, False])
def test_weights_that_hooks_compute_follow_the_dtype(computes_weights, run_before):
    torch.manual_seed(0)
    model = randomize(network(computes_weights(nn.Conv2d(4, 8, 3, padding=1)))).eval()
    x = torch.randn(2, 3, 9, 8)
    if run_before:
        model(x)  # outside of no_grad, which leaves a weight that is a result
    converted = convert(model, example_inputs=x, at_projections=False)
    assert isinstance(converted[1], XVolution2d)
    nn.init.normal_(converted[1].attention_norm.weight)
    for dtype in (torch.float64, torch.float32):
        changed = converted.to(dtype)  # without a call, which would compute the weight
        deployed = reparameterize(changed, x.to(dtype), layout="split")
        assert {parameter.dtype for parameter in deployed.parameters()} == {dtype}
        torch.testing.assert_close(deployed(x.to(dtype)), changed(x.to(dtype)))
    once = convert(model.to(torch.bfloat16), example_inputs=x.bfloat16(), at_projections=False, verify=False)
    assert {parameter.dtype for parameter in once.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("kind", [Squared, Twice])
def test_anything_else_is_left_alone(kind):
    assert not is_convolution(kind(4, 8, 3, padding=1))
    with pytest.raises(ValueError, match=f"{kind.__name__}.* does not compute a plain convolution"):
        kernel_of(kind(4, 8, 3, padding=1))
    with pytest.raises(ValueError, match=r"has no convolution that can be|selects no convolution"):
        convert(network(kind(4, 8, 3, padding=1)))


def test_hooks_of_the_user_are_not_run():
    seen = []
    conv = nn.Conv2d(4, 8, 3, padding=1)
    conv.register_forward_hook(lambda module, inputs, output: seen.append(output))
    conv.register_forward_pre_hook(lambda module, inputs: seen.append(inputs))
    assert torch.equal(kernel_of(conv).weight, conv.weight.double())
    assert is_convolution(conv)
    assert not seen


def test_lazy_convolutions_are_left_alone():
    assert not is_convolution(nn.LazyConv2d(4, 3))
    with pytest.raises(ValueError, match="LazyConv2d has no weights yet; run the network once"):
        kernel_of(nn.LazyConv2d(4, 3))


def test_geometry_of():
    assert geometry_of(nn.Conv2d(4, 4, 3, padding="same")) == Geometry.create(3, padding="same")
    assert geometry_of(PaddedBySize(4, 4, 3, stride=2)) == Geometry.create(3, 2, "same_upper")
    assert geometry_of(Standardized(4, 4, 3, padding=(1, 0))) == Geometry.create(3, padding=(1, 0))


def test_padding_of():
    assert padding_of(nn.Conv2d(4, 4, 3, padding="same")) == "same"
    assert padding_of(nn.Conv2d(4, 4, 3, padding=(1, 0))) == (1, 0)
    assert padding_of(PaddedBySize(4, 4, 3, stride=2)) == "same_upper"
    assert padding_of(PaddedBySize(4, 4, 3)) == "same"
    assert padding_of(conv_over(Geometry.create(3, 2, "same_upper"), 4, 4)) == "same_upper"
    assert padding_of(Standardized(4, 4, 3, padding=(1, 0))) == (1, 0)
    uneven = Geometry((3, 3), (2, 2), ((0, 1), (1, 1)), (1, 1))
    with pytest.raises(ValueError, match=r"pads by \(\(0, 1\), \(1, 1\)\) pixels, which nn.Conv2d cannot express"):
        padding_of(conv_over(uneven, 4, 4))


@pytest.mark.parametrize("branch", ["query", "key", "value"])
def test_parametrized_attention_is_materialized(branch):
    torch.manual_seed(0)
    for attention in (PixelShift(), PixelShiftDot(), Linear(), Global()):
        options = {"attention": attention, "zero_init": False, "dtype": torch.float64}
        operator = randomize(XVolution2d(4, 8, 3, padding=1, **options)).eval()
        parametrizations.weight_norm(getattr(operator.attention, branch)).eval()
        x = torch.randn(2, 4, 7, 8, dtype=torch.float64)
        deployed = reparameterize(operator, x)
        torch.testing.assert_close(deployed(x), operator(x), rtol=1e-10, atol=1e-12)
        assert not any(parametrize.is_parametrized(module) for module in deployed.modules())


def test_pruned_branches_deploy_with_their_masks():
    torch.manual_seed(0)
    operator = randomize(XVolution2d(4, 8, 3, padding=1, zero_init=False, dtype=torch.float64)).eval()
    for conv in (operator.conv, operator.attention.key, operator.attention.value):
        prune.l1_unstructured(conv, "weight", 0.5)
    x = torch.randn(2, 4, 7, 8, dtype=torch.float64)
    with torch.no_grad():
        operator(x)
    deployed = reparameterize(operator, x, layout="split")
    torch.testing.assert_close(deployed(x), operator(x), rtol=1e-10, atol=1e-12)
    assert (deployed.conv.weight == 0).sum() >= operator.conv.weight.numel() // 2
