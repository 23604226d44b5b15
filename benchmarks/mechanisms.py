"""The page of the rivals and the mechanisms: what each costs where it is deployed, and its first run."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from xvolution.training.files import write_text

#: Of `xvolution bench mechanisms`, and of `xvolution compare` with the presets of these names in `experiments/tiny_imagenet`.
COSTS, FIRST_RUNS, ANNEALING = "bench-mechanisms.json", "tiny-imagenet/mechanisms.json", "tiny-imagenet/annealing.json"

_INTRODUCTION = """\
# Mechanisms

What users would take in the place of X-volution ([SE, ECA, GC, CA, ODConv](operators.md)), and what may be added to it:
[diverse branches](operator.md#several-convolutions), a [pooled query that mixes channels](operator.md), a lighter
`channel_gate`, a [teacher](training.md#a-teacher), and [annealing](training.md#free-once-deployed), after which plain
convolutions are left. This page is made from `results/bench-mechanisms.json`, `results/tiny-imagenet/mechanisms.json` and
`results/tiny-imagenet/annealing.json`:

```console
$ OMP_NUM_THREADS=1 xvolution bench mechanisms --threads 1
$ xvolution compare --preset experiments/tiny_imagenet/annealing.yaml --data DATA --output runs/annealing
```
"""

_COSTS = """\
## What each costs once deployed

Norms folded; each stands where `convert` puts it: X-volution and its forms at the 1x1 projection behind a depthwise convolution,
the rivals at the depthwise one. A ratio is the median over turns of (time of the form) / (time of the plain network). A
diverse branch, and a gate that was annealed, cost nothing: what differs there is the noise of the measurement. On the
other core of the machine a network was trained meanwhile.
"""

_FIRST_RUNS = """\
## First runs

One seed by a recipe that was cut, to see that each works. **No row says which is better**: that takes three seeds and
whole trainings.
"""


_ANNEALING = """\
## What annealing keeps

The small network of [the results](results.md) on Tiny-ImageNet. After eight epochs, X-volution in stages 3 and 4 is ahead of the
plain network. Both are trained on for three epochs. *Annealed* loses its gates meanwhile, and its deployed network has plain
convolutions. The interval is a 95 % interval over seeds and images.
"""


def write_page(results: Path, page: Path) -> None:
    """Write the page from whichever of the records there are."""
    parts = [_INTRODUCTION, _COSTS, *_costs(_read(results / COSTS))]
    parts += [_ANNEALING, *_annealing(_read(results / ANNEALING))]
    parts += [_FIRST_RUNS, *_first_runs(_read(results / FIRST_RUNS))]
    write_text(page, "\n".join(parts) + "\n")


def _read(path: Path) -> Mapping[str, Any] | None:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def _costs(stored: Mapping[str, Any] | None) -> Iterator[str]:
    if stored is None:
        yield "Not measured yet.\n"
        return
    by_network: dict[str, list[Mapping[str, Any]]] = {}
    for case in stored["cases"].values():
        by_network.setdefault(case["network"], []).append(case)
    for network, cases in by_network.items():
        runtimes = [case["runtime"] for case in cases]
        yield f"### {network}, {cases[0]['image_size']} pixels, {cases[0]['threads']} thread(s)\n"
        yield _row(["", "parameters", "MFLOPs", *(f"{name}, ms" for name in runtimes), *runtimes])
        yield _row(["---", *["---:"] * (2 + 2 * len(runtimes))])
        for name, first in cases[0]["forms"].items():
            forms = [case["forms"][name] for case in cases]
            counts = [f"{first['parameters']:,}", f"{first['flops'] / 1e6:,.0f}"] if "flops" in first else ["", ""]
            times = [f"{form['median_ms']:.2f}" if "median_ms" in form else "not run" for form in forms]
            ratios = [f"{form['ratio']:.3f}" if "ratio" in form else "" for form in forms]
            yield _row([name, *counts, *times, *ratios])
        yield ""
    machine, versions = stored["machine"], stored["versions"]
    yield f"{machine.get('device', machine)}; {', '.join(f'{name} {version}' for name, version in versions.items())}.\n"


def _annealing(stored: Mapping[str, Any] | None) -> Iterator[str]:
    if stored is None:
        yield "Not run yet.\n"
        return
    yield _row(["", "seeds", "top-1", "difference, points", "loss", "FLOPs, deployed", "latency, deployed"])
    yield _row(["---", *["---:"] * 6])
    for row in stored["variants"]:
        gain, loss = row["bootstrap"], row["differences"].get("loss")
        yield _row(
            [
                row["label"],
                str(len(row["seeds"])),
                f"{row['score']['estimate']:.2%}",
                ""
                if gain is None
                else f"{100 * gain['estimate']:+.2f} ({100 * gain['low']:+.2f} to {100 * gain['high']:+.2f})",
                "" if loss is None else f"{loss['estimate']:+.3f}",
                f"{row['deployed_flops_ratio']:.2f}",
                "" if row["latency"] is None else f"{row['latency']['ratio']:.2f}",
            ]
        )
    yield ""


def _first_runs(stored: Mapping[str, Any] | None) -> Iterator[str]:
    if stored is None:
        yield "Not run yet.\n"
        return
    if "cut" in stored:
        yield f"{stored['cut']}\n"
    yield _row(["", "parameters", "MFLOPs", "top-1", "training loss of the last epoch", "seconds of an epoch"])
    yield _row(["---", *["---:"] * 5])
    for cell in stored["cells"]:
        loss, seconds = cell["history"][-1]["train_loss"], cell["seconds_per_epoch"]
        counts = (f"{cell['parameters']:,}", f"{cell['flops'] / 1e6:,.1f}")
        yield _row([cell["label"], *counts, f"{cell['top1']:.2%}", f"{loss:.3f}", f"{seconds:.0f}"])
    yield ""


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"
