"""Which folders are parts and which are classes is found by a look inside; what tables and torchvision hold is not assumed."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.training.conftest import write_folder
from xvolution.training import InputError, open_data
from xvolution.training.data.parts import part_beginning

datasets = pytest.importorskip("datasets")


def test_classes_may_be_called_train_and_test(tmp_path: Path) -> None:
    write_folder(tmp_path, {"bus": 5, "train": 5, "test": 5})
    assert open_data(tmp_path).train.class_names == ["bus", "test", "train"]
    write_folder(tmp_path / "split" / "train", {"bus": 2, "train": 2})
    write_folder(tmp_path / "split" / "val", {"bus": 2, "train": 2})
    splits = open_data(tmp_path / "split")
    assert splits.train.class_names == ["bus", "train"]
    assert (len(splits.train), len(splits.val)) == (4, 4)


@pytest.mark.parametrize("inside", ["", "train", "both"])
def test_the_one_folder_that_wraps_a_data_set_is_opened(tmp_path: Path, inside: str) -> None:
    classes = {"cats": 10, "dogs": 10}
    if inside == "":
        write_folder(tmp_path / "animals", classes)
    for part in ("train", "val") if inside == "both" else ("train",) * bool(inside):
        write_folder(tmp_path / part / "animals", classes)
    (tmp_path / "__MACOSX" / "animals").mkdir(parents=True)
    (tmp_path / "__MACOSX" / "animals" / "a.png").write_bytes(b"no image")
    (tmp_path / ".ipynb_checkpoints").mkdir()
    with pytest.warns(UserWarning, match="contains one folder, animals; the folders inside it are used"):
        splits = open_data(tmp_path)
    assert splits.train.class_names == ["cats", "dogs"]
    assert len(splits.train) == (20 if inside == "both" else 16)


def test_a_part_with_one_class_is_no_wrapping(tmp_path: Path) -> None:
    write_folder(tmp_path / "train", {"cats": 2, "dogs": 2})
    write_folder(tmp_path / "val" / "dogs", {"monday": 2, "tuesday": 1})
    assert open_data(tmp_path).val.labels.tolist() == [1, 1, 1]


def test_images_that_lie_in_a_part_without_a_class_are_left_out(tmp_path: Path) -> None:
    write_folder(tmp_path / "train", {"cats": 10, "dogs": 10})
    write_folder(tmp_path, {"test": 3})
    with pytest.warns(UserWarning, match="test is left out; the images of a part lie in folders of their classes"):
        splits = open_data(tmp_path)
    assert (len(splits.train), len(splits.val)) == (16, 4)


UNCLEAR: dict[str, tuple[dict[str, int], str]] = {
    "one class": ({"cats": 3}, r"needs at least two class folders.*it has the folder cats and 3 images"),
    "one class in a part": ({"train/cats": 3}, "has only one class, cats; give data with at least two classes"),
    "no classes in the parts": ({"train": 3, "val": 3}, r"no training part.*Found: train \(0 class folders\), val \(0"),
    "no training part": ({"val/cats": 3, "test/cats": 3}, r"no training part.*Found: test \(1 class folders\)"),
    "two parts of a kind": ({"train/a": 2, "train/b": 2, "val/a": 2, "valid/b": 2}, "two folders of the part val"),
    "parts in classes": ({"cats/train": 2, "cats/val": 2, "dogs/train": 2}, "the parts train, val inside of cats"),
    "part or class": ({"train/ice": 2, "train/tgv": 2, "bus": 2}, "unclear whether it is the training part or a class"),
    "nothing": ({}, "it has no folder and 0 images"),
}


@pytest.mark.parametrize("what", UNCLEAR)
def test_what_is_unclear_is_told_by_name(tmp_path: Path, what: str) -> None:
    folders, sentence = UNCLEAR[what]
    for folder, count in folders.items():
        write_folder(tmp_path, {folder: count})
    with pytest.raises(InputError, match=sentence):
        open_data(tmp_path)


def test_files_of_other_endings_are_told(image_folder: Path) -> None:
    (image_folder / "cats" / "a.heic").write_bytes(b"")
    with pytest.warns(UserWarning, match=r"cats: 1 files of \.heic are left out"):
        open_data(image_folder)
    (image_folder / "birds").mkdir()
    (image_folder / "birds" / "a.heic").write_bytes(b"")
    with pytest.raises(InputError, match=r"birds holds no images; it has 1 files of \.heic, and the endings are \.jpg"):
        open_data(image_folder)


def test_names_begin_with_a_part_as_a_whole_word() -> None:
    names = ["train-00000-of-00002.parquet", "validation_matched", "dev.parquet", "device", "trains", "testimonials"]
    assert [part_beginning(name) for name in names] == ["train", "val", "val", None, None, None]


@pytest.mark.parametrize("data", ["/" + 5000 * "a", "~" + 5000 * "a", "a/" * 3000])
def test_a_path_that_no_file_can_have(data: str) -> None:
    with pytest.raises(InputError, match="there is no file or folder"):
        open_data(data)


def png(level: int = 0) -> dict[str, Any]:
    file = io.BytesIO()
    Image.fromarray(np.full((10, 12), level, dtype=np.uint8)).save(file, format="PNG")
    return {"bytes": file.getvalue(), "path": None}


def parquet(folder: Path, part: str, columns: dict[str, Any], features: Any = None) -> Path:
    folder.mkdir(exist_ok=True)
    rows = len(next(iter(columns.values())))
    columns = {"image": [png(row) for row in range(rows)], **columns}
    datasets.Dataset.from_dict(columns, features=features).to_parquet(folder / f"{part}.parquet")
    return folder


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def test_words_are_classes(tmp_path: Path) -> None:
    data = parquet(tmp_path / "words", "train", {"label": ["dog", "cat", "dog", "owl"]})
    parquet(data, "test", {"label": ["owl", "dog"]})
    splits = open_data(data)
    assert splits.train.class_names == ["cat", "dog", "owl"]
    assert (splits.train.labels.tolist(), splits.val.labels.tolist()) == ([1, 0, 1, 2], [2, 1])
    assert np.asarray(splits.train.image(3)).max() == 3
    parquet(data, "test", {"label": ["owl", "emu"]})
    with pytest.raises(InputError, match="labels that the training part does not have: emu"):
        open_data(data)


@pytest.mark.parametrize("labels", [[True, False, True], [1.0, 0.0, 1.0], [1, 0, 1]])
def test_numbers_of_any_type_count_classes(tmp_path: Path, labels: list[Any]) -> None:
    assert open_data(parquet(tmp_path / "p", "train", {"label": labels * 2}), holdout=0.5).train.labels.max() == 1


WRONG = {
    "null": ([0, None, 1], r"column label: row 1 has no label \(None\)"),
    "no word": (["a", None, "b"], "row 1 has no label"),
    "NaN": ([0.0, float("nan"), 1.0], r"row 1 has no label \(nan\)"),
    "fraction": ([0.0, 0.5, 1.0], "row 1 has the label 0.5; a label must be a whole number from 0"),
    "negative": ([0, -1, 1], "row 1 has the label -1"),
    "huge": ([0, 2**40, 1], f"row 1 has the label {2**40}"),
    "lists": (
        [[0], [1], [0, 1]],
        r"one column of labels called label or labels; its columns are image \(.*\), label \(List",
    ),
    "structs": ([{"a": 1}] * 3, r"label \(struct\)"),
}


@pytest.mark.parametrize("what", WRONG)
def test_labels_that_are_none_are_told_by_their_row(tmp_path: Path, what: str) -> None:
    labels, sentence = WRONG[what]
    with pytest.raises(InputError, match=sentence):
        open_data(parquet(tmp_path / "p", "train", {"label": labels}))


@pytest.mark.parametrize(
    ("images", "kind"),
    [([[1, 2]] * 3, "List"), ([1, 2, 3], "int64"), ([[png()]] * 3, "List"), ([{"width": 3}] * 3, "struct")],
)
def test_a_column_that_holds_no_images_is_told(tmp_path: Path, images: list[Any], kind: str) -> None:
    with pytest.raises(InputError, match=rf"needs one column of images .* image \({kind}"):
        open_data(parquet(tmp_path / "p", "train", {"label": [0, 1, 0], "image": images}))


def test_images_are_found_by_what_the_column_holds(tmp_path: Path) -> None:
    """The column called ``image`` is a number here."""
    features = {"image": datasets.Value("int64"), "photo": datasets.Image(), "label": datasets.Value("int64")}
    columns = {"label": [0, 1] * 4, "image": list(range(8)), "photo": [png(index) for index in range(8)]}
    data = parquet(tmp_path / "p", "train", columns, datasets.Features(features))
    assert open_data(data).train.image(0).size == (12, 10)


def torchvision_set(monkeypatch: pytest.MonkeyPatch, constructor: Any) -> str:
    from torchvision import datasets as vision

    monkeypatch.setattr(vision, "STL10", constructor)
    return "torchvision:STL10"


class Pictures:
    """What torchvision's sets answer: ten of each part, in two classes."""

    def __init__(self, part: str) -> None:
        self.part, self.labels = part, [0, 1] * 5

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return Image.new("RGB", (9, 9)), self.labels[index]


def test_torchvision_sets_of_every_constructor(monkeypatch: pytest.MonkeyPatch) -> None:
    class BySplit(Pictures):
        known = ("train", "val", "test")

        def __init__(self, root: str, split: str = "train", transform: Any = None, download: bool = False) -> None:
            if split not in self.known:
                raise ValueError(f"Unknown value '{split}' for argument split. Valid values are {self.known}.")
            assert download
            super().__init__(split)

    class ByOthers(BySplit):
        known = ("trainval", "test")

    class Whole(Pictures):
        def __init__(self, root: str, download: bool = False) -> None:
            super().__init__("whole")

    class Local(Pictures):
        def __init__(self, root: str, split: str = "train") -> None:
            super().__init__(split)

    expected = {BySplit: (10, 10, 10), ByOthers: (10, 10, None), Whole: (8, 2, None), Local: (10, 10, 10)}
    for constructor, counts in expected.items():
        splits = open_data(torchvision_set(monkeypatch, constructor))
        assert (len(splits.train), len(splits.val), splits.test and len(splits.test)) == counts


def test_torchvision_sets_that_cannot_be_used_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    class Needs(Pictures):
        def __init__(self, root: str, annFile: str, frames: int) -> None:
            super().__init__("x")

    class Boxes(Pictures):
        def __init__(self, root: str, download: bool = False) -> None:
            self.labels = [{"boxes": []}] * 10

    class Attributes(Pictures):
        def __init__(self, root: str, download: bool = False) -> None:
            self.labels = np.zeros((10, 40), dtype=np.int64)

    class Fails(Pictures):
        def __init__(self, root: str, split: str = "train", download: bool = False) -> None:
            raise TypeError("a fault of its own")

    for constructor, sentence in (
        (Needs, "STL10 needs annFile, frames, which --data cannot pass"),
        (Boxes, "give a data set for classification"),
        (Attributes, "give a data set for classification"),
        (Fails, "cannot be downloaded to .*a fault of its own"),
    ):
        with pytest.raises(InputError, match=sentence):
            open_data(torchvision_set(monkeypatch, constructor))


@pytest.mark.parametrize(
    "name", ["EMNIST", "Kinetics", "VOCDetection", "ImageFolder", "FakeData", "LSUN", "CocoDetection", "PhotoTour"]
)
def test_real_torchvision_sets_end_with_a_sentence(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torchvision.datasets.utils
    import torchvision.datasets.voc

    def offline(*arguments: Any, **options: Any) -> None:
        raise OSError("no network")

    monkeypatch.setattr(torchvision.datasets.voc, "download_and_extract_archive", offline)
    monkeypatch.setenv("XVOLUTION_DATA", str(tmp_path))
    with pytest.raises(InputError, match=f"torchvision's {name}"):
        open_data(f"torchvision:{name}")


def test_paths_in_a_table_are_of_its_folder(tmp_path: Path) -> None:
    data = tmp_path / "p"
    write_folder(data, {"pictures": 4})
    (data / "pictures" / "00.png").rename(tmp_path / "outside.png")
    names = ["../outside.png", *(f"pictures/0{number}.png" for number in (1, 2, 3))]
    parquet(data, "train", {"label": [0, 1, 0, 1], "image": names})
    parquet(data, "val", {"label": [0, 1], "image": [str(tmp_path / "outside.png"), None]})
    splits = open_data(data)
    assert splits.train.image(1).size == (24, 20)
    for part in (splits.train, splits.val):
        with pytest.raises(InputError, match=r"outside\.png is outside of the folder .*; give --outside-images"):
            part.image(0)
    with pytest.raises(InputError, match=r"row 1 is not a readable image \(the row holds no image\)"):
        splits.val.image(1)
    splits = open_data(data, outside_images=True)
    assert splits.train.image(0).size == splits.val.image(0).size == (24, 20)


def test_a_folder_that_cannot_be_read_is_told(image_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(folder: Path) -> Any:
        raise PermissionError(13, "Permission denied", str(folder))

    monkeypatch.setattr(Path, "iterdir", refused)
    with pytest.raises(InputError, match=r"pictures cannot be read \(Permission denied\)"):
        open_data(image_folder)
