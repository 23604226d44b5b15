"""One architecture examined: converted, run, differentiated, re-parameterized, and compared at each step."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.coverage.networks import Architecture, Example, candidates
from benchmarks.coverage.outlook import nothing_to_convert, outlook
from benchmarks.randomize import batch_norms, randomize_attention, randomize_scales, randomize_statistics
from xvolution import convert, reparameterize
from xvolution.conversion.outputs import TOLERANCE, difference, tensors_in
from xvolution.conversion.summary import record_of

#: In float64, relative error of each operator on its own input; and what rounding may grow to through the network.
OPERATOR_LIMIT = 1e-12
GROWN_LIMIT = 1e-7


class ExaminationError(RuntimeError):
    """A step failed; the message is the sentence for the record."""


def examine(architecture: Architecture) -> dict[str, Any]:
    """Examine one architecture with the default configuration.

    Returns:
        The record for the results file: ``status`` is ``equal``, ``nothing to convert``, ``left`` or ``failed``.
    """
    started = time.monotonic()
    record: dict[str, Any] = {"family": architecture.family, "task": architecture.task}
    try:
        record |= _examine(architecture)
    except ExaminationError as error:
        record |= {"status": "failed", "reason": str(error)}
    return record | {"seconds": round(time.monotonic() - started, 1)}


def _examine(architecture: Architecture) -> dict[str, Any]:
    with _step("building"):
        selected, left = outlook(architecture)
    if not selected:
        return {"replaced": 0, "left": left} | nothing_to_convert(left)
    dtype = torch.float64 if architecture.task == "detection" else torch.float32
    record: dict[str, Any] = {"replaced": len(selected), "left": left, **_measured(architecture, dtype)}
    if not _is_equal(record) and dtype == torch.float32:
        # Rounding grows through a deep random network; what is left in float64 is not rounding.
        single = {"float32_error": max(record["conversion_error"], record["deployment_error"])}
        record |= single | _measured(architecture, torch.float64)
    if _is_equal(record):
        return record | {"status": "equal"}
    errors = (
        f"{record['conversion_error']:.1e} after conversion, "
        f"{record['deployment_error']:.1e} after re-parameterization, {record['operator_error']:.1e} in one operator"
    )
    return record | {"status": "failed", "reason": f"outputs differ in {record['dtype']}: {errors}"}


def _is_equal(record: dict[str, Any]) -> bool:
    error = max(record["conversion_error"], record["deployment_error"])
    dtype = getattr(torch, record["dtype"])
    if "operator_error" in record:
        return record["operator_error"] <= OPERATOR_LIMIT and error <= GROWN_LIMIT
    return error <= TOLERANCE[dtype]


def _measured(architecture: Architecture, dtype: torch.dtype) -> dict[str, Any]:
    torch.manual_seed(0)
    network, example, expected = _prepared(architecture, dtype)
    with _step("conversion"):
        network = convert(network, inplace=True, example_inputs=example.evaluation)
    names = [row.name for row in record_of(network).replaced]
    with _step("running the converted network"):
        converted = _evaluate(network, example)
    randomize_attention([network.get_submodule(name) for name in names])
    unreached = _backward(network, names, example)
    with _step("running the converted network"):
        trained = _evaluate_randomized(network, example)
    with _step("re-parameterization"):
        operators = {} if dtype != torch.float64 else {"operator_error": _operator_error(network, names, example)}
        network = reparameterize(network.eval(), layout="split", inplace=True)
    with _step("running the deployed network"):
        deployed = _evaluate(network, example)
    return {
        "input": example.label,
        "dtype": str(dtype).removeprefix("torch."),
        "conversion_error": difference(expected, converted).relative,
        "deployment_error": difference(trained, deployed).relative,
        "unreached": unreached,
        **operators,
    }


def _operator_error(network: nn.Module, names: list[str], example: Example) -> float:
    """Largest relative error of one operator's deployed form, each on the input that the network gives it."""
    errors = []

    def compare(operator: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        deployed = reparameterize(operator, layout="split")  # has the hook too, which a call would run
        errors.append(difference(output, deployed.forward(*inputs)).relative)

    hooks = [network.get_submodule(name).register_forward_hook(compare) for name in names]
    _evaluate(network, example)
    for hook in hooks:
        hook.remove()
    return max(errors)


@contextmanager
def _step(what: str) -> Iterator[None]:
    try:
        yield
    except ExaminationError:
        raise
    except Exception as error:
        if isinstance(error, MemoryError) or "can't allocate memory" in str(error):
            raise MemoryError(f"{what} needs more memory than allowed") from error
        lines = str(error).strip().splitlines() or [""]
        raise ExaminationError(f"{what}: {type(error).__name__}: {lines[0][:300]}") from error


def _prepared(architecture: Architecture, dtype: torch.dtype) -> tuple[nn.Module, Example, Any]:
    """The network with random norms and scales, the smallest input that it takes in both modes, and its outputs."""
    refusal = "no candidate"
    randomized: nn.Module | None = None
    for network, example in candidates(architecture, dtype):
        if network is not randomized:
            randomize_scales(network)
            randomized = network
        try:
            with torch.no_grad():
                _train_forward(network, example)
            return network, example, _evaluate_randomized(network, example)
        except Exception as error:
            if isinstance(error, MemoryError) or "can't allocate memory" in str(error):
                raise
            refusal = f"{example.label}: {type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"
    raise ExaminationError(f"the original network does not run on any size tried; the last was {refusal}")


def _evaluate(network: nn.Module, example: Example) -> Any:
    network.eval()
    torch.manual_seed(0)
    with torch.no_grad():
        return network(*example.evaluation)


def _evaluate_randomized(network: nn.Module, example: Example) -> Any:
    """Outputs with random batch norm statistics, which the network keeps.

    Raises:
        ExaminationError: there are none, or they are not finite.
    """
    hooks = [norm.register_forward_pre_hook(randomize_statistics) for norm in batch_norms(network)]
    _evaluate(network, example)
    for hook in hooks:
        hook.remove()
    outputs = _evaluate(network, example)
    numbers = [tensor for tensor in tensors_in(outputs) if tensor.is_floating_point() and tensor.numel()]
    if not numbers or not all(torch.isfinite(tensor).all() for tensor in numbers):
        raise ExaminationError("the network's outputs are empty or not finite")
    return outputs


def _train_forward(network: nn.Module, example: Example) -> Any:
    network.train()
    for module in network.modules():
        # With two images a block dropped at random is often dropped for both, and its operators get no gradient.
        if type(module).__name__ in ("DropPath", "StochasticDepth"):
            module.eval()
    torch.manual_seed(0)
    return network(*example.training)


def _backward(network: nn.Module, names: list[str], example: Example) -> int:
    """One training step's gradients; returns how many operators the loss does not depend on.

    Raises:
        ExaminationError: a gradient of an attention branch is missing or not finite.
    """
    network.requires_grad_(False)
    new: dict[str, list[tuple[str, nn.Parameter]]] = {}
    for name in names:
        operator: Any = network.get_submodule(name)
        parts = (("attention", operator.attention), ("attention_norm", operator.attention_norm))
        new[name] = [(f"{name}.{part}.{n}", p) for part, module in parts for n, p in module.named_parameters()]
        for _, parameter in new[name]:
            parameter.requires_grad_()
    with _step("the backward pass"):
        _weighted_sum(_train_forward(network, example)).backward()
    unreached = 0
    for parameters in new.values():
        gradients = {name: parameter.grad for name, parameter in parameters}
        if all(gradient is None or not gradient.any() for gradient in gradients.values()):
            unreached += 1
            continue
        wrong = [name for name, grad in gradients.items() if grad is None or not torch.isfinite(grad).all()]
        if wrong:
            raise ExaminationError(f"the gradient of {wrong[0]} is missing or not finite")
    if unreached == len(names):
        raise ExaminationError("no attention branch received a gradient")
    network.zero_grad(set_to_none=True)
    return unreached


def _weighted_sum(outputs: Any) -> Tensor:
    """A scalar that depends on every output element; random weights, since the sum of a softmax is constant."""
    tensors = [tensor for tensor in tensors_in(outputs) if tensor.requires_grad]
    return torch.stack([(tensor * torch.rand_like(tensor)).mean().double() for tensor in tensors]).sum()
