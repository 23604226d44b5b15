"""An annotation file is a stranger's text: it is bounded by its images before pycocotools sees it, and names no other files."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.training import coco_folder
from xvolution.cli import main
from xvolution.training import DetectionConfig, InputError, train
from xvolution.training.coco import CocoMetrics, check_folder, open_detection
from xvolution.training.coco.annotations import run_lengths
from xvolution.training.coco.catalog import open_part
from xvolution.training.coco.source import DetectionSource

datasets = pytest.importorskip("datasets")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return coco_folder.write_folder(tmp_path / "blocks")


def change(folder: Path, edit: Any, parts: tuple[str, ...] = ("train", "val")) -> Path:
    for part in parts:
        path = folder / "annotations" / f"instances_{part}.json"
        data = json.loads(path.read_text())
        edit(data)
        path.write_text(json.dumps(data))
    return folder


def first(**values: Any) -> Callable[[dict[str, Any]], None]:
    return lambda data: data["annotations"][0].update(values)


def polygon(*points: float) -> Callable[[dict[str, Any]], None]:
    return first(segmentation=[list(points)])


def category(**values: Any) -> Callable[[dict[str, Any]], None]:
    """Change the category 3, and its objects with it."""

    def edit(data: dict[str, Any]) -> None:
        data["categories"] = [{**each, **values} if each["id"] == 3 else each for each in data["categories"]]
        for each in data["annotations"]:
            if each["category_id"] == 3:
                each["category_id"] = values.get("id", 3)

    return edit


ZIGZAG = [coordinate for number in range(200_000) for coordinate in (64 * (number % 2), number % 48)]
REFUSED = {
    "a polygon far away": (polygon(0, 0, 1e9, 0, 1e9, 1e9), "leaves its image"),
    "a polygon far to the left": (polygon(-1e9, 0, 5, 0, 5, 5), "leaves its image"),
    "a polygon that is long": (polygon(*ZIGZAG), "outline of more than 10000000 pixels"),
    "a polygon of a number that no float holds": (polygon(0, 0, 10**400, 0, 5, 5), "not a list of x and y"),
    "a box far away": (first(bbox=[1e9, 1e9, 5, 5]), "far outside of any image"),
    "a box of a number that no float holds": (first(bbox=[10**400, 0, 5, 5]), "has the bbox"),
    "an image of ten billion pixels": (
        lambda data: data["images"][0].update(width=10**5, height=10**5),
        "more than the limit of 178956970 pixels; give a larger --max-pixels",
    ),
    "runs that overflow": (first(segmentation={"size": [48, 64], "counts": [2**32, 48 * 64]}), "do not add up"),
    "an id that no float holds": (lambda data: data["images"][0].update(id=2**70), "an id that is not a whole number"),
    "a negative category": (category(id=-1), r"category -1 \(brick\) of .* from 0 to 2147483647"),
    "a category beyond 32 bits": (category(id=2**31), r"category 2147483648 \(brick\)"),
    "two categories of one name": (category(name="block"), "categories 3 and 7 of .* are both called 'block'"),
    "an image above": (lambda data: data["images"][0].update(file_name="../../x.png"), "--outside-images"),
    "an absolute image": (lambda data: data["images"][0].update(file_name="/etc/passwd"), "outside of the folder"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_opening_refuses_the_check_finds(folder: Path, what: str) -> None:
    edit, sentence = REFUSED[what]
    change(folder, edit)
    with pytest.raises(InputError, match=sentence):
        open_detection(folder, masks=True)
    report = check_folder(folder, masks=True)
    assert report.refused >= 2
    assert any(problem.severity.value == "refused" for problem in report.parts["train"].problems)


def test_a_file_that_is_nested_too_deep_is_told(folder: Path) -> None:
    (folder / "annotations" / "instances_train.json").write_text("[" * 200_000)
    with pytest.raises(InputError, match="not a JSON file, or it is damaged"):
        open_detection(folder)


def test_runs_are_bounded() -> None:
    with pytest.raises(ValueError, match="longer than any image"):
        run_lengths("o" * 10**6)


@pytest.mark.parametrize("path", ["x" * 5000, "x" * 300 + ".png", "nul\0.png"])
def test_names_that_no_file_can_have_are_missing_images(folder: Path, path: str) -> None:
    change(folder, lambda data: data["images"][0].update(file_name=path))
    with pytest.raises(InputError, match="is not on the disk"):
        open_detection(folder)
    assert check_folder(folder).refused == 2
    with pytest.raises(InputError, match="there is no folder"):
        check_folder("x" * 5000)


def test_a_flag_reads_images_outside_of_the_folder(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (folder / "train" / "000.png").rename(tmp_path / "elsewhere" / "000.png")
    change(folder, lambda data: data["images"][0].update(file_name=str(tmp_path / "elsewhere" / "000.png")), ("train",))
    assert check_folder(folder).parts["train"].problems[0].kind == "image outside the folder"
    assert open_detection(folder, outside_images=True).train.image(0).size == (64, 48)
    assert check_folder(folder, outside_images=True).refused == 0
    assert main(["data", "check", str(folder), "--outside-images"]) == 0
    assert main(["data", "check", str(folder)]) == 2


@pytest.mark.parametrize("masks", [False, True])
def test_a_mask_that_nobody_needs_does_not_stop(folder: Path, masks: bool) -> None:
    change(folder, polygon(1, 2, 3))
    report = check_folder(folder, masks)
    (problem,) = report.parts["train"].problems
    assert (problem.kind, problem.severity.value) == ("mask", "refused" if masks else "noted")
    if masks:
        with pytest.raises(InputError, match="not a list of x and y"):
            open_detection(folder, masks)
    else:
        source = open_detection(folder).train
        assert len(source.target(0)["boxes"]) == 1
        assert "segmentation" not in source.annotations.objects[100][0]
        assert "left out, because only boxes are used" in str(report)


def perfect(source: DetectionSource) -> float:
    metrics = CocoMetrics(source)
    for index in range(len(source)):
        target = source.target(index)
        found = {"boxes": target["boxes"], "labels": target["labels"], "scores": torch.ones(len(target["labels"]))}
        metrics.update(index, found)
    return metrics.compute()["box_ap"]


def test_objects_may_be_numbered_from_zero(folder: Path) -> None:
    """pycocotools takes an object with the id 0 for one that nothing found."""

    def renumber(data: dict[str, Any]) -> None:
        for number, annotation in enumerate(data["annotations"]):
            annotation["id"] = number

    assert perfect(open_part(change(folder, renumber), "val")) == 1


@pytest.mark.parametrize("key", [0, 2**31 - 1])
def test_categories_may_have_any_id_of_32_bits(folder: Path, key: int) -> None:
    source = open_part(change(folder, category(id=key)), "val")
    assert perfect(source) == 1
    assert source.category_ids == sorted([key, 7])


def test_no_objects_to_find_is_a_sentence(folder: Path, tmp_path: Path) -> None:
    change(folder, lambda data: data.update(annotations=[]), ("val",))
    config = DetectionConfig(data=str(folder), backbone="resnet18", accelerator="cpu", output=str(tmp_path / "run"))
    with pytest.raises(InputError, match=r"the 8 images of .*instances_val\.json .* have no objects"):
        train(config)
    change(folder, lambda data: data.update(annotations=[]), ("train",))
    with pytest.raises(InputError, match=r"the 8 images of .*instances_train\.json .* cannot learn"):
        train(config)


def test_annotations_changed_at_random_are_opened_or_refused(folder: Path) -> None:
    """Each ends in a sentence, or every target can be had and judged."""
    generator = random.Random(0)
    path = folder / "annotations" / "instances_val.json"
    whole = json.loads(path.read_text())
    strange = [
        None,
        -1,
        0,
        2**31,
        2**70,
        1e9,
        -1e9,
        1e308,
        float("nan"),
        float("inf"),
        "",
        "x",
        "../x",
        [],
        {},
        [[]],
        True,
    ]

    def places(node: Any) -> list[tuple[Any, Any]]:
        keys = node.keys() if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ()
        return [place for key in keys for place in [(node, key), *places(node[key])]]

    opened = 0
    for _ in range(150):
        data = json.loads(json.dumps(whole))
        for _ in range(generator.choice((1, 1, 3))):
            node, key = generator.choice(places(data))
            node[key] = generator.choice(strange)
        path.write_text(json.dumps(data))
        try:
            source = open_part(folder, "val", masks=generator.random() < 0.5)
            assert 0 <= perfect(source) <= 1
        except InputError:
            continue
        else:
            opened += 1
    assert 10 < opened < 140


def hub(folder: Path, objects: list[Any], features: Any = None) -> Path:
    """A data set of Hugging Face with two parts alike, of grey images of 20 x 10 pixels."""
    import io

    file = io.BytesIO()
    Image.fromarray(np.zeros((10, 20), dtype=np.uint8)).save(file, "PNG")
    folder.mkdir()
    rows = {"image": [{"bytes": file.getvalue(), "path": None}] * len(objects), "objects": objects}
    for part in ("train", "validation"):
        datasets.Dataset.from_dict(rows, features=features).to_parquet(folder / f"{part}.parquet")
    return folder


def test_objects_of_tables_in_either_layout_and_with_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    pairs = [[{"bbox": [1.0, 2, 3, 4], "category": "dog"}, {"bbox": [5.0, 5, 2, 2], "category": "cat"}], []]
    lists = [{"bbox": [[1.0, 2, 3, 4], [5.0, 5, 2, 2]], "category": ["dog", "cat"]}, {"bbox": [], "category": []}]
    for name, objects in {"pairs": pairs, "lists": lists}.items():
        train = open_detection(hub(tmp_path / name, objects)).train
        assert train.class_names == ["cat", "dog"]
        assert train.target(0)["labels"].tolist() == [2, 1]
        assert len(train.target(1)["boxes"]) == 0


@pytest.mark.parametrize(
    ("objects", "sentence"),
    [
        ([{"bbox": [[1.0, 2, 3, 4]], "category": [0, 1]}], "each object needs a bbox and a category"),
        ([{"box": [[1.0, 2, 3, 4]]}], "each object needs a bbox and a category"),
        ([{"bbox": [[1.0, 2, 3, 4]], "category": [None]}], "refers to category None, which the file does not have"),
        ([{"bbox": [None], "category": [0]}], "has the bbox None"),
        ([["a", "b"]], "each object needs a bbox and a category"),
    ],
)
def test_objects_of_tables_that_are_none_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, objects: list[Any], sentence: str
) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    with pytest.raises(InputError, match=sentence):
        open_detection(hub(tmp_path / "hub", objects))
