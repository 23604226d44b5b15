"""Item a and the latency of every item: operators and networks, plain, with squeeze-and-excitation and with X-volution."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from experiments.gpu.networks import Network
from xvolution.bench.forms import cost, inference, peak_bytes, timed, training
from xvolution.conversion.register import operator_config
from xvolution.deploy.reparameterize import reparameterize
from xvolution.operator import XVolution, fold

SHAPES = {"resnet-1": (64, 56), "resnet-2": (128, 28), "resnet-3": (256, 14), "resnet-4": (512, 7)}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
BASELINE = "conv"
LAYOUTS = ("single", "split")


@dataclass(frozen=True)
class Case:
    """One comparison of forms that take turns.

    Attributes:
        forms: builds them by name; the first is the baseline. What it returns is copied, so that it may return the same twice.
        shape: of the input.
        dtype: of weights and input.
        what: ``"deployed"`` (a forward pass), or ``"training"`` (forward and backward).
        mode: ``"eager"``, ``"compiled"``, or ``"graph"``: the forward pass captured as one CUDA graph, so that what the processor
            takes to start kernels does not count.
    """

    forms: Callable[[], Mapping[str, nn.Module]]
    shape: tuple[int, ...]
    dtype: str
    what: str
    mode: str

    def measure(self, device: torch.device, rounds: int) -> dict[str, Any]:
        """Median, quartiles and ratio to the baseline of every form, its cost and its peak memory."""
        torch.manual_seed(0)
        forms = deepcopy(self.forms())
        figures = {name: cost(form, torch.randn(1, *self.shape[1:])) for name, form in forms.items()}
        x = torch.randn(self.shape).to(device, DTYPES[self.dtype]).contiguous(memory_format=torch.channels_last)
        calls = {name: self._call(form, x) for name, form in forms.items()}
        for name, times in timed(calls, BASELINE, rounds).items():
            figures[name] |= times
            if self.mode == "eager":
                figures[name]["peak_bytes"] = peak_bytes(calls[name], device)
        torch.compiler.reset()
        return figures

    def _call(self, form: nn.Module, x: Tensor) -> Callable[[], object]:
        module: Any = form.to(x.device, x.dtype).to(memory_format=torch.channels_last).train(self.what == "training")
        if self.mode == "compiled":
            module = torch.compile(module, dynamic=False)
        if self.what == "training":
            return training(module, x)
        return captured(module, x) if self.mode == "graph" else inference(module, x)


def captured(module: nn.Module, x: Tensor) -> Callable[[], object]:
    """A forward pass without gradients as one CUDA graph."""
    call = inference(module, x)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def operator_forms(channels: int, what: str) -> dict[str, nn.Module]:
    """A 3x3 convolution with its norm, and what takes their place; deployed with norms folded, X-volution in its layouts."""
    conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
    plain = nn.Sequential(conv, nn.BatchNorm2d(channels))
    excited = operator_config("se").replacement(deepcopy(conv), nn.BatchNorm2d(channels))
    ours: Any = operator_config("xvolution").replacement(deepcopy(conv), nn.BatchNorm2d(channels))
    if what == "training":
        return {BASELINE: plain, "se": excited, "xvolution": ours}
    wake(ours.eval())
    folded = fold(ours)
    layouts = {f"xvolution {layout}": folded.deployed(layout, ours.conv.weight) for layout in folded.layouts}
    others = {BASELINE: plain, "se": excited}
    return {name: reparameterize(form.eval(), fold_norms=True) for name, form in others.items()} | layouts


@lru_cache(maxsize=4)
def network_forms(network: Network, what: str) -> dict[str, nn.Module]:
    """A network plain, with squeeze-and-excitation and with X-volution; deployed, in each layout that all its operators have."""
    plain, excited, ours = (network.build(name)[0] for name in (BASELINE, "se", "xvolution"))
    if what == "training":
        return {BASELINE: plain, "se": excited, "xvolution": ours}
    example = torch.randn(1, 3, network.size, network.size)
    deploy = partial(reparameterize, example_inputs=example, fold_norms=True, rtol=1e-2)
    forms = {BASELINE: deploy(plain.eval()), "se": deploy(excited.eval())}
    return forms | {f"xvolution {layout}": deploy(wake(ours).eval(), layout=layout) for layout in LAYOUTS}


@torch.no_grad()
def wake(model: nn.Module) -> nn.Module:
    """Turn the attention on, which is off at the start: what is timed should be what is trained."""
    for module in model.modules():
        norm = getattr(module, "attention_norm", None)
        if isinstance(module, XVolution) and norm is not None and getattr(norm, "weight", None) is not None:
            norm.weight.fill_(0.5)
    return model


def network_latency(network: Network, batches: Sequence[int], modes: Sequence[str]) -> Iterator[tuple[str, Case]]:
    """The deployed forms of a network, by key."""
    for mode, dtype, batch in product(modes, DTYPES, batches):
        shape = (batch, 3, network.size, network.size)
        forms = partial(network_forms, network, "deployed")
        yield f"latency {mode} {dtype} batch {batch}", Case(forms, shape, dtype, "deployed", mode)


def bench(tiny: bool, graphs: bool) -> dict[str, Case]:
    """All of item a, what matters most first: eager and graphs, then what takes long to compile.

    Args:
        tiny: small shapes and networks only.
        graphs: whether CUDA graphs can be captured.
    """
    quick = ("eager", "graph") if graphs else ("eager",)
    cases: dict[str, Case] = {}
    for modes in (quick, ("compiled",)):
        cases |= dict(_networks(modes, tiny)) | dict(_operators(modes, tiny))
    return cases


def _operators(modes: Sequence[str], tiny: bool) -> Iterator[tuple[str, Case]]:
    batches = (1, 2) if tiny else (1, 64)
    shapes = {"tiny": (8, 6)} if tiny else SHAPES
    if modes == ("compiled",):
        shapes = {name: shape for name, shape in shapes.items() if name in ("tiny", "resnet-3")}
    for mode, what, dtype, batch, (name, (channels, side)) in product(
        modes, ("deployed", "training"), DTYPES, batches, shapes.items()
    ):
        if mode == "graph" and what == "training":
            continue
        forms = partial(operator_forms, channels, what)
        yield (
            f"{name} {what} {mode} {dtype} batch {batch}",
            Case(forms, (batch, channels, side, side), dtype, what, mode),
        )


def _networks(modes: Sequence[str], tiny: bool) -> Iterator[tuple[str, Case]]:
    size, batches = (32, (1, 2)) if tiny else (224, (1, 64))
    names = ("resnet10t",) if tiny else ("resnet18", "resnet50")
    dtypes = ("bf16",) if modes == ("compiled",) else tuple(DTYPES)
    for mode, stages, name, what, dtype, batch in product(
        modes, ((3,), (1, 2, 3, 4)), names, ("deployed", "training"), dtypes, batches
    ):
        needless = (mode == "graph" and what == "training") or (batch == 1 and what == "training")
        if needless or (mode == "compiled" and stages != (3,)):
            continue
        network = Network(name, stages, size, 1000)
        key = f"{name} stages {'-'.join(map(str, stages))} {what} {mode} {dtype} batch {batch}"
        yield key, Case(partial(network_forms, network, what), (batch, 3, size, size), dtype, what, mode)
