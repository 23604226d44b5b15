"""Choice of the convolutions to replace so that the deployed network stays within a time budget.

The time of a network, or of one operator, is estimated as::

    multiply-adds  +  NUMBERS · numbers written  +  OPERATIONS · operations

in the time of one multiply-add. Norms, views and activations that runtimes fuse with the convolution before them cost nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from xvolution.conversion.config import ConversionConfig
from xvolution.conversion.modules import call, evaluating
from xvolution.convolutions import conv_over, geometry_of
from xvolution.operator import XVolution, fold

#: Fitted to the latencies of networks in ONNX Runtime and OpenVINO (``python -m benchmarks.prices``).
NUMBERS, OPERATIONS = 12.0, 1e5

#: Parts of the names of what costs nothing: norms, which fold; what runtimes fuse; copies of the inputs.
_FREE = ("batch_norm", "relu", "hardtanh", "clamp", "detach", "empty", "clone")


@dataclass(frozen=True)
class Work:
    """The amount of computation.

    Attributes:
        multiply_adds: multiply-adds of convolutions and matrix products.
        numbers: numbers written to memory.
        operations: number of operations.
    """

    multiply_adds: float = 0
    numbers: float = 0
    operations: float = 0

    def __add__(self, other: Work) -> Work:
        return Work(*(a + b for a, b in zip(vars(self).values(), vars(other).values(), strict=True)))

    def __sub__(self, other: Work) -> Work:
        return Work(*(a - b for a, b in zip(vars(self).values(), vars(other).values(), strict=True)))

    @property
    def time(self) -> float:
        """In the time of one multiply-add."""
        return self.multiply_adds + NUMBERS * self.numbers + OPERATIONS * self.operations


@dataclass(frozen=True)
class Choice:
    """A choice that stays within the budget.

    Attributes:
        config: the operator for each convolution; it may have fewer attention channels than requested.
        names: names of the convolutions, in the order of the network.
        estimate: estimated ratio of the deployed network's time to the plain network's time.
    """

    config: ConversionConfig
    names: list[str]
    estimate: float


def within_budget(
    model: nn.Module, names: Sequence[str], config: ConversionConfig, budget: float, inputs: Any
) -> Choice:
    """The convolutions, cheapest first, whose operators fit into the budget.

    If not all fit, ``config.narrower`` is tried too, and the configuration with more replaced convolutions is chosen.

    Args:
        model: the network.
        names: the convolutions that may be replaced.
        config: the operator to use.
        budget: largest ratio of the deployed network's time to the plain network's time, such as 1.05.
        inputs: inputs of the network; the time is estimated for their size.

    Raises:
        ValueError: no operator fits into the budget, there are no inputs, or none of the convolutions runs on them.
    """
    if not budget > 1:
        raise ValueError(
            f"budget is {budget}; give the largest ratio of the deployed network's time to the plain "
            "network's time, such as 1.05"
        )
    if inputs is None:
        raise ValueError("budget needs the size of the images to estimate times; give example_inputs")
    sites, plain = _sites(model, names, inputs)
    if not sites:
        raise ValueError(
            f"budget needs the sizes of the feature maps, and none of {', '.join(names[:3])} runs on these "
            "inputs; give example_inputs that reach them, or leave budget out"
        )
    best: Choice | None = None
    cheapest = ("", 0.0)
    for candidate in _and_narrower(config):
        extra = {name: _extra(site, candidate).time / plain.time for name, site in sites.items()}
        cheapest = min(extra.items(), key=lambda item: item[1])
        taken, estimate = set(), 1.0
        for name, price in sorted(extra.items(), key=lambda item: item[1]):
            if estimate + price > budget:
                break
            taken.add(name)
            estimate += price
        if taken and (best is None or len(taken) > len(best.names)):
            best = Choice(candidate, [name for name in names if name in taken], estimate)
    if best is None:
        name, price = cheapest
        raise ValueError(
            f"no convolution fits into budget={budget}: the cheapest one, {name}, is estimated at "
            f"{1 + price:.3f}; give a larger budget"
        )
    return best


def work_of(run: Callable[[], object]) -> Work:
    """The computation of one call of ``run``."""
    counter = _Counter()
    with torch.no_grad(), counter:
        run()
    return counter.work


def work_of_network(model: nn.Module, inputs: Any) -> Work:
    """The computation of a network in eval mode with folded norms."""
    with evaluating(model):
        return work_of(lambda: call(model, inputs))


def _and_narrower(config: ConversionConfig) -> Iterator[ConversionConfig]:
    wider: ConversionConfig | None = config
    while wider is not None:
        yield wider
        wider = wider.narrower()


@dataclass(frozen=True)
class _Site:
    """A convolution, and the shapes of what it read in one forward pass."""

    conv: Any
    shapes: tuple[tuple[int, ...], ...]


def _sites(model: nn.Module, names: Sequence[str], inputs: Any) -> tuple[Mapping[str, _Site], Work]:
    """The possible places of operators and the computation of the network; a convolution that does not run has no place."""
    shapes: dict[str, list[tuple[int, ...]]] = {}

    def record(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        return lambda _, args: shapes.setdefault(name, []).append(tuple(args[0].shape))

    convs = {name: model.get_submodule(name) for name in names}
    handles = [conv.register_forward_pre_hook(record(name)) for name, conv in convs.items()]
    try:
        plain = work_of_network(model, inputs)
    finally:
        for handle in handles:
            handle.remove()
    return {name: _Site(convs[name], tuple(found)) for name, found in shapes.items()}, plain


def _extra(site: _Site, config: ConversionConfig) -> Work:
    """The computation of the operator's first deployed form minus that of the convolution."""
    geometry, channels = geometry_of(site.conv), (site.conv.in_channels, site.conv.out_channels)
    options: dict[str, Any] = {"groups": site.conv.groups, "bias": True}
    conv = conv_over(geometry, *channels, **options, device="meta")
    operator = config.replacement(conv_over(geometry, *channels, **options), None).eval()
    if isinstance(operator, XVolution):
        folded = fold(operator)
        operator = folded.build(folded.layouts[0], {})
    operator, total = operator.to("meta"), Work()
    for shape in site.shapes:
        x = torch.empty(shape, device="meta")
        total += work_of(partial(operator, x)) - work_of(partial(conv, x))
    return total


class _Counter(TorchDispatchMode):
    """Counts what torch runs."""

    def __init__(self) -> None:
        super().__init__()
        # Imported here because it loads triton, which `import xvolution` can do without.
        from torch.utils.flop_counter import flop_registry

        self._flops, self.work = flop_registry, Work()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        y = func(*args, **kwargs)
        returns = [value.alias_info for value in func._schema.returns]
        is_view = any(alias is not None and not alias.is_write for alias in returns)
        # Of several outputs, as norms have them, the first is the map.
        written = y[0] if isinstance(y, tuple) and y else y
        if isinstance(written, Tensor) and not is_view and not any(free in str(func) for free in _FREE):
            count = self._flops.get(func._overloadpacket)
            flops = 0 if count is None else count(*args, **kwargs, out_val=y)
            self.work += Work(flops / 2, written.numel(), 1)
        return y
