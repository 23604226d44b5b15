"""Operators that somebody changed: each deploys exactly, or is refused with a sentence; none differs in silence."""

import copy
import types

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune, spectral_norm, weight_norm

from tests.core.cases import CASES, VARIANTS
from tests.core.execution import TRAINING, operator, relative_error
from tests.core.networks import SmallNet, randomize
from xvolution import ReparameterizationError, XVolution1d, XVolution2d, XVolution3d, collapse, convert, reparameterize

SIZE = (2, 4, 9, 8)


def images(dtype=torch.float64):
    return torch.randn(SIZE, generator=torch.Generator().manual_seed(1), dtype=dtype)


def built(branch="pixel_shift", variant="default", **options):
    """An operator from 4 to 8 channels in eval mode and fp64, with random statistics."""
    torch.manual_seed(0)
    options = {"padding": 1, "zero_init": False, "dtype": torch.float64, **options}
    return randomize(XVolution2d(4, 8, 3, attention=CASES[branch].variants[variant], **options)).eval()


def parts_of(trained):
    """Names of all convolutions and norms, and of the branch."""
    kinds = (nn.modules.conv._ConvNd, nn.modules.batchnorm._BatchNorm)
    return [name for name, part in trained.named_modules() if isinstance(part, kinds) or name == "attention"]


ADDITIONS = {
    "a forward hook": lambda part: part.register_forward_hook(lambda module, args, output: output * 1.5),
    "a forward pre-hook": lambda part: part.register_forward_pre_hook(lambda module, args: (args[0] + 1, *args[1:])),
    "a backward hook": lambda part: part.register_full_backward_hook(lambda module, before, after: None),
    "a patched forward method": lambda part: setattr(
        part, "forward", types.MethodType(lambda self, x: type(self).forward(self, x).sin(), part)
    ),
}


@pytest.mark.parametrize("addition", ADDITIONS)
@pytest.mark.parametrize("branch", CASES)
def test_what_hangs_on_a_part_is_refused_by_its_name(branch, addition):
    for name in parts_of(built(branch)):
        if name == "attention" and "patched" in addition:
            continue  # it stays attention: tests/core/contract/test_changed.py
        model = nn.Sequential(built(branch)).eval()
        ADDITIONS[addition](model[0].get_submodule(name))
        for deploy in (reparameterize, lambda model: model[0].fuse(), lambda model: collapse(model, [images()])):
            with pytest.raises(ReparameterizationError, match=f"{name} has {addition}, which the deployed form"):
                deploy(model)


def test_the_sentence_names_the_operator():
    model = randomize(convert(SmallNet())).eval()
    model.layer2.conv1.attention.value.register_forward_hook(lambda *_: None)
    with pytest.raises(
        ReparameterizationError, match=r"^layer2\.conv1: attention\.value has a forward hook.*remove it first"
    ):
        reparameterize(model)


@pytest.mark.parametrize("hook_on", ["conv_norm", "attention_norm", "attention"])
def test_hooks_on_parts_that_stay_modules_are_kept(hook_on):
    attention = nn.Conv2d(4, 8, 3, padding=1)
    trained = randomize(XVolution2d(4, 8, 3, padding=1, attention=attention, norm_layer=lambda n: nn.GroupNorm(2, n)))
    trained.get_submodule(hook_on).register_forward_hook(lambda module, args, output: output * 1.5)
    x = images(torch.float32)
    assert relative_error(trained.eval()(x), reparameterize(trained)(x)) <= 1e-5
    assert relative_error(trained(x), trained.fuse()(x)) <= 1e-5


def test_hooks_on_an_operator_go_to_its_deployed_form():
    trained, x, seen = built(), images(), []
    handles = [
        trained.register_forward_hook(lambda module, args, kwargs, output: seen.append(output), with_kwargs=True),
        trained.register_forward_pre_hook(lambda module, args: (2 * args[0],)),
        trained.register_full_backward_hook(lambda module, before, after: seen.append(after[0])),
    ]
    expected = trained(x)
    for deployed in (reparameterize(trained), trained.fuse(), reparameterize(trained, x)):
        seen.clear()
        y = deployed(x.requires_grad_())
        y.sum().backward()
        assert relative_error(expected, y) <= 1e-12
        assert torch.equal(seen[0], y)
        assert len(seen) == 2
    static, _ = collapse(trained, [x])
    seen.clear()
    assert relative_error(static(x), seen[0]) == 0
    fused = trained.fuse()
    for handle in handles:
        handle.remove()
    assert relative_error(trained(x), fused(x)) <= 1e-12
    seen.clear()
    reparameterize(trained)
    assert not seen, "the check does not run hooks"


@pytest.mark.parametrize(
    "computes_weights",
    [
        weight_norm,
        spectral_norm,
        parametrizations.weight_norm,
        parametrizations.spectral_norm,
        lambda conv: prune.l1_unstructured(conv, "weight", 0.5),
        lambda conv: parametrize.register_parametrization(conv, "weight", nn.Tanh()),
    ],
)
@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated")
def test_hooks_that_compute_weights_are_understood(computes_weights, inplace):
    trained, x = built(), images()
    for part in (trained.conv, trained.attention.key, trained.attention.windows[0]):
        computes_weights(part)
    trained.eval()
    expected = trained(x)  # with gradients: weights are results of a graph then, which torch does not copy
    deployed = reparameterize(trained, x, layout="split", inplace=inplace)
    assert relative_error(expected, deployed(x)) <= 1e-12


class Halved(XVolution2d):
    """Computes another formula than its parent."""

    def forward(self, x):
        return super().forward(x) / 2


def exchange(name, build):
    """Put ``build(old)`` in the place of a part."""

    def tamper(trained):
        trained.set_submodule(name, build(trained.get_submodule(name)).to(torch.float64).eval())

    return tamper


def set_attribute(name, attribute, value):
    return lambda trained: setattr(trained.get_submodule(name), attribute, value)


def randomized_norm(old):
    return randomize(nn.BatchNorm2d(old.num_features, eps=0.1))


def double_padding(trained):
    trained.conv.padding = (2, 2)


def patch_method(trained):
    convolve = trained.conv._conv_forward
    trained.conv._conv_forward = lambda x, weight, bias: convolve(x, weight, bias).relu()


def patch_window(trained):
    window = trained.attention.windows[0]
    window._conv_forward = lambda x, weight, bias: nn.functional.conv2d(x, weight**2, None, 1, 1, 1, window.groups)


def halve(trained):
    trained.__class__ = Halved


#: What was done, and a part of the sentence that refuses it; None where it deploys exactly.
TAMPERED = {
    "query with a window": (exchange("attention.query", lambda old: nn.Conv2d(4, 2, 3, padding=1)), "cannot be merged"),
    "query with padding": (exchange("attention.query", lambda old: nn.Conv2d(4, 2, 1, padding=1)), "cannot be"),
    "query with a stride": (exchange("attention.query", lambda old: nn.Conv2d(4, 2, 1, stride=2)), "cannot be run"),
    "query in groups": (exchange("attention.query", lambda old: nn.Conv2d(4, 2, 1, groups=2)), "cannot be merged"),
    "query without bias": (exchange("attention.query", lambda old: nn.Conv2d(4, 2, 1, bias=False)), None),
    "query and an activation": (
        exchange("attention.query", lambda old: nn.Sequential(old, nn.ReLU())),
        "cannot be merged",
    ),
    "query is no convolution": (exchange("attention.query", lambda old: nn.Identity()), "cannot be"),
    "key with bias": (
        exchange("attention.key", lambda old: nn.Conv2d(4, 2, 1)),
        r"Likely cause: attention\.key is Conv2d\(4, 2, kernel_size=\(1, 1\), stride=\(1, 1\)\), but",
    ),
    "key with a window": (exchange("attention.key", lambda old: nn.Conv2d(4, 2, 3, padding=1)), "cannot be merged"),
    "value with bias": (exchange("attention.value", lambda old: nn.Conv2d(2, 8, 1)), r"attention\.value is Conv2d"),
    "value with a window": (exchange("attention.value", lambda old: nn.Conv2d(2, 8, 3, padding=1)), "cannot be merged"),
    "value and dropout": (
        exchange("attention.value", lambda old: nn.Sequential(old, nn.Dropout())),
        "cannot be merged",
    ),
    "window with bias": (
        exchange("attention.windows.0", lambda old: nn.Conv2d(2, 2, 3, padding=1, groups=2)),
        r"attention\.windows\.0 is Conv2d",
    ),
    "window without groups": (
        exchange("attention.windows.0", lambda old: nn.Conv2d(2, 2, 3, padding=1)),
        "cannot be merged",
    ),
    "window of another size": (
        exchange("attention.windows.0", lambda old: nn.Conv2d(2, 2, 5, padding=2, groups=2, bias=False)),
        None,
    ),
    "window that is wrapped": (lambda trained: trained.attention.windows.append(nn.ReLU()), "cannot be"),
    "window left out": (
        lambda trained: setattr(trained.attention, "windows", nn.ModuleList()),
        r"attention\.windows\.0 is None, but Conv2d",
    ),
    "a second window": (
        lambda trained: trained.attention.windows.append(nn.Conv2d(2, 2, 3, padding=1, groups=2, bias=False).double()),
        None,
    ),
    "context left out": (lambda trained: setattr(trained.attention, "context", None), None),
    "mean weight left out": (lambda trained: setattr(trained.attention, "mean_weight", None), None),
    "another gate": (set_attribute("attention", "gate", "tanh"), None),
    "no such gate": (set_attribute("attention", "gate", "relu"), r"cannot be run on a small random image \('relu'\)"),
    "padding_mode of the convolution": (set_attribute("conv", "padding_mode", "circular"), "padding_mode=circular"),
    "padding_mode of the window": (
        set_attribute("attention.windows.0", "padding_mode", "reflect"),
        "padding_mode=refl",
    ),
    "padding of the convolution": (double_padding, "cannot be (run|merged)"),
    "another convolution": (exchange("conv", lambda old: nn.Conv2d(4, 8, 3, padding=1, bias=False)), None),
    "a larger convolution": (exchange("conv", lambda old: nn.Conv2d(4, 8, 5, padding=2)), None),
    "a transposed convolution": (exchange("conv", lambda old: nn.ConvTranspose2d(4, 8, 3, padding=1)), "cannot be"),
    "convolution and an activation": (exchange("conv", lambda old: nn.Sequential(old, nn.ReLU())), "cannot be merged"),
    "a method of the convolution": (patch_method, "cannot be"),
    "a method of the window": (patch_window, None),
    "dropout for a norm": (exchange("attention_norm", lambda old: nn.Dropout()), None),
    "dropout for the convolution's norm": (exchange("conv_norm", lambda old: nn.Dropout()), None),
    "dropout for the query's norm": (exchange("attention.query_norm", lambda old: nn.Dropout()), None),
    "an activation for a norm": (exchange("attention.window_norm", lambda old: nn.ReLU()), None),
    "group norm for a norm": (exchange("conv_norm", lambda old: nn.GroupNorm(2, 8)), None),
    "instance norm for a norm": (exchange("attention_norm", lambda old: nn.InstanceNorm2d(8, affine=True)), None),
    "another batch norm": (exchange("attention_norm", randomized_norm), None),
    "batch norm without statistics": (
        exchange("conv_norm", lambda old: nn.BatchNorm2d(8, track_running_stats=False)),
        None,
    ),
    "norm and an activation": (exchange("conv_norm", lambda old: nn.Sequential(old, nn.ReLU())), None),
    "attention left out": (lambda trained: setattr(trained, "attention", None), None),
    "another attention": (exchange("attention", lambda old: nn.Conv2d(4, 8, 3, padding=1)), None),
    "a subclass": (halve, "its class Halved changes what XVolution2d computes"),
    "a method of the operator": (
        lambda trained: setattr(trained, "_convolve", lambda x, value: value),
        "a method, a submodule or an attribute was changed",
    ),
    "a forward of the operator": (
        lambda trained: setattr(trained, "forward", lambda x: trained.conv(x)),
        "the operator has a patched forward method",
    ),
}


@pytest.mark.parametrize("with_example", [True, False])
@pytest.mark.parametrize("layout", ["split", "single", "auto"])
@pytest.mark.parametrize("what", TAMPERED)
def test_a_tampered_operator_deploys_exactly_or_is_refused(what, layout, with_example):
    tamper, sentence = TAMPERED[what]
    trained, x = built(), images()
    tamper(trained)
    if what in ("attention left out", "another attention"):
        layout = "auto"
    model = nn.Sequential(trained).eval()
    inputs = [x] if with_example and sentence is None else []
    # One layout may be exact where the other is not: there each convolution is what it was exchanged for.
    refused = sentence is not None and not (layout != "single" and what.startswith("padding_mode"))
    if refused:
        with pytest.raises(ReparameterizationError, match=f"^0: .*{sentence}"):
            reparameterize(model, *inputs, layout=layout)
    else:
        deployed = reparameterize(model, *inputs, layout=layout)
        assert relative_error(model(x), deployed(x)) <= 1e-12


EXCHANGED = [
    lambda old: nn.Conv2d(old.in_channels, old.out_channels, 3, padding=1, bias=False),
    lambda old: nn.Conv2d(old.in_channels, old.out_channels, 1, padding=1),
    lambda old: nn.Conv2d(old.in_channels, old.out_channels, 1, stride=2),
    lambda old: nn.Conv2d(old.in_channels, old.out_channels, 1),
    lambda old: nn.Conv2d(old.in_channels, old.out_channels, 5, padding=2, padding_mode="circular"),
    lambda old: nn.Sequential(old, nn.ReLU()),
]


@pytest.mark.parametrize("exchanged", range(len(EXCHANGED)))
@pytest.mark.parametrize(("branch", "variant"), VARIANTS)
def test_no_exchanged_convolution_differs_in_silence(branch, variant, exchanged):
    x, outcomes = images(), []
    for name in (name for name in parts_of(built(branch, variant)) if not name.endswith(("norm", "attention"))):
        trained = built(branch, variant)
        exchange(name, EXCHANGED[exchanged])(trained)
        for layout in ("single", "split"):
            try:
                deployed = reparameterize(copy.deepcopy(trained), layout=layout)
            except (ReparameterizationError, ValueError) as error:
                outcomes.append(str(error))
                continue
            assert relative_error(trained(x), deployed(x)) <= 1e-10, name
            outcomes.append("exact")
    assert outcomes


@pytest.mark.parametrize("padding_mode", ["zeros", "reflect", "circular", "replicate"])
@pytest.mark.parametrize(("branch", "variant"), VARIANTS)
def test_untampered_operators_of_every_geometry_pass(branch, variant, padding_mode):
    geometries = ({"stride": 2}, {"padding": 6, "dilation": 3}, {"padding": 2, "stride": (2, 1), "bias": False}, {})
    attention = CASES[branch].variants[variant]
    for options in geometries:
        for cls, norm in (
            (XVolution2d, nn.BatchNorm2d),
            (XVolution2d, lambda n: nn.GroupNorm(2, n)),
            (XVolution2d, None),
        ):
            given = {"padding": 1, **options, "padding_mode": padding_mode, "norm_layer": norm, "attention": attention}
            reparameterize(randomize(cls(4, 8, 3, zero_init=False, **given)).eval())
    for cls in (XVolution1d, XVolution3d):
        if variant == "default" and not (padding_mode == "reflect" and cls is XVolution3d):
            reparameterize(randomize(cls(4, 8, 3, padding=1, padding_mode=padding_mode, attention=attention)).eval())
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        reparameterize(operator(branch, variant, TRAINING, padding_mode=padding_mode).to(dtype))
    reparameterize(built(branch, variant).to("meta"))


class FixedSize(nn.Module):
    """Attention for one size of images, in one dtype, as those with a table of positions are."""

    def __init__(self, size=9, dtype=torch.float32):
        super().__init__()
        self.conv, self.size, self.dtype = nn.Conv2d(4, 8, 3, padding=1), size, dtype

    def forward(self, x):
        assert x.shape[2] == self.size
        assert x.dtype == self.dtype
        return self.conv(x)


class Noise(nn.Module):
    """Draws random numbers in eval mode too."""

    def forward(self, x):
        return torch.randn(len(x), 8, *x.shape[2:], dtype=x.dtype)


@pytest.mark.parametrize("attention", [FixedSize, lambda: FixedSize(3), Noise, lambda: nn.Conv2d(4, 8, 3, padding=1)])
def test_modules_of_others_that_no_small_image_suits_deploy_as_they_are(attention):
    trained, x = (
        randomize(XVolution2d(4, 8, 3, padding=1, attention=attention(), zero_init=False)).eval(),
        images().float(),
    )
    deployed = reparameterize(trained)
    if isinstance(trained.attention, nn.Conv2d) or getattr(trained.attention, "size", 0) == 9:
        assert relative_error(trained(x), deployed(x)) <= 1e-5
    trained._convolve = lambda x, value: value
    if not isinstance(trained.attention, Noise) and getattr(trained.attention, "size", 0) != 9:
        with pytest.raises(ReparameterizationError, match="does not compute the same as its deployed form"):
            reparameterize(trained)


def test_frozen_weights_stay_frozen():
    trained = built()
    assert all(parameter.requires_grad for parameter in reparameterize(trained).parameters())
    assert not any(parameter.requires_grad for parameter in reparameterize(trained.requires_grad_(False)).parameters())
