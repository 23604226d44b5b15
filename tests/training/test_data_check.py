"""`xvolution data check` of class folders and parquet files finds what was put in, and nothing else."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from xvolution.cli import main
from xvolution.training import InputError
from xvolution.training.data import check
from xvolution.training.data.check import ClassReport, check_classes

CLOTHING = Path(__file__).parents[3] / "shared" / "data" / "clothing"


def picture(number: int, size: tuple[int, int] = (12, 10)) -> Image.Image:
    """Noise of its own for each number; ``size`` is (width, height)."""
    generator = np.random.default_rng(number)
    return Image.fromarray(generator.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


def write(path: Path, number: int, size: tuple[int, int] = (12, 10)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture(number, size).save(path)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes in two parts, each picture another one; 320 x 240 but for one."""
    root, number = tmp_path / "animals", 0
    for part, count in (("train", 3), ("val", 2)):
        for name in ("cat", "dog"):
            for index in range(count):
                write(root / part / name / f"{index}.png", number, (32, 24))
                number += 1
    write(root / "train" / "cat" / "icon.png", 99, (8, 6))
    return root


def kinds(report: ClassReport) -> list[tuple[str, str]]:
    problems = [*report.problems, *(each for part in report.parts.values() for each in part.problems)]
    return sorted((each.kind, each.severity.value) for each in problems)


def test_counts_and_sizes_of_a_folder_without_faults(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = check_classes(folder)
    assert kinds(report) == []
    train, val = report.parts["train"], report.parts["val"]
    assert (train.images, train.classes, val.classes) == (7, {"cat": 4, "dog": 3}, {"cat": 2, "dog": 2})
    assert (train.sides, train.sizes, val.sides, val.sizes) == ((6, 24, 24), 2, (24, 24, 24), 1)
    assert main(["data", "check", str(folder)]) == 0
    printed = capsys.readouterr().out
    assert (
        "train: 7 images in 2 classes; 2 sizes, shorter sides of 6 to 24 pixels, median 24\n  cat 4, dog 3\n" in printed
    )
    assert (
        "val: 4 images in 2 classes; one size, shorter sides of 24 to 24 pixels, median 24\n  2 of each class\n"
        in printed
    )
    assert printed.endswith(f"{folder}: nothing is refused, 0 noted\n")


def test_what_ends_a_training_is_refused(folder: Path, tmp_path: Path) -> None:
    (folder / "train" / "cat" / "broken.png").write_bytes((folder / "train" / "cat" / "0.png").read_bytes()[:200])
    (folder / "train" / "cat" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    (folder / "train" / "horse").mkdir()
    write(folder / "val" / "cow" / "0.png", 50)
    report = check_classes(folder)
    assert kinds(report) == [
        ("empty class", "refused"),
        ("unknown class", "refused"),
        ("unreadable image", "refused"),
        ("unreadable image", "refused"),
    ]
    assert report.refused == 4
    found = tmp_path / "report.json"
    assert main(["data", "check", str(folder), "--json", str(found)]) == 2
    figures = json.loads(found.read_text(encoding="utf-8"))
    assert figures["refused"] == 4
    assert figures["parts"]["train"]["classes"] == {"cat": 6, "dog": 3, "horse": 0}
    sentences = [each["sentence"] for each in figures["parts"]["train"]["problems"]]
    assert any("broken.png is not a readable image" in each for each in sentences)
    assert any("gone.png is not on the disk" in each for each in sentences)


def test_the_same_picture_is_found_by_its_pixels_whatever_its_file(folder: Path) -> None:
    write(folder / "train" / "dog" / "again.bmp", 3, (32, 24))
    write(folder / "val" / "cat" / "leaked.png", 0, (32, 24))
    write(folder / "train" / "dog" / "a-cat.png", 1, (32, 24))
    write(folder / "val" / "dog" / "wider.png", 3, (24, 32))
    report = check_classes(folder)
    assert kinds(report) == [
        ("same picture in several classes", "noted"),
        ("same picture in several parts", "noted"),
        ("same picture twice", "noted"),
    ]
    assert report.refused == 0
    (twice,) = report.parts["train"].problems
    assert twice.sentence.startswith(
        f"{folder / 'train' / 'dog' / '0.png'} and {folder / 'train' / 'dog' / 'again.bmp'} have"
    )
    leaked = next(each for each in report.problems if "parts" in each.kind)
    assert leaked.sentence.endswith(
        "have the same pixels and are in the parts train, val, so an evaluation on one part is not independent of the other."
    )
    assert str(folder / "val" / "cat" / "leaked.png") in leaked.sentence


def test_a_folder_without_parts_is_one_part_and_one_class_is_none_to_tell_apart(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        write(tmp_path / "plain" / name / "0.png", len(name) + ord(name[0]))
    assert check_classes(tmp_path / "plain").parts.keys() == {"train"}
    write(tmp_path / "alone" / "train" / "cat" / "0.png", 1)
    assert kinds(check_classes(tmp_path / "alone")) == [("one class", "refused")]
    with pytest.raises(InputError, match="there is no file or folder"):
        check_classes(tmp_path / "nowhere")
    assert main(["data", "check", str(tmp_path / "nowhere")]) == 2


def test_parquet_files_are_checked_too(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")

    def table(numbers: list[int], labels: list[int], names: list[str]) -> object:
        rows = []
        for number in numbers:
            stream = io.BytesIO()
            picture(number).save(stream, "png")
            rows.append({"bytes": stream.getvalue() if number >= 0 else b"no picture", "path": None})
        features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=names)})
        return datasets.Dataset.from_dict({"image": rows, "label": labels}).cast(features)

    names = ["cat", "dog", "horse"]
    table([0, 1, 2, 1], [0, 0, 1, 0], names).to_parquet(str(tmp_path / "train.parquet"))
    table([2, 3], [1, 0], names).to_parquet(str(tmp_path / "val.parquet"))
    report = check_classes(tmp_path)
    assert kinds(report) == [
        ("empty class", "noted"),
        ("empty class", "noted"),
        ("same picture in several parts", "noted"),
        ("same picture twice", "noted"),
    ]
    assert report.parts["train"].classes == {"cat": 3, "dog": 1, "horse": 0}
    assert "row 0" not in report.parts["train"].problems[0].sentence
    assert "row 1 and " in report.parts["train"].problems[0].sentence


def test_every_picture_is_told_to_who_watches(folder: Path) -> None:
    told: list[tuple[str, int, int]] = []
    check_classes(folder, watch=lambda *each: told.append(each))
    assert told == [("train", n, 7) for n in range(1, 8)] + [("val", n, 4) for n in range(1, 5)]


def test_many_classes_are_a_range() -> None:
    counts = {f"class{number}": number for number in range(1, 31)}
    assert check._counts(counts) == "from 1 (class1) to 30 (class30) of a class, median 15"


@pytest.mark.skipif(not CLOTHING.is_dir(), reason="the folder shared/data is not there")
def test_real_photographs() -> None:
    report = check_classes(CLOTHING)
    assert {name: part.images for name, part in report.parts.items()} == {"train": 3068, "val": 341}
    assert report.parts["val"].sides == (144, 144, 144)
    assert report.refused == 0
