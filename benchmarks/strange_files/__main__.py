"""Files that are damaged or crafted: each must be refused with a sentence, or be read as what it was.

    python -m benchmarks.strange_files --files 1000 --output results/strange-files.json

File i is made from the number i alone. It is damaged (a flipped bit, a block of random bytes or of zeros, an end that is missing
or too much), or crafted (a value in the place of another one in what it says). Each is read in a process of its own, so that a
crash is seen. A damaged file with a checksum must not be read as something else. What has none, such as a picture, may.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from benchmarks.record import write_record
from benchmarks.strange_files.damage import DAMAGES
from benchmarks.strange_files.data import Annotations, Picture, Table
from benchmarks.strange_files.networks import Classifier, Detector
from benchmarks.strange_files.settings import Preset, Recipe
from benchmarks.strange_files.subject import Read, Subject

LIMIT = 60  # seconds of the processor, beyond which a file has run away
MEMORY = 8 * 2**30  # bytes that reading may take beyond what the process has
OUTCOMES = (
    "same",
    "sentence",
    "described otherwise",
    "read otherwise",
    "another network",
    "traceback",
    "ran away",
    "crash",
)
ALLOWED = OUTCOMES[:4]
CRAFTED = "a crafted description"
SUBJECTS = {kind.name: kind for kind in (Classifier, Detector, Picture, Table, Annotations, Recipe, Preset)}
_CONTEXT = multiprocessing.get_context("fork")


def make(index: int, subject: Subject, files: Sequence[Path], folder: Path) -> tuple[Path, Path, str]:
    """File number ``index``: where it is, what it was made of and how."""
    rng = random.Random(index)
    source = files[index % len(files)]
    path = folder / f"strange{source.suffix}"
    shutil.copy(source, path)
    if rng.random() < 0.6 and subject.craft(path, rng):
        return path, source, CRAFTED
    kind = rng.choice(list(DAMAGES))
    contents = bytearray(source.read_bytes())
    DAMAGES[kind](contents, rng)
    path.write_bytes(contents)
    return path, source, kind


def attempt(subject: Subject, path: Path) -> Read | tuple[str, str]:
    """Read a file in a process of its own: what was read, or an outcome and what was said."""
    receiver, sender = _CONTEXT.Pipe(duplex=False)
    process = _CONTEXT.Process(target=_read, args=(subject, path, sender))
    process.start()
    sender.close()
    try:
        answer: Read | tuple[str, str] = receiver.recv()
    except EOFError:
        process.join()
        code = process.exitcode or 0
        answer = ("ran away", f"more than {LIMIT} s") if code == -signal.SIGXCPU else ("crash", f"exit code {code}")
    process.join()
    return answer


def _read(subject: Subject, path: Path, sender: Connection) -> None:
    used = resource.getrusage(resource.RUSAGE_SELF)
    spent = int(used.ru_utime + used.ru_stime)
    resource.setrlimit(resource.RLIMIT_CPU, (spent + LIMIT, spent + 2 * LIMIT))
    held = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (held + MEMORY, held + MEMORY))
    answer: Read | tuple[str, str]
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        try:
            answer = subject.read(path)
        except MemoryError:
            answer = ("ran away", f"more than {MEMORY} bytes")
        except (Exception, SystemExit) as error:
            said = getattr(error, "exit_code", getattr(error, "code", None)) == 2
            answer = ("sentence" if said else "traceback", f"{type(error).__name__}: {str(error)[:300]}")
    sender.send(answer)


def outcome(subject: Subject, path: Path, expected: Read, kind: str) -> tuple[str, str]:
    """What became of a file, one of ``OUTCOMES``, and what was said."""
    found = attempt(subject, path)
    if not isinstance(found, Read):
        return found
    if found == expected:
        return "same", ""
    kept = found.content == expected.content
    if kind == CRAFTED:
        if kept or not subject.keeps_content:
            return "described otherwise", ""
    elif not subject.has_checksum:
        return "read otherwise", ""
    return "another network", ""


def check(subject: Subject, count: int, first: int = 0) -> dict[str, Any]:
    """Make and read so many files; what became of them, by kind, and every one that is not as promised."""
    counts: dict[str, Counter[str]] = {}
    failures, slowest = [], 0.0
    with tempfile.TemporaryDirectory() as name:
        whole, folder = Path(name) / "whole", Path(name) / "strange"
        whole.mkdir()
        folder.mkdir()
        files = subject.originals(whole)
        expected = {file: _whole(subject, file) for file in files}
        for index in range(first, first + count):
            path, source, kind = make(index, subject, files, folder)
            began = time.perf_counter()
            found, said = outcome(subject, path, expected[source], kind)
            slowest = max(slowest, time.perf_counter() - began)
            counts.setdefault(f"{source.name}, {kind}", Counter())[found] += 1
            if found not in ALLOWED:
                failures.append({"file": index, "of": source.name, "kind": kind, "outcome": found, "said": said})
    table = {kind: dict(row) for kind, row in sorted(counts.items())}
    totals: Counter[str] = sum(counts.values(), Counter())
    return {"files": count, "totals": dict(totals), "slowest_seconds": slowest, "table": table, "failures": failures}


def _whole(subject: Subject, path: Path) -> Read:
    found = attempt(subject, path)
    if not isinstance(found, Read):
        raise RuntimeError(f"the whole file {path.name} of {subject.name} could not be read: {found[1]}")
    return found


def main(arguments: Iterable[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--subjects", nargs="+", choices=tuple(SUBJECTS), default=list(SUBJECTS), help="by default all")
    parser.add_argument("--files", type=int, default=1000, help="of each subject (default: 1000)")
    parser.add_argument("--first", type=int, default=0, help="number of the first file")
    parser.add_argument("--output", type=Path, default=Path("strange-files.json"))
    values = parser.parse_args(None if arguments is None else list(arguments))
    results: dict[str, Any] = {}
    for name in values.subjects:
        results[name] = check(SUBJECTS[name](), values.files, values.first)
        for failure in results[name]["failures"]:
            print(failure)
        print(name, results[name]["totals"], flush=True)
        write_record(values.output, {"subjects": results})
    return 1 if any(result["failures"] for result in results.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
