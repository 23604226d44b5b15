"""Files are written whole or not at all, through links, into pipes and devices, and leave no temporaries."""

from __future__ import annotations

import errno
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from xvolution import files
from xvolution.training import RunError
from xvolution.training.files import atomic_path, write_text


def test_a_device_is_written_to_and_stays_a_device(tmp_path: Path) -> None:
    device = tmp_path / "null"
    try:
        os.mknod(device, 0o666 | stat.S_IFCHR, os.makedev(1, 3))
        device.write_text("")
    except OSError:
        pytest.skip("needs the right to make a device")
    write_text(device, "text")
    assert stat.S_ISCHR(os.stat(device).st_mode)
    write_text(os.devnull, "text")
    assert stat.S_ISCHR(os.stat(os.devnull).st_mode)


def test_a_named_pipe_is_written_to_and_stays_one(tmp_path: Path) -> None:
    pipe, found = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: found.append(pipe.read_text()))
    reader.start()
    write_text(pipe, "text")
    reader.join(10)
    assert found == ["text"]
    assert stat.S_ISFIFO(os.stat(pipe).st_mode)


def test_links_are_followed(tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    link = tmp_path / "link.json"
    link.symlink_to(tmp_path / "far" / "real.json")
    for text in ("first", "second"):  # the file that it leads to is missing at first
        write_text(link, text)
        assert link.is_symlink()
        assert (tmp_path / "far" / "real.json").read_text() == text


def test_what_is_printed_to_keeps_what_it_has(tmp_path: Path) -> None:
    code = "print('printed'); from xvolution.training.files import write_text; write_text('/dev/stdout', 'written')"
    with open(tmp_path / "out.txt", "w") as out:
        subprocess.run([sys.executable, "-c", code], stdout=out, check=True, timeout=60)
    assert (tmp_path / "out.txt").read_text() == "printed\nwritten"


def test_files_beside_it_come_with_it_or_not_at_all(tmp_path: Path) -> None:
    with atomic_path(tmp_path / "m.xml") as temporary:
        temporary.write_text("graph")
        temporary.with_suffix(".bin").write_text("weights")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"m.xml": "graph", "m.bin": "weights"}

    def interrupted() -> None:
        with atomic_path(tmp_path / "m.xml") as temporary:
            temporary.with_suffix(".bin").write_text("other")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"m.xml": "graph", "m.bin": "weights"}


@pytest.mark.parametrize("moved", [0, 1, 2])
def test_a_kill_leaves_no_graph_among_the_weights_of_another_one(tmp_path: Path, moved: int) -> None:
    graph, weights, notes = (tmp_path / name for name in ("net.xml", "net.bin", "net.json"))
    for path in (graph, weights, notes):
        path.write_text("old", encoding="utf-8")
    script = """
import os, signal, sys
from xvolution import files
replace, left = os.replace, int(sys.argv[2])
def replace_some(*places):
    global left
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    left -= 1
    replace(*places)
os.replace = replace_some
with files.written_whole(sys.argv[1]) as path:
    for name in ("net.xml", "net.bin", "net.json"):
        path.with_name(name).write_text("new", encoding="utf-8")
"""
    run = subprocess.run([sys.executable, "-c", script, str(graph), str(moved)], check=False)
    assert run.returncode == -signal.SIGKILL
    assert not graph.exists()
    assert [path.read_text(encoding="utf-8") for path in (weights, notes)].count("new") == moved


def test_temporaries_of_killed_processes_are_swept(tmp_path: Path) -> None:
    code = """
import os, signal, sys
from xvolution.training.files import atomic_path
with atomic_path(sys.argv[1]) as temporary:
    temporary.write_bytes(b"half")
    os.kill(os.getpid(), signal.SIGKILL)
"""
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "last.ckpt")], timeout=60, check=False)
    (left,) = tmp_path.iterdir()
    assert re.fullmatch(r"\.last\.ckpt\..*\.\d+\..*\.partial", left.name)
    with atomic_path(tmp_path / "other.txt") as temporary:
        temporary.write_text("being written")
        files.sweep(tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == [temporary.parent.name]
    assert [path.name for path in tmp_path.iterdir()] == ["other.txt"]


def test_temporaries_of_other_machines_are_swept_when_they_are_old(tmp_path: Path) -> None:
    left = tmp_path / ".last.ckpt.another-host.12.abc.partial"
    left.mkdir()
    (left / "last.ckpt").write_text("half")
    files.sweep(tmp_path)
    assert left.exists()
    for path in (left, left / "last.ckpt"):
        os.utime(path, (0, 0))
    files.sweep(tmp_path)
    assert not left.exists()


def test_a_running_process_keeps_its_temporary(tmp_path: Path) -> None:
    left = tmp_path / f".last.ckpt.{files._host()}.{os.getppid()}.abc.partial"
    left.mkdir()
    files.sweep(tmp_path)
    assert left.exists()
    assert files._host() == re.sub(r"[^\w-]", "_", socket.gethostname())[:64]


def make_file_for_folder(folder: Path) -> Path:
    (folder / "file").write_text("")
    return folder / "file" / "out.json"


def make_folder_for_file(folder: Path) -> Path:
    (folder / "out.json").mkdir()
    return folder / "out.json"


def make_circle(folder: Path) -> Path:
    (folder / "a").symlink_to(folder / "b")
    (folder / "b").symlink_to(folder / "a")
    return folder / "a"


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (make_file_for_folder, "a file has the name of a folder"),
        (make_folder_for_file, "a folder has this name"),
        (lambda folder: folder / ("long" * 100), "give a shorter name"),
        (make_circle, "symbolic links form a loop"),
        (lambda folder: Path("/dev/full"), "free some space"),
    ],
    ids=["file for folder", "folder for file", "long name", "links in a circle", "full"],
)
def test_the_cause_is_said(tmp_path: Path, make: Callable[[Path], Path], sentence: str) -> None:
    with pytest.raises(RunError, match=sentence):
        write_text(make(tmp_path), "text")


def test_a_read_only_disk_is_not_called_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(files.tempfile, "mkdtemp", refuse)
    with pytest.raises(RunError, match="the disk is read-only; give another folder"):
        write_text(tmp_path / "out.json", "text")


def test_a_folder_that_is_one_file_is_written_whole_and_replaced(tmp_path: Path) -> None:
    target = tmp_path / "model.mlpackage"
    for content in ("first", "second"):
        with files.written_whole(target) as temporary:
            (temporary / "Data").mkdir(parents=True)
            (temporary / "Data" / content).write_text(content)
        assert [file.name for file in target.rglob("*") if file.is_file()] == [content]
    with pytest.raises(FileNotFoundError), files.written_whole(target) as temporary:
        (temporary / "Data").mkdir()
    assert (target / "Data" / "second").read_text() == "second"
    assert [file.name for file in tmp_path.iterdir()] == ["model.mlpackage"]
    (tmp_path / "model.onnx").mkdir()
    with pytest.raises(IsADirectoryError), files.written_whole(tmp_path / "model.onnx"):
        pass
