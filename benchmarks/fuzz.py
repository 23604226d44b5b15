"""Random operators in one, two and three dimensions, each in every layout against its training form.

    python -m benchmarks.fuzz --cases 200000 --output fuzz.jsonl --processes 2

Case i is drawn from the seed i alone: ``python -m benchmarks.fuzz --case 4711`` draws it again and prints it. The file has a line
for each block of cases, with the worst error in each dtype and the cases that differ; a second start goes on behind them.
"""

from __future__ import annotations

import argparse
import copy
import json
import multiprocessing
import random
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.randomize import randomize_norms, randomize_scales
from benchmarks.record import write_record
from benchmarks.reparameterization_error import relative_error
from xvolution import reparameterize
from xvolution.attention import (
    ATTENTION,
    AttentionConfig,
    ChannelGate,
    GatedDepthwise,
    Global,
    Linear,
    PixelShift,
    PixelShiftDot,
)
from xvolution.operator import OPERATOR_OF_DIMS, XVolution, fold

#: Relative error of one operator that rounding explains. bfloat16 and float16 keep 8 and 11 bits of each product.
ALLOWED = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 6e-2, torch.float16: 1e-2}
BLOCK = 100

_SIZES: dict[int, tuple[int, ...]] = {1: (23,), 2: (11, 13), 3: (9, 9, 10)}
_NORMS: dict[str, Callable[[int], nn.Module] | None] = {
    "batch": nn.BatchNorm2d,
    "none": None,
    "group": partial(nn.GroupNorm, 2),
}


def _pixel_shift(rng: random.Random) -> AttentionConfig:
    config = PixelShift(
        attention_ratio=rng.choice([0.25, 0.5]),
        gate=rng.choice(["identity", "sigmoid", "tanh"]),
        window=rng.choice([None, 3, 5]),
        dilation=rng.choice([None, 1, 2, (1, 2), (1, 3)]),
        pooled_query=rng.random() < 0.5,
        pooled_key=rng.random() < 0.5,
        query_norm=rng.choice([None, True, False]),
        window_norm=rng.choice([None, True, False]),
    )
    return replace(config, reduction=rng.choice([None, 1, 4]) if config.pooled_query else None)


def _pixel_shift_dot(rng: random.Random) -> AttentionConfig:
    heads, window, dilation = rng.choice([1, 2]), rng.choice([None, 3]), rng.choice([None, 1, 2])
    return PixelShiftDot(num_heads=heads, window=window, dilation=dilation)


def _channel_gate(rng: random.Random) -> AttentionConfig:
    gate = rng.choice(["identity", "sigmoid", "tanh"])
    separable, keys = rng.random() < 0.5, rng.random() < 0.5
    return ChannelGate(gate=gate, separable=separable, channel_keys=keys, reduction=rng.choice([None, 1, 4]))


def _gated_depthwise(rng: random.Random) -> AttentionConfig:
    gate = rng.choice(["identity", "sigmoid", "tanh", "one"])
    return GatedDepthwise(gate=gate, window=rng.choice([1, 2, 3, 5]), pooled_value=rng.random() < 0.5)


#: Random options of each branch; where there is no entry, its defaults.
_OPTIONS: dict[str, Callable[[random.Random], AttentionConfig]] = {
    "pixel_shift": _pixel_shift,
    "pixel_shift_dot": _pixel_shift_dot,
    "linear": lambda rng: Linear(attention_ratio=rng.choice([0.25, 0.5]), num_heads=rng.choice([1, 2])),
    "global": lambda rng: Global(num_heads=rng.choice([1, 2]), qk_norm=rng.random() < 0.5),
    "channel_gate": _channel_gate,
    "gated_depthwise": _gated_depthwise,
}


@dataclass(frozen=True)
class Case:
    """One random operator.

    Attributes:
        seed: what all of it is drawn from.
        dims: number of dimensions.
        norm: a key of ``_NORMS``.
        place: the arguments of ``nn.Conv2d`` after the channels.
        attention: configuration of the branch.
        branches: convolutions of the convolution branch.
        diverse: whether it has diverse branches too.
    """

    seed: int
    dims: int
    norm: str
    place: dict[str, Any]
    attention: AttentionConfig
    branches: int
    diverse: bool

    @classmethod
    def draw(cls, seed: int) -> Case:
        rng = random.Random(seed)
        dims, name = rng.choice([1, 2, 2, 3]), rng.choice(list(ATTENTION))
        norm = rng.choice(["batch", "batch", "batch", "none", "group"])
        sizes = [1, 2, 3, 5] if dims < 3 else [1, 2, 3]

        def each(values: list[int]) -> tuple[int, ...]:
            return tuple(rng.choice(values) for _ in range(dims))

        padding: Any = rng.choice([0, 1, 2, "mixed", "same", "valid", "same_upper"])
        place = {
            "kernel_size": each(sizes),
            "stride": 1 if padding == "same" else each([1, 2, 3]),
            "padding": each([1, 2]) if padding == "mixed" else padding,
            "dilation": each([1, 2]),
            "groups": rng.choice([1, 1, 2, 4, 8]),
            "bias": rng.random() < 0.5,
            "padding_mode": rng.choice(["zeros", "reflect", "replicate", "circular"]),
        }
        attention = _OPTIONS[name](rng) if name in _OPTIONS else ATTENTION[name]()
        several = norm != "group" and name != "gated_depthwise"
        branches = rng.choice([1, 1, 2, 3]) if several else 1
        return cls(seed, dims, norm, place, attention, branches, several and rng.random() < 0.5)

    def operator(self) -> XVolution:
        """8 -> 16 channels in fp64, in eval mode, with random statistics and scales."""
        torch.manual_seed(self.seed)
        options: dict[str, Any] = {"norm_layer": _NORMS[self.norm], "zero_init": False, "dtype": torch.float64}
        options |= {"num_conv_branches": self.branches, "diverse_branches": self.diverse}
        operator = OPERATOR_OF_DIMS[self.dims](8, 16, **self.place, attention=self.attention, **options)
        randomize_scales(operator)
        randomize_norms(operator)
        return operator

    def inputs(self) -> Tensor:
        """(2, 8, ...), fp64, large enough for every window."""
        generator = torch.Generator().manual_seed(self.seed)
        return torch.randn(2, 8, *_SIZES[self.dims], generator=generator, dtype=torch.float64)

    def dtypes(self) -> list[torch.dtype]:
        """fp64, and for two cases of five one of the others."""
        lower = {0: torch.float32, 1: (torch.bfloat16, torch.float16)[self.seed // 5 % 2]}
        return [torch.float64, *([lower[self.seed % 5]] if self.seed % 5 in lower else [])]


@dataclass
class Outcome:
    """What some cases showed: the worst error by dtype and layout, and a sentence for each that differs."""

    cases: int = 0
    worst: dict[str, float] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)

    def note(self, case: Case, name: str, error: float, allowed: float) -> None:
        """One layout in one dtype."""
        self.worst[name] = max(self.worst.get(name, 0.0), error)
        if not error <= allowed:
            self.failures[str(case.seed)] = f"{name}: relative error {error:.1e}, allowed {allowed:.1e}: {case}"

    def add(self, other: Outcome) -> None:
        """The cases of ``other`` too."""
        self.cases += other.cases
        self.failures |= other.failures
        for name, error in other.worst.items():
            self.worst[name] = max(self.worst.get(name, 0.0), error)


@torch.no_grad()
def check(cases: Iterable[Case]) -> Outcome:
    """Every layout of every case against the training form in the same dtype."""
    outcome = Outcome()
    for case in cases:
        outcome.cases += 1
        try:
            _check(case, outcome)
        except Exception as error:  # whatever stops a case is what the search is for
            outcome.failures[str(case.seed)] = f"{type(error).__name__}: {error}: {case}"
    return outcome


def _check(case: Case, outcome: Outcome) -> None:
    trained, wide_x = case.operator(), case.inputs()
    wide = trained(wide_x)
    for dtype in case.dtypes():
        low, x = (trained, wide_x) if dtype == torch.float64 else (copy.deepcopy(trained).to(dtype), wide_x.to(dtype))
        expected = low(x).double()
        # A norm of an almost constant map divides rounding by almost nothing, in the trained form as well: in low precision both
        # forms may be as far from fp64 as from each other.
        allowed = ALLOWED[dtype] + 4 * relative_error(wide, expected)
        folded = fold(low)
        for layout in folded.layouts:
            # One case of ten takes the way of a whole network, which copies the operator and compares it once more.
            whole = case.seed % 10 == 0
            deployed = reparameterize(low, layout=layout) if whole else folded.deployed(layout, low.conv.weight)
            name = f"{str(dtype).removeprefix('torch.')} {case.attention.name} {layout}"
            outcome.note(case, name, relative_error(expected, deployed(x).double()), allowed)


def _check_block(first: int, last: int) -> tuple[int, Outcome]:
    torch.set_num_threads(1)
    return first, check(map(Case.draw, range(first, last)))


def _read(path: Path) -> dict[int, Outcome]:
    """The blocks of a file by their first case; a last line that was cut off is left out."""
    blocks = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            values = json.loads(line)
        except json.JSONDecodeError:
            continue
        blocks[values["first"]] = Outcome(values["cases"], values["worst"], values["failures"])
    return blocks


def run(cases: int, path: Path, processes: int = 1) -> Outcome:
    """Check cases 0 to ``cases``, but those that ``path`` has already; writes a line for each block and prints progress."""
    total, done = Outcome(), _read(path)
    blocks = [(first, min(first + BLOCK, cases)) for first in range(0, cases, BLOCK)]
    blocks = [(first, last) for first, last in blocks if first not in done or done[first].cases < last - first]
    finished = {first: outcome for first, outcome in done.items() if first < cases}
    for first, _ in blocks:
        finished.pop(first, None)
    for outcome in finished.values():
        total.add(outcome)
    start, before = time.monotonic(), total.cases
    for first, outcome in _outcomes(blocks, processes):
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"first": first, **vars(outcome)}) + "\n")
        total.add(outcome)
        rate = (total.cases - before) / (time.monotonic() - start)
        left = (cases - total.cases) / rate / 3600
        different = len(total.failures)
        print(f"{total.cases:,} of {cases:,} cases, {different} different, {rate:.1f}/s, {left:.1f} h left", flush=True)
    return total


def _outcomes(blocks: list[tuple[int, int]], processes: int) -> Iterator[tuple[int, Outcome]]:
    if processes == 1:
        yield from (_check_block(*block) for block in blocks)
        return
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        for pending in [pool.apply_async(_check_block, block) for block in blocks]:
            yield pending.get()


def main() -> None:
    """Search, print and write; fails where a case differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=20_000)
    parser.add_argument("--output", type=Path, default=Path("fuzz.jsonl"))
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--record", type=Path, help="JSON file for the figures of all cases, with versions and commit")
    parser.add_argument("--case", type=int, help="check this case alone and print it")
    options = parser.parse_args()
    if options.case is not None:
        print(Case.draw(options.case))
        total = check([Case.draw(options.case)])
    else:
        total = run(options.cases, options.output, options.processes)
    for name, error in sorted(total.worst.items()):
        print(f"{name}: {error:.1e}")
    if options.record:
        figures = {"cases": total.cases, "different": total.failures, "largest_relative_error": total.worst}
        write_record(options.record, figures)
    if total.failures:
        sys.exit("\n".join(f"case {seed}: {failure}" for seed, failure in sorted(total.failures.items())))


if __name__ == "__main__":
    main()
