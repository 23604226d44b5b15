"""A few kills and a few strange files: the short form of what `docs/reliability.md` reports.

``XVOLUTION_KILLS`` and ``XVOLUTION_STRANGE_FILES`` are how many.
"""

import os
import random
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("lightning")

from benchmarks import kills
from benchmarks.strange_files import __main__ as strange_files
from benchmarks.strange_files.damage import DAMAGES, crafted
from benchmarks.strange_files.subject import Read, Subject

KILLS = int(os.environ.get("XVOLUTION_KILLS", "2"))
FILES = int(os.environ.get("XVOLUTION_STRANGE_FILES", "20"))


@pytest.mark.slow
@pytest.mark.parametrize(("job", "count"), [(kills.Training, KILLS), (kills.Deployment, KILLS // 2)])
def test_killed_jobs_end_as_whole_ones_do(
    job: type[kills.Job], count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kills.Deployment, "endings", (".safetensors", ".pt2"))  # four take minutes
    tally = kills.check(job(), count, random.Random(0), tmp_path)
    assert tally.holds, tally
    assert tally.kills.total() == count


@pytest.mark.slow
@pytest.mark.parametrize("name", strange_files.SUBJECTS)
def test_strange_files_are_refused_or_the_same(name: str) -> None:
    pytest.importorskip("pycocotools")
    result = strange_files.check(strange_files.SUBJECTS[name](), FILES)
    assert result["failures"] == []
    assert sum(result["totals"].values()) == FILES


def test_a_strange_file_is_made_of_its_number_alone() -> None:
    values = {"model": {"name": "resnet18", "kwargs": {"layers": [1, 2]}}, "class_names": ["a"]}
    made = [crafted(values, random.Random(index)) for index in (3, 3, 4)]
    assert made[0] == made[1] != made[2]
    contents = [bytearray(range(200)) for _ in DAMAGES]
    for damage, each in zip(DAMAGES.values(), contents, strict=True):
        damage(each, random.Random(1))
        assert each != bytearray(range(200))


class Reader(Subject):
    """Reads nothing, but does something."""

    name = "reader"

    def __init__(self, read: Callable[[], Read], has_checksum: bool = False, keeps_content: bool = False) -> None:
        self._read, self.has_checksum, self.keeps_content = read, has_checksum, keeps_content

    def originals(self, folder: Path) -> list[Path]:
        return []

    def read(self, path: Path) -> Read:
        return self._read()


def refuse() -> Read:
    raise SystemExit(2)


def crash() -> Read:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


@pytest.mark.parametrize(
    ("read", "found"),
    [
        (lambda: Read("a", "b"), "same"),
        (refuse, "sentence"),
        (lambda: Read(str(1 / 0)), "traceback"),
        (crash, "crash"),
        (lambda: Read(str(len(bytearray(2**36)))), "ran away"),
    ],
)
def test_what_becomes_of_a_file(read: Callable[[], Read], found: str, tmp_path: Path) -> None:
    assert strange_files.outcome(Reader(read), tmp_path, Read("a", "b"), "a flipped bit")[0] == found


@pytest.mark.parametrize(
    ("has_checksum", "keeps_content", "kind", "content", "found"),
    [
        (True, True, "a flipped bit", "other", "another network"),
        (True, True, "a flipped bit", "a", "another network"),
        (False, False, "a flipped bit", "other", "read otherwise"),
        (True, True, strange_files.CRAFTED, "other", "another network"),
        (True, True, strange_files.CRAFTED, "a", "described otherwise"),
        (False, False, strange_files.CRAFTED, "other", "described otherwise"),
    ],
)
def test_what_is_read_otherwise(
    has_checksum: bool, keeps_content: bool, kind: str, content: str, found: str, tmp_path: Path
) -> None:
    reader = Reader(lambda: Read(content, "otherwise"), has_checksum, keeps_content)
    assert strange_files.outcome(reader, tmp_path, Read("a", "b"), kind)[0] == found
