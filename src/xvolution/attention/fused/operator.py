"""The operators of torch's dispatcher, with gradient, fake tensors and vmap."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from xvolution.attention.fused import branch as algebra
from xvolution.attention.fused import reference
from xvolution.attention.fused.branch import Branch, Statistics, like
from xvolution.attention.fused.gate import Gate

_INPUTS = (
    "Tensor query, Tensor key, Tensor window, Tensor? mean_weight, Tensor query_affine, Tensor sum_affine, Tensor value, "
    "Tensor affine, "
)
_OPTIONS = "str function, int[] stride, int[] padding, int[] dilation, float[] eps"
#: How many of the arguments after ``y`` have a gradient.
_DIFFERENTIABLE = 8


def _branch(*arguments: Any) -> Branch:
    query, key, window, mean_weight, query_affine, sum_affine, value, affine = arguments[:_DIFFERENTIABLE]
    function, stride, padding, dilation, eps = arguments[_DIFFERENTIABLE:]
    gate = Gate(
        query, key, window, mean_weight, query_affine, sum_affine, eps[0], eps[1], function, stride, padding, dilation
    )
    return Branch(gate, value, affine, eps[2])


def add_attention(*arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """``xvolution::add_attention``: (N, C, H', W') and the statistics of the batch; see ``step.add_attention``."""
    return torch.ops.xvolution.add_attention(*arguments)


def value_statistics(value: Tensor, mean: Tensor, covariance: Tensor) -> Tensor:
    """(2, C): mean and biased variance of ``W^v p`` from those of ``p``, (A,) and (groups, A / groups, A / groups)."""
    weight = value.to(mean.dtype).reshape(covariance.shape[0], -1, covariance.shape[1])
    means = weight @ mean.reshape(covariance.shape[0], -1, 1)
    return torch.stack([means.flatten(), algebra.projected_variance(weight, covariance)])


@torch.library.custom_op(
    "xvolution::add_attention",
    mutates_args=(),
    schema=f"(Tensor y, {_INPUTS}{_OPTIONS}) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
)
def _add_attention(y: Tensor, *arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    branch = _branch(*arguments)
    with _alone(y):
        output, statistics = algebra.add_to(y, branch)
    return output, *statistics


@_add_attention.register_fake
def _(y: Tensor, *arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    branch = _branch(*arguments)
    groups, (_, channels) = branch.groups, branch.gate.query.shape[:2]
    shapes = [(2, channels), (2, channels), (channels,), (groups, channels // groups, channels // groups)]
    query, window_sum, mean, covariance = (y.new_empty(shape, dtype=branch.gate.wide) for shape in shapes)
    return torch.empty_like(y), query, window_sum, mean, covariance


@torch.library.custom_op(
    "xvolution::add_attention_backward",
    mutates_args=(),
    schema=(
        f"(Tensor grad, Tensor query_statistics, Tensor sum_statistics, Tensor mean, Tensor covariance, {_INPUTS}{_OPTIONS}) "
        "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)"
    ),
)
def _add_attention_backward(
    grad: Tensor, query: Tensor, window_sum: Tensor, mean: Tensor, covariance: Tensor, *arguments: Any
) -> tuple[Tensor, ...]:
    branch, statistics = _branch(*arguments), Statistics(query, window_sum, mean, covariance)
    with _alone(grad):
        inputs, value, affine = algebra.gradients(branch, grad, statistics)
    grads = (*inputs, value, affine)
    return tuple(_shaped(*pair, grad) for pair in zip(grads, arguments[:_DIFFERENTIABLE], strict=True))


@_add_attention_backward.register_fake
def _(
    grad: Tensor, query: Tensor, window_sum: Tensor, mean: Tensor, covariance: Tensor, *arguments: Any
) -> tuple[Tensor, ...]:
    return tuple(
        grad.new_empty(0) if given is None else torch.empty_like(given) for given in arguments[:_DIFFERENTIABLE]
    )


def _shaped(computed: Tensor | None, given: Tensor | None, grad: Tensor) -> Tensor:
    """A gradient as ``given`` is laid out; operators cannot return None, so that an empty tensor stands for it."""
    if computed is None or given is None:
        return grad.new_empty(0)
    return like(computed.to(given.dtype), given)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _, *arguments = inputs
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(*output[1:], *arguments[:_DIFFERENTIABLE])
    ctx.options = arguments[_DIFFERENTIABLE:]


def _backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Any, ...]:
    grads = torch.ops.xvolution.add_attention_backward(grad, *ctx.saved_tensors, *ctx.options)
    given = ctx.saved_tensors[4:]
    return grad, *(None if x is None else g for g, x in zip(grads, given, strict=True)), *(None for _ in ctx.options)


_add_attention.register_autograd(_backward, setup_context=_setup_context)


def _setup_second(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    grad, _, _, _, _, *arguments = inputs
    ctx.save_for_backward(grad, *arguments[:_DIFFERENTIABLE])
    ctx.options = arguments[_DIFFERENTIABLE:]


def _second_backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
    """The second derivative, that of the reference: it is asked for too rarely to be worth more."""
    with torch.enable_grad():
        inputs: list[Any] = [None if x is None else x.detach().requires_grad_() for x in ctx.saved_tensors]
        given = [x for x in inputs if x is not None]
        output = reference.add_attention(torch.zeros_like(given[0]), *inputs[1:], *ctx.options)
        first = torch.autograd.grad(output, given[1:], given[0], create_graph=True)
    wanted = [grad for grad, x in zip(grads, inputs[1:], strict=True) if x is not None]
    second = iter(torch.autograd.grad(first, given, wanted))
    by_input = [None if x is None else next(second) for x in inputs]
    return by_input[0], None, None, None, None, *by_input[1:], *(None for _ in ctx.options)


_add_attention_backward.register_autograd(_second_backward, setup_context=_setup_second)


@contextmanager
def _alone(x: Tensor) -> Iterator[None]:
    """Without autocast, on the device of ``x``."""
    with torch.autocast(x.device.type, enabled=False), torch.cuda.device_of(x):
        yield


def _one_by_one(operator: Any) -> Callable[..., Any]:
    """A vmap rule that runs the operator on each element: its kernels have no dimension for them."""

    def rule(info: Any, in_dims: Sequence[Any], *arguments: Any) -> tuple[Any, Any]:
        def element(index: int) -> list[Any]:
            return [x.select(d, index) if isinstance(d, int) else x for x, d in zip(arguments, in_dims, strict=True)]

        results = [operator(*element(index)) for index in range(info.batch_size)]
        stacked = tuple(torch.stack(parts) for parts in zip(*results, strict=True))
        return stacked, (0,) * len(stacked)

    return rule


for _operator in (_add_attention, _add_attention_backward):
    torch.library.register_vmap(_operator, _one_by_one(_operator))
