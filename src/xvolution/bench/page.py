"""`xvolution bench page`: a Markdown page from the results files."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from xvolution.bench.bars import OPERATOR, all_bars
from xvolution.bench.results import Record, read_results
from xvolution.bench.tables import bar_table, network_tables, operator_tables, option_tables, scaling_table
from xvolution.training.figures import COLOURS, INK, MARKERS, WIDTH, in_lines, style, svg_file
from xvolution.training.files import write_text

KINDS = ("networks", "options", "operators", "scaling")

INTRODUCTION = """# Performance

This page shows what X-volution costs: time, memory and operations of deployed networks and of training steps, beside those
of the plain network. Measure on your own machine, and write the same page:

```console
$ xvolution bench networks --networks resnet50 --output mine/bench-networks.json
$ xvolution bench page --results mine --output performance.md
```

- **A time** is a median. The forms are timed in turns in one process.
- **A ratio** is the median over the turns of (time of the form) / (time of the plain network). For a single operator the
  baseline is `nn.Conv2d` of the same shape.
- **The floor** is the same ratio of the floating-point operations.

[Results](results.md#what-it-costs) has the summary. The figures come from `results/bench-*.json`, with machine, versions,
command and commit.
"""

NETWORKS = """Deployed networks, norms folded. X-volution replaces the convolutions that `convert` chooses: spatial
convolutions, and the 1x1 projection after a depthwise convolution. Squeeze-and-excitation follows the same spatial convolutions,
including depthwise ones. The layout of X-volution is `auto` unless the form names one.
"""

OPTIONS = """Each row changes one option of the default branch. A row without effect on a network, such as `window=3` beside 3x3
convolutions, shows the noise of the measurement.
"""

TRIED = """## What was tried

- The 1x1 convolutions of the deployed form as matrix products; the last one adds to the convolution's output. This is faster
  and was kept (`attention/pointwise.py`).
- The mean over all pixels computed from the keys, which have fewer channels than the input. This is faster and was kept.
- Beside a projection: convolution, query and key as one 1x1 convolution. The input is read once, but splitting the three
  outputs takes the time that this saves. It was within 2 % of `split` in both runtimes and was not kept.
- Attention maps in channels-last format while the image is contiguous. The depthwise convolution gains as much time as the
  transposed products lose.
- oneDNN's fused convolution and addition. It is no faster than the product that adds, and is not a public function.
- Separate products for query and key. They were kept for channels-last maps; for contiguous maps there was no gain.
- `torch.compile` of the deployed form (the rows *compiled*). It fuses gate and addition, which is faster in bfloat16, and in
  float32 for small maps. The depthwise convolution of large maps with few channels still takes most of the time.
- The layout `single`. It computes query and key with the arithmetic of a K x K convolution.
- Training with one operator that recomputes window sum, gate and products in the backward pass instead of keeping them. It
  needs less memory in about the same time and was kept (`attention/fused`).
"""

GPU = """## On a GPU

[Architecture](architecture.md) has figures of one run. These commands measure them, in addition to the figures of this page:

```bash
xvolution bench networks --device cuda --networks resnet50 --runtimes training torch --batches 64 \\
    --dtypes float32 bfloat16 --modes eager compiled --output results/bench-networks-cuda.json
xvolution bench operators --device cuda --batches 1 64 --memory-formats channels_last --modes eager compiled \\
    --output results/bench-operators-cuda.json
```
"""


def records_in(results: Path) -> dict[str, dict[str, Any]]:
    """The results of benches, by machine and by kind.

    Args:
        results: folder with ``bench-KIND.json``, and ``bench-KIND-NAME.json`` of further machines.

    Returns:
        ``{NAME: {KIND: what was read}}``; the name of the first machine is empty.

    Raises:
        InputError: a file cannot be read.
    """
    found: dict[str, dict[str, Any]] = {}
    for kind in KINDS:
        for path in sorted(results.glob(f"bench-{kind}*.json")):
            name = path.stem.removeprefix(f"bench-{kind}").removeprefix("-")
            found.setdefault(name, {})[kind] = read_results(path)
    return dict(sorted(found.items()))


def write_page(results: Path, page: Path) -> None:
    """Write the page, and its pictures beside it, from whichever results files there are.

    Args:
        results: folder of the results files, see ``records_in``.
        page: Markdown file; pictures go to ``images`` in its folder.

    Raises:
        InputError: a file cannot be read.
    """
    machines = records_in(results)
    parts = [INTRODUCTION]
    for name, records in (machines or {"": {}}).items():
        parts += _of_machine(name, records, page)
    write_text(page, "\n".join([*parts, TRIED, GPU]))


def _of_machine(name: str, records: Mapping[str, Any], page: Path) -> list[str]:
    """The sections for one machine, networks first."""
    cases = {kind: list(stored["cases"].values()) for kind, stored in records.items()}
    suffix = f" ({name})" if name else ""
    parts = []
    if "networks" in cases:
        parts += [f"## Networks by runtime{suffix}\n", NETWORKS, *network_tables(cases["networks"])]
    bars = [bar for bar in all_bars(cases) if bar.met is not None or not name]
    parts += [f"## The bars{suffix}\n", bar_table(bars), _conditions(records)]
    if "options" in cases:
        parts += [f"## What each option costs{suffix}\n", OPTIONS, *option_tables(cases["options"])]
    if "operators" in cases:
        parts += [f"## One operator in the place of a 3x3 convolution{suffix}\n", *operator_tables(cases["operators"])]
    if "scaling" in cases:
        picture = page.parent / "images" / f"performance-scaling{name and '-' + name}.svg"
        draw_scaling(cases["scaling"], picture)
        parts += [
            f"## Growth with the number of pixels{suffix}\n",
            f"![time and memory over the number of pixels]({os.path.relpath(picture, page.parent)})\n",
            *scaling_table(cases["scaling"]),
        ]
    return parts


def _conditions(records: Mapping[str, Any]) -> str:
    """Machine, instruction sets and versions of each kind of bench."""
    lines = []
    for kind, stored in records.items():
        machine, versions = stored["machine"], stored["versions"]
        sets = _widest(machine.get("instruction_sets", ()))
        software = ", ".join(f"{name} {version}" for name, version in versions.items())
        lines.append(
            f"- {kind}: {machine.get('gpu', machine['processor'])}, {machine['cores']} cores{sets}; {software}"
        )
    return "\n".join([*lines, ""])


def _widest(instruction_sets: Sequence[str]) -> str:
    """The available instruction sets, in words."""
    kinds = {"avx2": "AVX2", "avx512": "AVX-512", "amx": "AMX"}
    there = [said for start, said in kinds.items() if any(found.startswith(start) for found in instruction_sets)]
    return f", {', '.join(there)}" if there else ""


def draw_scaling(cases: Sequence[Record], path: Path) -> None:
    """Time and peak memory over the number of pixels, both axes logarithmic, as SVG."""
    with style():
        figure = Figure(figsize=(WIDTH, 5.8), layout="constrained")
        for axes, figure_name, unit, label in zip(
            figure.subplots(2, 1, sharex=True),
            ("median_ms", "peak_bytes"),
            (1, 2**20),
            ("time, ms", "peak memory, MiB"),
            strict=True,
        ):
            _draw_growth(axes, cases, figure_name, unit)
            axes.set_ylabel(label)
            axes.grid(color=INK, alpha=0.12)
        figure.axes[1].set_xlabel("pixels, H·W")
        legend = figure.axes[0].get_legend_handles_labels()
        figure.legend(*legend, loc="outside lower center", ncols=2, frameon=False, fontsize=9.5)
        write_text(path, svg_file(figure, "Time and peak memory over the number of pixels"))


def _draw_growth(axes: Axes, cases: Sequence[Record], figure_name: str, unit: int) -> None:
    names = list(dict.fromkeys(name for case in cases for name in case["forms"]))
    for place, name in enumerate(names):
        points = [
            (case["side"] ** 2, case["forms"][name][figure_name] / unit)
            for case in cases
            if figure_name in case["forms"].get(name, {})
        ]
        if points:
            axes.loglog(
                *zip(*points, strict=True),
                marker=MARKERS[place % len(MARKERS)],
                color=COLOURS[place % len(COLOURS)],
                markersize=4,
                linewidth=2.5 if name == OPERATOR else 1.2,
                label=in_lines(name, 26),
            )
