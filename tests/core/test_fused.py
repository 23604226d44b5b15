"""The branch as one operator: its reference, its gradients, and everything that torch does to operators."""

import copy

import pytest
import torch
from torch import nn

from tests.core.networks import randomize
from xvolution import XVolution1d, XVolution2d, XVolution3d, functional
from xvolution.attention import PixelShift, PixelShiftAttention
from xvolution.attention.fused import reference, step
from xvolution.geometry import per_channel


@pytest.fixture(autouse=True)
def _serve_small_maps(monkeypatch):
    monkeypatch.setattr(step, "SMALLEST", 1)


GEOMETRIES = {
    "plain": {},
    "groups": {"groups": 2},
    "stride": {"stride": 2, "mean": False},
    "dilation": {"dilation": 2, "padding": 2, "gate": "tanh"},
    "signal": {"size": (9,), "gate": "identity"},
    "video": {"size": (4, 5, 3)},
    "channels_last": {"channels_last": True},
}


def arguments(
    size=(6, 7), groups=1, stride=1, padding=1, dilation=1, gate="sigmoid", mean=True, channels_last=False, channels=8
):
    """Positional arguments of ``xvolution::add_attention`` in float64, with gradients, and its options."""
    dims, inner = len(size), channels // 2
    generator = torch.Generator().manual_seed(0)

    def random(*shape):
        x = torch.randn(*shape, dtype=torch.float64, generator=generator)
        x = x.to(memory_format=torch.channels_last) if channels_last and x.dim() == 4 else x
        return x.requires_grad_()

    out = [(n + 2 * padding - 2 * dilation - 1) // stride + 1 for n in size]
    tensors = [
        random(3, channels, *out), random(3, inner, *out), random(3, inner, *size), random(inner, 1, *(3,) * dims),
        random(inner) if mean else None, random(2, inner), random(2, inner),
        random(channels, inner // groups, *(1,) * dims), random(2, channels),
    ]  # fmt: skip
    return tensors, [gate, [stride] * dims, [padding] * dims, [dilation] * dims, [1e-5, 1e-4, 1e-3]]


def operator(*inputs):
    return torch.ops.xvolution.add_attention(*inputs)[0]


def gradients(output, inputs):
    cotangent = torch.randn(output.shape, dtype=output.dtype, generator=torch.Generator().manual_seed(1))
    return torch.autograd.grad(output, [x for x in inputs if x is not None], cotangent)


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_the_operator_is_its_reference(geometry):
    tensors, options = arguments(**GEOMETRIES[geometry])
    expected = reference.add_attention(*tensors, *options)
    actual = operator(*tensors, *options)
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)
    assert actual.stride() == tensors[0].stride()
    for ours, theirs in zip(gradients(actual, tensors), gradients(expected, tensors), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


def test_the_reference_is_the_formula():
    """With the norms' statistics and scales folded by hand, it is ``functional.pixel_shift_attention``."""
    (y, query, key, window, mean_weight, _, _, value, _), options = arguments()
    ones = torch.stack([torch.ones(4), torch.zeros(4)]).double()
    channels = torch.stack([torch.ones(8), torch.zeros(8)]).double()
    _, (of_query, of_sum, of_output) = functional.add_attention(
        y, query, key, window, mean_weight, ones, ones, value, channels,
        gate="identity", stride=[1, 1], padding=[1, 1], dilation=[1, 1], eps=options[-1],
    )  # fmt: skip
    eye = torch.eye(4, dtype=torch.float64)
    scale_q, scale_k = ((each[1] + eps).rsqrt() for each, eps in zip((of_query, of_sum), options[-1], strict=False))
    attended = functional.pixel_shift_attention(
        torch.cat([query, key], 1),
        torch.cat([eye, 0 * eye], 1)[..., None, None] * scale_q[:, None, None, None],
        torch.cat([0 * eye, eye], 1)[..., None, None],
        value,
        window[:, 0] * scale_k[:, None, None],
        -of_query[0] * scale_q,
        -of_sum[0] * scale_k,
        mean_weight * scale_k,
        padding=1,
    )
    shift, scale = (per_channel(part, y) for part in (of_output[0], (of_output[1] + 1e-3).rsqrt()))
    expected = reference.add_attention(
        y, query, key, window, mean_weight, ones, ones, value, channels, "identity", *options[1:]
    )
    torch.testing.assert_close(y + (attended - shift) * scale, expected)


def test_first_and_second_derivatives_are_right():
    tensors, options = arguments(size=(4, 3), channels=2)
    inputs = [x.detach()[:2] if index < 3 else x.detach() for index, x in enumerate(tensors)]
    inputs = [x.requires_grad_() for x in inputs]
    assert torch.autograd.gradcheck(lambda *x: operator(*x, *options), inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(lambda *x: operator(*x, *options), inputs, fast_mode=True)


@pytest.mark.parametrize("geometry", ["plain", "stride", "channels_last"])
def test_torch_accepts_the_operator(geometry):
    tensors, options = arguments(**GEOMETRIES[geometry])
    torch.library.opcheck(torch.ops.xvolution.add_attention, (*tensors, *options))


def test_vmap_runs_the_operator_for_each_element():
    (y, query, *rest), options = arguments()
    batch = torch.randn(*query.shape, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    actual = torch.func.vmap(lambda each: operator(y, each, *rest, *options), in_dims=-1)(batch)
    for index in range(2):
        torch.testing.assert_close(actual[index], operator(y, batch[..., index], *rest, *options))


BLOCKS = {
    "default": (XVolution2d, {}),
    "stride": (XVolution2d, {"stride": 2}),
    "groups": (XVolution2d, {"groups": 2, "attention": PixelShift(gate="tanh", attention_ratio=0.5)}),
    "window": (XVolution2d, {"attention": PixelShift(window=5)}),
    "no-mean": (XVolution2d, {"attention": PixelShift(pooled_key=False, gate="identity")}),
    "signal": (XVolution1d, {}),
    "video": (XVolution3d, {}),
}


def block(name, **options):
    kind, chosen = BLOCKS[name]
    torch.manual_seed(0)
    return randomize(kind(4, 8, 3, **{"padding": 1, "zero_init": False, **chosen, **options})).double().train()


def images(module, dtype=torch.float64):
    return torch.randn(3, 4, *(8, 7, 5)[: module.dims], generator=torch.Generator().manual_seed(3)).to(dtype)


def apart(module, x):
    y = module.conv_norm(module.conv(x))
    return y + module.attention_norm(module.attention(x)).to(y.dtype)


def together(module, x):
    y = module.conv_norm(module.conv(x))
    assert step.serves(module.attention, module.attention_norm, y)
    return step.add_branch(y, x, module.attention, module.attention_norm)


@pytest.mark.parametrize("name", BLOCKS)
def test_a_training_step_is_that_of_the_modules(name):
    expected, x = block(name), images(block(name))
    apart(expected, x).sin().sum().backward()
    for path in (together, nn.Module.__call__):
        module = block(name)
        path(module, x).sin().sum().backward()
        for ours, theirs in zip(module.parameters(), expected.parameters(), strict=True):
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-8, atol=1e-8)
        for ours, theirs in zip(module.buffers(), expected.buffers(), strict=True):
            torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 2e-2), (torch.float16, 3e-3)])
def test_autocast_trains_as_close_as_the_modules(dtype, tolerance):
    module, x = block("default").float(), images(block("default"), torch.float32)
    expected = apart(copy.deepcopy(module).double(), x.double())
    with torch.autocast("cpu", dtype=dtype):
        y = together(module, x)
    assert y.dtype == dtype
    assert ((y - expected).abs().max() / expected.abs().max()).item() < tolerance
    y.float().square().sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in module.parameters())


def test_products_beyond_half_precision_stay_finite():
    tensors, options = arguments(gate="identity")
    with torch.no_grad():
        low = [None if x is None else x.half() for x in tensors]
        for affine in (low[5], low[6]):
            affine.copy_(torch.tensor([[1000.0], [0.0]]).expand(2, 4))
        assert operator(*low, *options).isfinite().all()


def test_less_is_kept_for_the_backward_pass():
    module, x = XVolution2d(64, 64, 3, padding=1, bias=False, zero_init=False), torch.randn(2, 64, 28, 28)

    def kept(path):
        stored = {}

        def pack(tensor):
            stored[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            path(module, x).sum().backward()
        return sum(stored.values())

    plain = kept(lambda module, x: module.conv_norm(module.conv(x)))
    assert kept(together) < 1.3 * plain
    assert kept(apart) > 1.8 * plain


@pytest.mark.parametrize("dynamic", [False, True])
def test_a_training_step_compiles_to_one_graph(dynamic):
    torch._dynamo.reset()
    module, x = block("default"), images(block("default"))
    twin = copy.deepcopy(module)
    compiled = torch.compile(lambda x: together(module, x), fullgraph=True, dynamic=dynamic, backend="aot_eager")
    compiled(x).square().sum().backward()
    together(twin, x).square().sum().backward()
    for actual, expected in zip(module.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(actual.grad, expected.grad)
    for actual, expected in zip(module.buffers(), twin.buffers(), strict=True):
        torch.testing.assert_close(actual, expected)


def test_gradients_of_each_sample_in_train_mode():
    module = block("default")
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.track_running_stats, norm.running_mean, norm.running_var = False, None, None
            del norm.num_batches_tracked
    x = images(module)
    parameters = {name: parameter.detach() for name, parameter in module.named_parameters()}

    def loss(weights, image):
        return torch.func.functional_call(module, weights, (image.unsqueeze(0),)).square().mean()

    single = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, x)
    for index, image in enumerate(x):
        grads = torch.autograd.grad(module(image.unsqueeze(0)).square().mean(), list(module.parameters()))
        for name, expected in zip(parameters, grads, strict=True):
            torch.testing.assert_close(single[name][index], expected, rtol=1e-8, atol=1e-8)


def disturbed(what):
    options = {"dilations": {"attention": PixelShift(dilation=(1, 2))}, "reflect": {"padding_mode": "reflect"}}
    module = block("default", **options.get(what, {}))
    if what == "hooked":
        module.attention.value.register_forward_hook(lambda *_: None)
    elif what == "parametrized":
        nn.utils.parametrizations.weight_norm(module.attention.windows[0])
    elif what == "synchronized":
        module = nn.SyncBatchNorm.convert_sync_batchnorm(module)
    elif what == "frozen":
        module.attention.query_norm.eval()
    elif what == "cumulative":
        module.attention_norm.momentum = None
    elif what == "evaluation":
        module.eval()
    elif what == "patched":
        module.attention.forward = lambda x: module.conv(x)
    return module


DISTURBED = (
    "dilations", "reflect", "hooked", "parametrized", "synchronized", "frozen", "cumulative", "evaluation", "patched",
)  # fmt: skip


@pytest.mark.parametrize("what", DISTURBED)
def test_everything_else_runs_as_modules(what):
    module = disturbed(what)
    assert not step.serves(module.attention, module.attention_norm, torch.zeros(3, 8, 8, 7))


def test_a_subclass_trains_by_its_own_forward():
    class Doubled(PixelShiftAttention):
        def forward(self, x):
            return 2 * super().forward(x)

    module = block("default", norm_layer=None)
    expected = apart(copy.deepcopy(module), images(module))
    module.attention.__class__ = Doubled
    doubled = module(images(module))
    torch.testing.assert_close(doubled - module.conv(images(module)), 2 * (expected - module.conv(images(module))))
    module = block("default")
    module.attention.__class__ = Doubled
    torch.testing.assert_close(module(images(module)), apart(module, images(module)))


def test_one_value_for_each_channel_is_refused_as_before():
    module = block("default")
    assert not step.serves(module.attention, module.attention_norm, torch.zeros(1, 8, 1, 1))
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        module(torch.zeros(1, 4, 1, 1, dtype=torch.float64))


def test_small_maps_and_other_devices_run_as_modules(monkeypatch):
    module = block("default")
    assert step.serves(module.attention, module.attention_norm, torch.zeros(3, 8, 8, 7))
    monkeypatch.undo()
    assert not step.serves(module.attention, module.attention_norm, torch.zeros(3, 8, 8, 7))
    large = torch.zeros(()).expand(32, 64, 56, 56)
    assert step.serves(module.attention, module.attention_norm, large)
    assert not step.serves(module.attention, module.attention_norm, large.to("meta"))
