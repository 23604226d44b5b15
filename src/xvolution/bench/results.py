"""The results file of a bench: a record for each case, written as soon as the case is measured."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track

from xvolution.bench.conditions import device_conditions, instruction_sets, versions
from xvolution.conversion.upgrade import OPERATOR_NAMES
from xvolution.training.errors import InputError
from xvolution.training.files import write_text
from xvolution.training.metadata import provenance

Record = dict[str, Any]
PACKAGES = ("xvolution", "torch", "torchvision", "timm", "onnxruntime", "openvino")


@dataclass(frozen=True)
class Case:
    """One thing to measure.

    Attributes:
        key: its name in the results file; a case whose name is in the file is not measured again.
        settings: its settings, as plain values.
        measure: returns ``{form: figures}``.
    """

    key: str
    settings: dict[str, Any]
    measure: Callable[[], dict[str, Record]]


class Results:
    """Records by key, with machine, versions and commit."""

    def __init__(self, path: str | os.PathLike[str], kind: str) -> None:
        self.path, self.kind = Path(path), kind
        machine = device_conditions()
        del machine["torch_threads"]  # each case has its own
        machine |= {"instruction_sets": instruction_sets(), "torch_uses": torch.backends.cpu.get_cpu_capability()}
        self.conditions = {"machine": machine, "versions": versions(PACKAGES)}
        self.cases: dict[str, Record] = {}
        if self.path.exists():
            self._load()

    def _load(self) -> None:
        stored = read_results(self.path)
        if stored["kind"] != self.kind:
            raise InputError(
                f"{self.path} holds the bench {stored['kind']!r}, not {self.kind!r}; give another --output."
            )
        for condition in ("machine", "versions"):
            if stored[condition] != self.conditions[condition]:
                differences = _differences(stored[condition], self.conditions[condition])
                raise InputError(
                    f"{self.path} was measured with another {condition}: {differences}. "
                    "Give another --output, or delete the file to measure again."
                )
        self.cases = stored["cases"]

    def add(self, case: Case, forms: dict[str, Record]) -> None:
        """Keep one record, and rename a new file over the old one."""
        source = provenance(0)
        self.cases[case.key] = {
            **case.settings,
            "commit": source["commit"],
            "command": source["command"],
            "forms": forms,
        }
        values = {"kind": self.kind, **self.conditions, "cases": self.cases}
        write_text(self.path, json.dumps(values, indent=1) + "\n")


def read_results(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The results of a bench, with the current names of operators.

    Raises:
        InputError: there is no such file, or it is another's.
    """
    try:
        stored = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); run `xvolution bench` first.") from error
    except ValueError as error:
        raise InputError(
            f"{path} is not a results file of xvolution bench ({error}); give one that it wrote."
        ) from error
    if not isinstance(stored, dict) or not {"kind", "machine", "versions", "cases"} <= stored.keys():
        raise InputError(f"{path} is not a results file of xvolution bench; give one that it wrote.")
    if stored["versions"].get("xvolution") == "0.1.0":
        for case in stored["cases"].values():
            case["forms"] = {_renamed(form): figures for form, figures in case["forms"].items()}
    return stored


def _renamed(form: str) -> str:
    """A form of version 0.1.0, an operator and perhaps a layout, by today's name of the operator."""
    operator, *layout = form.split(" ")
    return " ".join([OPERATOR_NAMES.get(operator, operator), *layout])


def _differences(stored: Record, here: Record) -> str:
    names = sorted(name for name in stored.keys() | here.keys() if stored.get(name) != here.get(name))
    return ", ".join(f"{name} {stored.get(name)} there and {here.get(name)} here" for name in names)


def measure_all(cases: Sequence[Case], results: Results, console: Console) -> None:
    """Measure what is not done yet, with progress; stopped and started again, it goes on where it was."""
    wanted = [case for case in cases if case.key not in results.cases]
    if len(wanted) < len(cases):
        console.print(f"{len(cases) - len(wanted)} of {len(cases)} cases are in {results.path} already.")
    for case in track(wanted, description=f"bench {results.kind}", console=console, disable=not wanted):
        torch.manual_seed(0)
        start = time.perf_counter()
        forms = case.measure()
        results.add(case, forms)
        ratios = ", ".join(f"{name} {form['ratio']:.2f}" for name, form in forms.items() if "ratio" in form)
        console.print(f"{case.key}: {ratios} ({time.perf_counter() - start:.0f} s)", highlight=False, soft_wrap=True)
