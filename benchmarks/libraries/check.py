"""One network of a library: converted and re-parameterized, in fp64 where it can be run in it, and in fp32."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from benchmarks.libraries.networks import Sample
from benchmarks.randomize import batch_norms, randomize_attention, randomize_scales, randomize_statistics
from xvolution import ConversionError, ReparameterizationError, conversion_summary, convert, reparameterize
from xvolution.conversion.modules import call
from xvolution.conversion.outputs import difference, tensors_in
from xvolution.operator import XVolution


def examine(sample: Sample) -> dict[str, Any]:
    """Convert the network with the defaults, switch the attention on, deploy it, and compare.

    Returns:
        ``status``: ``converted``; ``nothing to convert``; ``refused``, by a sentence; ``unusable``, where the network itself
        cannot be built or run. Of a converted one: how many convolutions were ``replaced``, how many ``left`` for which
        reason, how many norms moved, the errors of conversion and deployment relative to the largest output in ``dtype``, and
        whether ``reparameterize`` accepts the network in fp32 (``float32``).
    """
    torch.manual_seed(0)
    try:
        network = sample.build().eval()
        inputs = sample.inputs
        _randomize(network, inputs)
        single = _outputs(network, inputs)
    except Exception as error:
        return {"status": "unusable", "reason": _sentence(error)}
    random = difference(single, _outputs(network, inputs)).absolute > 0
    network, inputs, dtype = _widest(network, inputs)
    try:
        expected = _outputs(network, inputs)
        converted = convert(network, example_inputs=inputs)
    except (ValueError, ConversionError) as error:
        nothing = "has no convolution" in str(error) or "selects no convolution" in str(error)
        return {"status": "nothing to convert" if nothing else "refused", "reason": _sentence(error)}
    summary = conversion_summary(converted, inputs)
    record: dict[str, Any] = {
        "status": "converted",
        "replaced": len(summary.replaced),
        "left": dict(Counter(_kind(row.reason) for row in summary.left)),
        "norms_moved": sum(row.norm is not None for row in summary.replaced),
        "proof": summary.proof,
        "dtype": str(dtype).removeprefix("torch."),
        "random": random,
    }
    record["conversion_error"] = 0.0 if random else difference(expected, _outputs(converted, inputs)).relative
    operators = [module for module in converted.modules() if isinstance(module, XVolution)]
    randomize_attention(operators)
    trained = _outputs(converted, inputs)
    try:
        deployed = reparameterize(converted, inputs, layout="split", rtol=1)
    except ReparameterizationError as error:
        return record | {"status": "refused", "reason": _sentence(error)}
    record["deployment_error"] = 0.0 if random else difference(trained, _outputs(deployed, inputs)).relative
    return record | {"float32": _in_float32(converted, sample.inputs)}


def _in_float32(converted: nn.Module, inputs: Any) -> str:
    try:
        reparameterize(converted.float(), inputs, layout="split")
    except Exception as error:
        return _sentence(error)
    return "accepted"


@torch.no_grad()
def _randomize(network: nn.Module, inputs: Any) -> None:
    """Scales at random, and statistics around those of the inputs, as of a network that was trained."""
    torch.manual_seed(0)
    randomize_scales(network)
    hooks = [norm.register_forward_pre_hook(randomize_statistics) for norm in batch_norms(network)]
    call(network, inputs)
    for hook in hooks:
        hook.remove()


@torch.no_grad()
def _outputs(network: nn.Module, inputs: Any) -> list[Tensor]:
    torch.manual_seed(0)
    tensors = [tensor.clone() for tensor in tensors_in(call(network, inputs)) if tensor.is_floating_point()]
    if not tensors:
        raise ValueError("the network returns no tensors of floating-point numbers")
    return tensors


def _widest(network: nn.Module, inputs: Any) -> tuple[nn.Module, Any, torch.dtype]:
    """The network and its inputs in fp64; as they are where it cannot be run so."""
    wide = tree_map_only(Tensor, lambda x: x.double() if x.is_floating_point() else x, inputs)
    try:
        network.double()
        _outputs(network, wide)
    except Exception:
        return network.float(), inputs, torch.float32
    return network, wide, torch.float64


def _kind(reason: str) -> str:
    """A reason without the names in it."""
    return re.sub(r"(projection), .*", r"\1", reason)


def _sentence(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:400]}"
