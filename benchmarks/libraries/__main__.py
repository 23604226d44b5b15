"""Convert networks of libraries beside timm and torchvision, those that are installed: ``python -m benchmarks.libraries``."""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import resource
import sys
import time
import warnings
from collections import Counter
from collections.abc import Sequence
from fnmatch import fnmatchcase
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from benchmarks.libraries.check import examine
from benchmarks.libraries.networks import Sample, is_installed, samples
from benchmarks.record import write_record


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.libraries", description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("results/libraries.json"), help="where the record goes")
    parser.add_argument("--only", help="shell pattern of names, such as 'monai/*'")
    parser.add_argument("--timeout", type=float, default=120, help="seconds for one network (default: 120)")
    parser.add_argument("--memory-gib", type=float, default=8, help="memory for one network (default: 8)")
    parser.add_argument(
        "--resume",
        action="store_true",
        help="keep what the output has, but for networks that failed or could not be used",
    )
    return parser


def _child(sample: Sample, memory_gib: float, sender: Connection) -> None:
    size = int(memory_gib * 2**30)
    resource.setrlimit(resource.RLIMIT_DATA, (size, size))
    warnings.simplefilter("ignore")
    logging.disable()
    torch.set_num_threads(1)
    try:
        record = examine(sample)
    except Exception as error:
        record = {"status": "failed", "reason": f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"}
    sender.send(record)


def _examined(sample: Sample, timeout: float, memory_gib: float) -> dict[str, Any]:
    """The record of one network, examined in a fork that is ended at its limits."""
    started = time.monotonic()
    receiver, sender = multiprocessing.get_context("fork").Pipe(duplex=False)
    # mypy knows the process of a context by no common type.
    process: Any = multiprocessing.get_context("fork").Process(target=_child, args=(sample, memory_gib, sender))
    process.start()
    sender.close()
    try:
        record = receiver.recv() if receiver.poll(timeout) else None
    except EOFError:
        process.join()
        record = {"status": "failed", "reason": f"the process ended with exit code {process.exitcode}"}
    process.kill()
    process.join()
    record = record or {"status": "failed", "reason": f"took longer than {timeout:g} s"}
    return record | {"seconds": round(time.monotonic() - started, 1)}


def _versions(libraries: Sequence[str]) -> dict[str, str]:
    of_modules = packages_distributions()
    found = {}
    for library in libraries:
        try:
            found[library] = version(next(iter(of_modules.get(library, [library]))))
        except PackageNotFoundError:
            found[library] = "unknown"
    return found


def _one_of_each_library_first(wanted: Sequence[Sample]) -> list[Sample]:
    """What fails in a library shows early."""
    seen: Counter[str] = Counter()
    ranked = []
    for sample in wanted:
        ranked.append((seen[sample.library], sample))
        seen[sample.library] += 1
    return [sample for _, sample in sorted(ranked, key=lambda pair: pair[0])]


def summarized(records: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Counts over all networks, and the largest errors."""
    converted = [record for record in records.values() if record["status"] == "converted"]
    left: Counter[str] = Counter()
    for record in records.values():
        left.update(record.get("left", {}))
    return {
        "networks": len(records),
        **dict(sorted(Counter(record["status"] for record in records.values()).items())),
        "convolutions_replaced": sum(record["replaced"] for record in converted),
        "convolutions_left": dict(left.most_common()),
        "conversion_error": max((record["conversion_error"] for record in converted), default=None),
        "deployment_error": max((record["deployment_error"] for record in converted), default=None),
        "accepted_in_float32": sum(record.get("float32") == "accepted" for record in converted),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status: 1 when a network fails, 2 when there is none."""
    values = _parser().parse_args(arguments)
    wanted = [sample for sample in samples() if values.only is None or fnmatchcase(sample.key, values.only)]
    libraries = list(dict.fromkeys(sample.library for sample in wanted))
    for library in libraries:
        if not is_installed(library):
            print(f"{library} is not installed; its {sum(s.library == library for s in wanted)} networks are skipped")
    wanted = _one_of_each_library_first([sample for sample in wanted if is_installed(sample.library)])
    if not wanted:
        print("no network of an installed library is meant; install one, or give another --only", file=sys.stderr)
        return 2
    records: dict[str, dict[str, Any]] = {}
    if values.resume and values.output.exists():
        stored = json.loads(values.output.read_text())["records"]
        records = {key: record for key, record in stored.items() if record["status"] not in ("failed", "unusable")}
    for sample in wanted:
        if sample.key in records:
            continue
        record = _examined(sample, values.timeout, values.memory_gib)
        records[sample.key] = record
        said = record.get("reason") or f"{record['replaced']} replaced, {record['deployment_error']:.0e}"
        print(f"{sample.key}: {record['status']}: {said}", flush=True)
        versions = _versions(sorted({key.partition("/")[0] for key in records}))
        write_record(values.output, {"summary": summarized(records), "libraries": versions, "records": records})
    print(json.dumps(summarized(records), indent=1))
    return 1 if any(record["status"] == "failed" for record in records.values()) else 0


if __name__ == "__main__":
    raise SystemExit(main())
