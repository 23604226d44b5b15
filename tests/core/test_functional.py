"""The reference semantics against the formulas, pixel by pixel, and the fast paths against the reference."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tests.core.networks import inputs_for, operators
from xvolution import LinearAttention2d, PixelShiftAttention2d, functional
from xvolution.nn import ImageAttention
from xvolution.nn.branches import ATTENTION_BRANCHES
from xvolution.nn.geometry import CONVOLUTIONS
from xvolution.nn.pixel_shift import GATES
from xvolution.nn.shared_attention import SHARED_GATES


def test_shift_reads_the_pixel_at_the_offset():
    x = torch.arange(2 * 3 * 5 * 7.0).reshape(2, 3, 5, 7)
    shifted = functional.shift(x, (2, -1))
    assert shifted[1, 2, 1, 3] == x[1, 2, 3, 2]
    assert (shifted[:, :, 3:] == 0).all()
    assert (shifted[:, :, :, 0] == 0).all()
    assert functional.shift(x, (0, 8)).eq(0).all()


def test_shift_wraps_around_in_circular_mode():
    x = torch.randn(1, 2, 5, 7)
    assert torch.equal(functional.shift(x, (1, -2), "circular"), torch.roll(x, (-1, 2), (2, 3)))


def test_pixel_shift_products_are_products_with_shifted_keys():
    query, key = torch.randn(2, 4, 6, 7), torch.randn(2, 4, 6, 7)
    products = functional.pixel_shift_products(query, key, 3, padding=2, dilation=2)
    offsets = [(dy, dx) for dy in (-2, 0, 2) for dx in (-2, 0, 2)]
    for tap, offset in enumerate(offsets):
        torch.testing.assert_close(products[:, :, tap], query * functional.shift(key, offset))


def test_attention_is_the_sum_over_the_window_pixel_by_pixel():
    torch.manual_seed(0)
    x = torch.randn(1, 3, 4, 5, dtype=torch.float64)
    weights = {
        "query_weight": (4, 3, 1, 1),
        "key_weight": (4, 3, 1, 1),
        "value_weight": (6, 4, 1, 1),
        "window_weight": (4, 3, 3),
    }
    weights = {name: torch.randn(shape, dtype=torch.float64) for name, shape in weights.items()}
    y = functional.pixel_shift_attention(x, **weights, padding=1)
    query, key = (torch.einsum("ac,nchw->nahw", weights[f"{name}_weight"][..., 0, 0], x) for name in ("query", "key"))
    row, column = 0, 2
    total = torch.zeros(4, dtype=torch.float64)
    for dy in (-1, 0, 1):
        for dx in (-1, 0, 1):
            if 0 <= row + dy < 4 and 0 <= column + dx < 5:
                weight = weights["window_weight"][:, dy + 1, dx + 1]
                total += weight * query[0, :, row, column] * key[0, :, row + dy, column + dx]
    torch.testing.assert_close(y[0, :, row, column], weights["value_weight"][..., 0, 0] @ total)


def test_dot_attention_is_equation_9_pixel_by_pixel():
    torch.manual_seed(0)
    x = torch.randn(1, 3, 4, 5, dtype=torch.float64)
    shapes = {"query_weight": (4, 3), "key_weight": (4, 3), "value_weight": (6, 3)}
    weights = {name: torch.randn(*shape, 1, 1, dtype=torch.float64) for name, shape in shapes.items()}
    window = torch.randn(2, 3, 3, dtype=torch.float64)
    y = functional.pixel_shift_attention(x, **weights, window_weight=window, similarity="dot", padding=1)
    query, key, value = (torch.einsum("ac,chw->ahw", weight[..., 0, 0], x[0]) for weight in weights.values())
    expected = torch.zeros(6, dtype=torch.float64)
    for head in range(2):
        for dy in (-1, 0, 1):
            for dx in (-1, 0, 1):
                channels, outputs = slice(2 * head, 2 * head + 2), slice(3 * head, 3 * head + 3)
                score = query[channels, 2, 3] @ key[channels, 2 + dy, 3 + dx] if 3 + dx < 5 and 2 + dy < 4 else 0.0
                if 3 + dx < 5 and 2 + dy < 4:
                    expected[outputs] += window[head, dy + 1, dx + 1] * score * value[outputs, 2 + dy, 3 + dx]
    torch.testing.assert_close(y[0, :, 2, 3], expected)


def test_dynamic_convolution_with_one_kernel_everywhere_is_a_convolution():
    x, weight = torch.randn(2, 4, 7, 8, dtype=torch.float64), torch.randn(6, 2, 3, 2, dtype=torch.float64)
    bias = torch.randn(6, dtype=torch.float64)
    options = {"stride": (2, 1), "padding": (1, 0), "dilation": (1, 2), "groups": 2}
    expected = nn.functional.conv2d(x, weight, bias, **options)
    kernel = weight[None, ..., None, None].expand(2, -1, -1, -1, -1, *expected.shape[2:])
    torch.testing.assert_close(functional.dynamic_conv2d(x, kernel, bias, **options), expected)


def _reference(operator: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """The attention branch of a norm-free operator by the reference, distance by distance."""
    conv, attention = operator.conv, operator.attention
    options = {"stride": conv.stride, "groups": conv.groups, "padding_mode": conv.padding_mode}
    if isinstance(attention, ImageAttention):
        keys = () if attention.key is None else (attention.key.weight, attention.key.bias)
        return functional.image_attention(
            x, attention.query.weight, attention.query.bias, attention.value_weight, *keys, gate=GATES[attention.gate],
            padding=conv.padding, dilation=conv.dilation, **options,
        )  # fmt: skip
    weights = (attention.query.weight, attention.key.weight, attention.value.weight)
    if attention.similarity == "dot":
        return functional.pixel_shift_attention(
            x, *weights, attention.window_weight.squeeze(1), attention.query.bias, similarity="dot",
            padding=conv.padding, dilation=conv.dilation, **options,
        )  # fmt: skip
    total = 0
    for index, window in enumerate(attention.windows):
        total = total + functional.pixel_shift_attention(
            x,
            *weights,
            window.weight.squeeze(1),
            attention.query.bias,
            mean_weight=attention.mean_weight if index == 0 else None,
            context_weight=None if attention.context is None else attention.context.weight,
            gate=GATES[attention.gate],
            padding=conv.padding,
            dilation=window.dilation,
            **options,
        )
    return total


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_fast_paths_equal_the_reference(data):
    groups, dims = data.draw(st.sampled_from([1, 2])), data.draw(st.sampled_from([1, 2, 2, 3]))

    def each(*values):
        return tuple(data.draw(st.sampled_from(values)) for _ in range(dims))

    kernel_size = each(1, 2, 3, 5)
    options = {
        "stride": each(1, 2, 3),
        "dilation": each(1, 2),
        "padding": each(0, 1, 2),
        "groups": groups,
        "padding_mode": data.draw(st.sampled_from(["zeros", "reflect", "replicate", "circular"])),
    }
    kind = data.draw(st.sampled_from(["hadamard", "dot", "image"]))
    gate = {"gate": data.draw(st.sampled_from(list(GATES)))}
    extra = {
        "hadamard": {
            **gate,
            "query_context": data.draw(st.booleans()),
            "global_term": data.draw(st.booleans()),
            "attention_ratio": 0.5,
        },
        "dot": {"similarity": "dot", "heads": data.draw(st.sampled_from([1, 2])), "attention_ratio": 0.5},
        "image": {**gate, "separable": data.draw(st.booleans()), "channel_keys": data.draw(st.booleans())},
    }[kind]
    branch_of = ATTENTION_BRANCHES["image" if kind == "image" else "pssa"][dims - 1]
    branch = branch_of(4, 8, kernel_size, **options, **extra, dtype=torch.float64)
    if getattr(branch, "mean_weight", None) is not None:
        nn.init.normal_(branch.mean_weight)
    operator = nn.Module()
    operator.attention, operator.conv = branch, CONVOLUTIONS[dims](4, 8, kernel_size, **options)
    x = torch.randn(2, 4, *(9, 10, 9)[:dims], dtype=torch.float64, requires_grad=True)
    fast, reference = branch(x), _reference(operator, x)
    torch.testing.assert_close(fast, reference, rtol=1e-12, atol=1e-12)
    inputs = [x, *branch.parameters()]
    probe = torch.randn_like(fast)
    for one, other in zip(
        torch.autograd.grad((fast * probe).sum(), inputs),
        torch.autograd.grad((reference * probe).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-11)


@settings(max_examples=20, deadline=None)
@given(st.data())
def test_attention_to_the_convolution_equals_the_reference(data):
    groups, dims = data.draw(st.sampled_from([1, 2])), data.draw(st.sampled_from([1, 2, 2, 3]))
    window, gate = [data.draw(st.integers(1, 5)) for _ in range(dims)], data.draw(st.sampled_from(SHARED_GATES))
    term = {"global_term": data.draw(st.booleans()), "dtype": torch.float64}
    branch = ATTENTION_BRANCHES["shared"][dims - 1](4, 6, groups, window=window, gate=gate, **term)
    x = torch.randn(2, 4, *(9, 10, 9)[:dims], dtype=torch.float64, requires_grad=True)
    value = torch.randn(2, 6, *(5, 4, 6)[:dims], dtype=torch.float64, requires_grad=True)
    query = branch.query or nn.Conv2d(4, 6, 1, groups=groups, dtype=torch.float64)  # unread where φ = 1
    query_weight = query.weight.reshape(6, -1, *(1,) * dims)
    weights = (query_weight, query.bias, branch.window.weight.squeeze(1), branch.mean_weight)
    fast = branch(x, value)
    reference = functional.shared_value_attention(
        x, value, *weights, gate=GATES.get(gate, torch.ones_like), groups=groups
    )
    torch.testing.assert_close(fast, reference, rtol=1e-12, atol=1e-12)
    inputs, probe = [x, value, *branch.parameters()], torch.randn_like(fast)
    for one, other in zip(
        torch.autograd.grad((fast * probe).sum(), inputs, materialize_grads=True),
        torch.autograd.grad((reference * probe).sum(), inputs, materialize_grads=True),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(
    "options", [{}, {"gate": "tanh", "query_context": True, "global_term": True}, {"similarity": "dot", "heads": 2}]
)
def test_gradcheck_of_pixel_shift_attention(options):
    branch = PixelShiftAttention2d(2, 4, 3, padding=1, stride=2, attention_ratio=1.0, **options, dtype=torch.float64)
    x = torch.randn(1, 2, 4, 5, dtype=torch.float64, requires_grad=True)
    names, parameters = zip(*branch.named_parameters(), strict=True)

    def run(x, *parameters):
        return torch.func.functional_call(branch, dict(zip(names, parameters, strict=True)), (x,))

    assert torch.autograd.gradcheck(run, (x, *(p.detach().requires_grad_() for p in parameters)))


@pytest.mark.parametrize(("groups", "heads"), [(1, 1), (1, 2), (2, 2)])
def test_linear_attention_equals_the_sum_over_all_pixels(groups, heads):
    branch = LinearAttention2d(4, 8, 3, 2, 1, groups=groups, heads=heads, attention_ratio=0.5, dtype=torch.float64)
    x = torch.randn(2, 4, 7, 6, dtype=torch.float64)
    expected = functional.linear_attention(branch.query(x), branch.key(x), branch.value(x), groups * heads)
    torch.testing.assert_close(branch(x), expected)
    assert torch.autograd.gradcheck(branch, (x[:1].requires_grad_(),))


@settings(max_examples=20, deadline=None)
@given(operators())
def test_operators_keep_the_output_shape_of_the_convolution(operator):
    x = inputs_for(operator)
    assert operator(x).shape == operator.conv(x).shape


@pytest.mark.parametrize("kernel_size", [1, 2, 3, 4, (4, 5)])
def test_the_centre_under_same_padding_is_the_pixel_itself(kernel_size):
    x = torch.randn(1, 2, 6, 7)
    query = torch.eye(2)[:, :, None, None]
    ones = torch.ones(2, *functional.as_tuple(kernel_size, 2))
    # Keys of zero and a window bias of one leave the query that each pixel reads.
    read = functional.pixel_shift_attention(x, query, 0 * query, query, ones, window_bias=torch.ones(2), padding="same")
    torch.testing.assert_close(read, x)
    branch = LinearAttention2d(2, 2, kernel_size, padding="same")
    torch.testing.assert_close(branch.query(x), nn.functional.conv2d(x, branch.query.weight, branch.query.bias))
