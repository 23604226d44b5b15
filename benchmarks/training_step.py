"""What a training step costs: the plain layers, X-volution as modules, and X-volution with the fused operator.

    python -m benchmarks.training_step operator --shapes resnet-1 resnet-3 --output results/step-operator.json
    python -m benchmarks.training_step network --networks resnet50 --stages 3 1,2,3,4 --precisions bf16 \
        --channels-last --device cuda --forms plain modules --output results/step-network.json

Forms take turns in one process; ratios are medians over the turns. For memory each form has a process of its own.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from unittest.mock import patch

import timm
import torch
from torch import Tensor, nn

from benchmarks.record import write_record
from xvolution import XVolution2d, convert
from xvolution.attention.fused import step
from xvolution.bench import measure_latency
from xvolution.bench.operators import RESNET

FORMS = ("plain", "modules", "fused", "default")
PRECISIONS = {"fp32": None, "bf16": torch.bfloat16}


@contextmanager
def training_as(form: str) -> Iterator[None]:
    """X-volutions train as modules; fused wherever the operator can, at any size; or as the library chooses."""
    changes: dict[str, dict[str, Any]] = {
        "plain": {},
        "default": {},
        "modules": {"SMALLEST": 2**62},
        "fused": {"SMALLEST": 0},
    }
    with ExitStack() as stack:
        for name, value in changes[form].items():
            stack.enter_context(patch.object(step, name, value))
        yield


@dataclass(frozen=True)
class Case:
    """One step to measure.

    Attributes:
        what: a shape of ``RESNET``, or a network of timm.
        stages: of the network in which X-volution stands; empty for an operator.
        batch: images in a batch.
        image_size: of the network, side length in pixels; 0 for an operator.
        precision: fp32, or bf16 under autocast.
        mode: eager or compiled.
        channels_last: the memory format.
        device: cpu or cuda.
    """

    what: str
    stages: tuple[int, ...]
    batch: int
    image_size: int
    precision: str
    mode: str
    channels_last: bool
    device: str

    @property
    def key(self) -> str:
        """What the case is called in the results."""
        stages = f"stages {','.join(map(str, self.stages))} " if self.stages else ""
        memory_format = "channels_last" if self.channels_last else "contiguous"
        return f"{self.what} {stages}batch {self.batch} {self.precision} {self.mode} {memory_format} {self.device}"

    def step(self, form: str) -> Callable[[], object]:
        """One training step of a new model in this form: forward, backward and, of a network, SGD."""
        torch.manual_seed(0)
        model, x = _operator(self, form) if self.what in RESNET else _network(self, form)
        memory_format = torch.channels_last if self.channels_last else torch.contiguous_format
        model = model.train().to(device=self.device).to(memory_format=memory_format)
        x = x.to(self.device).contiguous(memory_format=memory_format)
        with training_as(form):
            step = _operator_step(model, x, self) if self.what in RESNET else _network_step(model, x, self)

        def call() -> None:
            with training_as(form):
                step()

        return call

    def run(self, model: nn.Module) -> Callable[[Tensor], Tensor]:
        """The forward pass in this mode and precision."""
        compiled: Callable[[Tensor], Tensor] = torch.compile(model, dynamic=False) if self.mode == "compiled" else model
        dtype = PRECISIONS[self.precision]

        def forward(x: Tensor) -> Tensor:
            with torch.autocast(self.device, dtype, enabled=dtype is not None):
                return compiled(x)

        return forward


def _operator(case: Case, form: str) -> tuple[nn.Module, Tensor]:
    channels, height, width = RESNET[case.what]
    x = torch.randn(case.batch, channels, height, width, requires_grad=True)
    if form == "plain":
        conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        return nn.Sequential(conv, nn.BatchNorm2d(channels)), x
    return XVolution2d(channels, channels, 3, padding=1, bias=False, zero_init=False), x


def _network(case: Case, form: str) -> tuple[nn.Module, Tensor]:
    model, x = timm.create_model(case.what), torch.randn(case.batch, 3, case.image_size, case.image_size)
    if form == "plain":
        return model, x
    model = convert(model, stages=case.stages, inplace=True)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("attention_norm.weight"):
                # Zero, at which it starts, is not what is trained.
                parameter.fill_(0.5)
    return model, x


def _operator_step(model: nn.Module, x: Tensor, case: Case) -> Callable[[], object]:
    forward, x = case.run(model), x.detach().requires_grad_()
    with torch.no_grad():
        cotangent = torch.randn_like(forward(x))
    return lambda: torch.autograd.grad(forward(x), [x, *model.parameters()], cotangent)


def _network_step(model: nn.Module, x: Tensor, case: Case) -> Callable[[], object]:
    forward, optimizer = case.run(model), torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)
    target = torch.zeros(len(x), dtype=torch.long, device=x.device)

    def step() -> None:
        nn.functional.cross_entropy(forward(x), target).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def peak_memory(case: Case, form: str, threads: int) -> dict[str, int]:
    """Bytes at the peak of a step, and above its start: of torch's allocator on a GPU, of this process on a CPU."""
    torch.set_num_threads(threads)
    step = case.step(form)
    step()  # allocates what stays: the optimizer's state, compiled code, the libraries' caches
    if case.device == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
    else:
        gc.collect()
        # Freed memory that the allocator keeps would hide as much of the step's.
        ctypes.CDLL(None).malloc_trim(0)
        before = _process_memory("VmRSS")
        # Begins the high-water mark anew.
        Path("/proc/self/clear_refs").write_text("5")
    step()
    peak = torch.cuda.max_memory_allocated() if case.device == "cuda" else _process_memory("VmHWM")
    return {"peak_bytes": peak, "above_start_bytes": peak - before}


def _process_memory(name: str) -> int:
    """A figure of /proc/self/status in bytes. The one of getrusage includes what the parent held when it forked."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def measure(case: Case, forms: Sequence[str], rounds: int, memory: bool) -> dict[str, dict[str, Any]]:
    """Time of each form, its ratio to every other, and its peak memory."""
    torch.compiler.reset()
    figures: dict[str, dict[str, Any]] = {form: {} for form in forms}
    if memory:
        for form in forms:
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
                figures[form] |= process.submit(peak_memory, case, form, torch.get_num_threads()).result()
    times = measure_latency({form: case.step(form) for form in forms}, rounds, warmup=2)
    for form, latency in times.latencies.items():
        figures[form] |= {
            "median_ms": 1e3 * latency.median,
            "quartiles_ms": [1e3 * quartile for quartile in latency.quartiles],
            "ratio": {other: times.ratio(form, other) for other in forms if other != form},
        }
    return figures


def _cases(options: argparse.Namespace) -> list[Case]:
    places: list[tuple[str, tuple[int, ...]]] = [(shape, ()) for shape in getattr(options, "shapes", ())]
    for each in getattr(options, "stages", ()):
        places += [(network, tuple(map(int, each.split(",")))) for network in options.networks]
    side = getattr(options, "image_size", 0)
    return [
        Case(what, stages, options.batch, side, precision, mode, options.channels_last, options.device)
        for precision, mode, (what, stages) in product(options.precisions, options.modes, places)
    ]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = parser.add_subparsers(dest="kind", required=True)
    operator, network = kinds.add_parser("operator"), kinds.add_parser("network")
    operator.add_argument("--shapes", nargs="+", choices=list(RESNET), default=list(RESNET))
    network.add_argument("--networks", nargs="+", default=["resnet18"], help="names of timm's models")
    network.add_argument("--stages", nargs="+", default=["3", "1,2,3,4"], help="of X-volution, such as 3 or 1,2,3,4")
    network.add_argument("--image-size", type=int, default=224)
    for kind in (operator, network):
        kind.add_argument("--batch", type=int, default=32)
        kind.add_argument("--precisions", nargs="+", choices=list(PRECISIONS), default=list(PRECISIONS))
        kind.add_argument("--modes", nargs="+", choices=("eager", "compiled"), default=["eager"])
        kind.add_argument("--forms", nargs="+", choices=FORMS, default=["plain", "modules", "fused"])
        kind.add_argument("--channels-last", action="store_true")
        kind.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
        kind.add_argument("--threads", type=int, default=1, help="of the CPU")
        kind.add_argument("--rounds", type=int, default=11, help="turns that the forms take")
        kind.add_argument("--no-memory", action="store_true", help="leave out peak memory")
        kind.add_argument("--output", type=Path, required=True, help="JSON file, written anew after each case")
    return parser


def main() -> int:
    """Measure, print and write."""
    options = _parser().parse_args()
    torch.set_num_threads(options.threads)
    if options.device == "cuda" and "fused" in options.forms:
        print("the fused operator is for CPUs; with --device cuda give --forms plain modules", file=sys.stderr)
        return 2
    if not options.no_memory and options.device == "cpu" and not Path("/proc/self/clear_refs").exists():
        print("peak memory on a CPU is read from Linux's /proc; leave it out with --no-memory", file=sys.stderr)
        return 2
    done: dict[str, Any] = {}
    for case in _cases(options):
        forms = measure(case, options.forms, options.rounds, not options.no_memory)
        done[case.key] = {**asdict(case), "forms": forms}
        write_record(options.output, {"kind": options.kind, "threads": options.threads, "cases": done})
        first = options.forms[0]
        for form, figures in forms.items():
            ratio = f"{figures['ratio'][first]:.3f} x {first}" if form != first else ""
            memory = f"{figures['above_start_bytes'] / 2**20:.0f} MiB" if "above_start_bytes" in figures else ""
            print(f"{case.key}: {form:8} {figures['median_ms']:9.2f} ms {memory:>9} {ratio}", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
