"""The fastest layout of each operator in the runtime that will run it."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from xvolution.attention.deployed import DeployedOperator
from xvolution.conversion.modules import call
from xvolution.deploy.capture import capture
from xvolution.deploy.latency import cpu_threads, measure_latency
from xvolution.deploy.recorder import Recorder
from xvolution.deploy.runtimes import RUNTIMES, ExportError
from xvolution.operator import ReparameterizationError, XVolution, fold, layouts_for, require_eval

#: The runtime that is no file: torch itself, on the model's device, in this process.
TORCH = "torch"

#: The layout that is chosen by timing.
AUTO = "auto"

_ROUNDS = 15
#: How much of the time of the layout with the fewest multiplications another one may take at most, so as not to follow noise.
_GAIN = 0.98

#: Is told, in one line, what was timed and chosen.
Progress = Callable[[str], None]


@dataclass(frozen=True)
class LayoutChoice:
    """The layout of each operator of a network, and how it was chosen.

    Attributes:
        layouts: layout by module name, as for ``reparameterize(layout=...)``.
        timed_in: name of the runtime that timed them, ``"torch"`` or one of ``RUNTIMES``; empty where nothing was timed.
        seconds: by name of the first of each distinct operator that was timed: the shortest time of each layout over all rounds.
        reason: why operators were not timed and have the layout with the fewest multiplications; empty if each operator
            with several layouts, or one like it, was timed.
    """

    layouts: Mapping[str, str]
    timed_in: str = ""
    seconds: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    reason: str = ""

    def __str__(self) -> str:
        counted = Counter(self.layouts.values()).most_common()
        said = [f"layouts {', '.join(f'{layout} ({count})' for layout, count in counted) or 'of no operator'}"]
        if self.seconds:
            said.append(f"distinct operators timed in {_title(self.timed_in)}: {len(self.seconds)}")
        if self.reason:
            said.append(f"those with the fewest multiplications, because {self.reason}")
        return "; ".join(said)


def choose_layouts(
    model: nn.Module,
    example_inputs: Any,
    runtime: str = TORCH,
    threads: int | None = None,
    progress: Progress | None = None,
) -> LayoutChoice:
    """The fastest layout of each X-volution in a runtime, as ``reparameterize`` and ``export`` choose for ``"auto"``.

    Args:
        model: a network in eval mode, or a single ``XVolution2d``.
        example_inputs: a tensor, a tuple of positional arguments or a mapping of keyword arguments; it is run once.
        runtime: ``"torch"``, eager on the model's device, or a runtime by its name in ``xvolution.deploy.runtimes``, such as
            ``"onnxruntime"``: each operator is then written by itself and timed there.
        threads: number of CPU threads that one call may use; as many as torch uses if None.
        progress: called with a line for each distinct operator: its times and the chosen layout.

    Returns:
        The layouts, for ``reparameterize(layout=choice.layouts)``, with the measured times.

    Raises:
        ReparameterizationError: the model is in train mode.
        ValueError: no such runtime, or ``threads`` below 1.
    """
    timer = LayoutTimer(runtime, threads, progress)
    require_eval(model)
    operators = {name: module for name, module in model.named_modules() if isinstance(module, XVolution)}
    with torch.no_grad(), Recorder(operators) as seen:
        call(model, example_inputs)
    return timer.choose(operators, seen.inputs)


class LayoutTimer:
    """Times the layouts of operators in one runtime; equal operators with inputs of the same shape are timed once.

    Args:
        runtime, threads, progress: as of ``choose_layouts``.

    Raises:
        ValueError: no such runtime, or ``threads`` below 1.
    """

    def __init__(self, runtime: str = TORCH, threads: int | None = None, progress: Progress | None = None) -> None:
        if runtime != TORCH and runtime not in RUNTIMES:
            raise ValueError(f"runtime is {runtime!r}; allowed are {', '.join(map(repr, (TORCH, *RUNTIMES)))}")
        if threads is not None and threads < 1:
            raise ValueError(f"threads is {threads}; give at least 1, or None for as many as torch has")
        self.runtime = runtime
        self.threads = torch.get_num_threads() if threads is None else threads
        self._say = progress or (lambda line: None)

    def choose(self, operators: Mapping[str, XVolution], inputs: Mapping[str, Tensor]) -> LayoutChoice:
        """The fastest layout of each operator on its input; by number of multiplications where that cannot be timed.

        Args:
            operators: by module name, in eval mode.
            inputs: the input of each, (N, C, H, W).
        """
        layouts = {name: _layouts(name, operator) for name, operator in operators.items()}
        chosen = {name: there[0] for name, there in layouts.items()}
        several = {name: operators[name] for name, there in layouts.items() if len(there) > 1}
        reason = self._missing() if several else ""
        if reason or not several:
            return LayoutChoice(chosen, reason=reason)
        unreached = [name or "the operator" for name in several if name not in inputs]
        if unreached:
            reason = f"no input reached {', '.join(unreached)}"
        seconds: dict[str, Mapping[str, float]] = {}
        groups = _alike({name: operator for name, operator in several.items() if name in inputs}, inputs)
        for position, names in enumerate(groups, 1):
            first, said = names[0], f"operator {position} of {len(groups)}, {_called(names)}: "
            try:
                times = self._times(_candidates(operators[first]), _images(inputs[first]))
            except ExportError as error:
                reason = str(error)
                self._say(f"{said}{chosen[first]}, not timed: {error}")
            else:
                chosen |= dict.fromkeys(names, _fastest(times, chosen[first]))
                seconds[first] = times
                self._say(f"{said}{chosen[first]} ({_shown(times)} in {_title(self.runtime)})")
        return LayoutChoice(chosen, self.runtime if seconds else "", seconds, reason)

    def _missing(self) -> str:
        """The reason why the runtime cannot time operators here; empty if it can."""
        if self.runtime == TORCH:
            return ""
        try:
            RUNTIMES[self.runtime].require_writer()
        except ExportError as error:
            return str(error)
        return RUNTIMES[self.runtime].unrunnable()

    def _times(self, candidates: Mapping[str, DeployedOperator], x: Tensor) -> dict[str, float]:
        """Seconds by layout: the shortest sample, because other processes can only add time."""
        in_turns = self._in_process if self.runtime == TORCH else self._in_files
        with in_turns(candidates, x) as calls, torch.inference_mode():
            measured = measure_latency(calls, _ROUNDS)
        return {layout: min(latency.samples) for layout, latency in measured.latencies.items()}

    @contextmanager
    def _in_process(
        self, candidates: Mapping[str, DeployedOperator], x: Tensor
    ) -> Iterator[dict[str, Callable[[], object]]]:
        with cpu_threads(self.threads):
            yield {layout: partial(module, x) for layout, module in candidates.items()}

    @contextmanager
    def _in_files(
        self, candidates: Mapping[str, DeployedOperator], x: Tensor
    ) -> Iterator[dict[str, Callable[[], object]]]:
        """One file for each layout that the runtime takes, of the size of ``x``.

        Raises:
            ExportError: it takes none.
        """
        runtime, refused = RUNTIMES[self.runtime], None
        x = x if runtime.batched else x[:1]
        calls: dict[str, Callable[[], object]] = {}
        with tempfile.TemporaryDirectory() as folder:
            for layout, module in candidates.items():
                path = Path(folder) / f"{layout}{runtime.ending}"
                try:
                    runtime.write(capture(module, (x,)), path)
                    run = runtime.load(path, threads=self.threads, input_shapes=[x.shape])
                    run(x)
                except ExportError as error:
                    refused = error
                else:
                    calls[layout] = partial(run, x)
            if not calls and refused is not None:
                raise refused
            yield calls


def _layouts(name: str, operator: XVolution) -> tuple[str, ...]:
    try:
        return layouts_for(operator)
    except ReparameterizationError as error:
        raise ReparameterizationError(f"{name or type(operator).__name__}: {error}") from error


def _candidates(operator: XVolution) -> dict[str, DeployedOperator]:
    folded = fold(operator)
    return {layout: folded.deployed(layout, operator.conv.weight) for layout in folded.layouts}


def _alike(operators: Mapping[str, XVolution], inputs: Mapping[str, Tensor]) -> list[list[str]]:
    """The names of operators that take the same time, in groups."""
    groups: dict[tuple[Any, ...], list[str]] = {}
    for name, operator in operators.items():
        groups.setdefault(_key(_candidates(operator), inputs[name]), []).append(name)
    return list(groups.values())


def _key(candidates: Mapping[str, DeployedOperator], x: Tensor) -> tuple[Any, ...]:
    """The properties that determine a time: the form of each layout, and the shape, strides, dtype and device of its input."""
    return (*map(_structure, candidates.values()), tuple(x.shape), x.stride(), x.dtype, str(x.device))


def _structure(module: DeployedOperator) -> tuple[Any, ...]:
    """The form of a layout, its window, and the shapes of its weights."""
    shapes = tuple((name, tuple(tensor.shape)) for name, tensor in module.state_dict().items())
    return (type(module), module.geometry, module.groups, shapes)


def _images(x: Tensor) -> Tensor:
    """``x``, or noise if the batch is empty, as in the heads of a detector without proposals."""
    if x.numel():
        return x
    return torch.randn(1, *x.shape[1:], generator=torch.Generator().manual_seed(0)).to(x)


def _fastest(times: Mapping[str, float], fewest: str) -> str:
    """The layout with the fewest multiplications, unless it was refused or another one is clearly faster."""
    baseline = fewest if fewest in times else next(iter(times))
    fastest = min(times, key=lambda layout: times[layout])
    return fastest if times[fastest] < _GAIN * times[baseline] else baseline


def _called(names: list[str]) -> str:
    first = names[0] or "the operator"
    return first if len(names) == 1 else f"{first} and {len(names) - 1} like it"


def _shown(seconds: Mapping[str, float]) -> str:
    return ", ".join(f"{layout} {time * 1e3:.3f} ms" for layout, time in seconds.items())


def _title(runtime: str) -> str:
    return runtime if runtime == TORCH else RUNTIMES[runtime].title
