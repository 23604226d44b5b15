"""Data in COCO's format: what is read, what is refused and how it is said, and metrics equal to pycocotools'."""

from __future__ import annotations

import copy
import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torchvision.ops import masks_to_boxes

from tests.training import coco_folder
from xvolution.training import InputError
from xvolution.training.coco import CocoMetrics, DetectionData, check_folder, open_detection
from xvolution.training.coco.annotations import run_lengths
from xvolution.training.coco.catalog import open_part
from xvolution.training.coco.data import AspectBatches, detection_loader
from xvolution.training.coco.dataset import DetectionDataset, training_transform
from xvolution.training.coco.metrics import IOU_TYPES
from xvolution.training.data.sampler import Draw
from xvolution.training.held_out import HeldOut


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return coco_folder.write_folder(tmp_path / "blocks")


def change(folder: Path, edit: Any, part: str = "train") -> Path:
    """Edit an annotation file in place."""
    path = folder / "annotations" / f"instances_{part}.json"
    data = json.loads(path.read_text())
    edit(data)
    path.write_text(json.dumps(data))
    return path


def test_labels_count_the_categories_from_one_in_the_order_of_their_ids(folder: Path) -> None:
    source = open_part(folder, "train", masks=True)
    assert source.class_names == ["brick", "block"]
    assert source.category_ids == [3, 7]
    assert source.target(1)["labels"].tolist() == [1, 2]


def test_every_encoding_of_a_mask_is_its_box(folder: Path) -> None:
    source = open_part(folder, "train", masks=True)
    for index in range(3):
        target = source.target(index)
        entry = source.annotations.images[source.image_id(index)]
        assert target["masks"].shape[1:] == (entry["height"], entry["width"])
        # masks_to_boxes names the last pixel, a box ends behind it.
        corners = masks_to_boxes(target["masks"]) + torch.tensor([0.0, 0, 1, 1])
        torch.testing.assert_close(corners, target["boxes"])


def test_runs_of_compressed_masks_are_read_as_pycocotools_writes_them() -> None:
    generator = np.random.default_rng(0)
    for density in (0.02, 0.5, 0.98):
        mask = np.asfortranarray(generator.random((57, 33)) < density)
        flat = mask.flatten(order="F")
        changes = np.flatnonzero(np.diff(flat)) + 1
        runs = np.diff(np.concatenate([[0], changes, [flat.size]])).tolist()
        assert run_lengths(coco_mask.encode(mask)["counts"]) == ([0] if flat[0] else []) + runs


def test_crowds_and_empty_images_have_no_targets(folder: Path) -> None:
    source = open_part(folder, "train", masks=True)
    assert len(source.target(0)["boxes"]) == 1
    empty = source.target(len(source) - 1)
    assert empty["boxes"].shape == (0, 4)
    assert empty["masks"].shape == (0, 64, 48)


def first(**values: Any) -> Any:
    return lambda data: data["annotations"][0].update(values)


BROKEN = {
    "unknown image": first(image_id=5),
    "no number for an image": first(image_id=[100]),
    "unknown category": first(category_id=1),
    "no number for a category": first(category_id={}),
    "a mask's size is a number": first(segmentation={"size": 48, "counts": [64 * 48]}),
    "negative size": first(bbox=[1, 2, -3, 4]),
    "three numbers": first(bbox=[1, 2, 3]),
    "not a number": first(bbox=[1, 2, float("nan"), 4]),
    "no mask": first(segmentation=[]),
    "two points": first(segmentation=[[1, 2, 3, 4]]),
    "odd coordinates": first(segmentation=[[1, 2, 3, 4, 5, 6, 7]]),
    "runs too short": first(segmentation={"size": [48, 64], "counts": [5, 6]}),
    "mask of another size": first(segmentation={"size": [64, 48], "counts": [64 * 48]}),
    "crowd": first(iscrowd=2),
}


@pytest.mark.parametrize("what", BROKEN)
def test_what_is_broken_is_refused_by_file_and_id(folder: Path, what: str) -> None:
    path = change(folder, BROKEN[what])
    with pytest.raises(InputError) as error:
        open_detection(folder, masks=True)
    assert str(path) in str(error.value)
    assert "annotation 1000" in str(error.value)


def test_ids_that_are_there_twice_or_missing_are_refused(folder: Path) -> None:
    change(folder, lambda data: data["annotations"].append(data["annotations"][0]))
    with pytest.raises(InputError, match=r"has the annotation 1000 twice"):
        open_detection(folder)
    change(folder, lambda data: data["images"][0].pop("id"))
    with pytest.raises(InputError, match=r"image number 0 .* has an id that is not a whole number"):
        open_detection(folder)


def test_boxes_without_area_and_outside_are_kept_for_evaluation_only(folder: Path) -> None:
    def edit(data: dict[str, Any]) -> None:
        data["annotations"][2]["bbox"] = [5, 5, 0, 9]
        data["annotations"][3]["bbox"] = [200, 5, 10, 9]
        data["annotations"][4]["bbox"] = [-4, -4, 20, 20]

    change(folder, edit)
    source = open_part(folder, "train", masks=True)
    assert len(source.target(1)["boxes"]) == 0
    assert len(source.annotations.objects[101]) == 2
    assert source.target(2)["boxes"][0].tolist() == [0, 0, 16, 16]
    kinds = [problem.kind for problem in source.annotations.problems]
    assert kinds == ["box without area", "box outside the image", "box beyond the image"]


def test_missing_unreadable_and_resized_images_are_named(folder: Path) -> None:
    (folder / "train" / "001.png").unlink()
    with pytest.raises(InputError, match=r"image 101 of .* is not on the disk: .*001\.png \(1 of 8 are missing\)"):
        open_detection(folder)
    Image.new("RGB", (10, 10)).save(folder / "train" / "001.png")
    with pytest.raises(InputError, match=r"has 10 x 10 pixels, but the annotations say 48 x 64\."):
        open_part(folder, "train").image(1)
    (folder / "train" / "001.png").write_bytes(b"no image")
    with pytest.raises(InputError, match="is not a readable image"):
        open_part(folder, "train").image(1)


@pytest.mark.filterwarnings("ignore:skipped")
def test_bad_images_can_be_skipped(folder: Path) -> None:
    (folder / "val" / "001.png").unlink()
    source = open_detection(folder, on_bad_image="skip").val
    batches = list(detection_loader(source, 1, on_bad_image="skip"))
    assert [batch["counted"][0] for batch in batches] == [True, False, *[True] * 6]


def test_the_check_tells_everything_at_once(folder: Path) -> None:
    def edit(data: dict[str, Any]) -> None:
        BROKEN["unknown category"](data)
        data["annotations"][2]["bbox"] = [5, 5, 0, 9]
        data["annotations"][4]["segmentation"] = {"size": [48, 64], "counts": "\x00"}

    change(folder, edit)
    (folder / "train" / "003.png").unlink()
    (folder / "train" / "004.png").write_bytes(b"no image")
    Image.new("RGB", (10, 10)).save(folder / "train" / "005.png")
    report = check_folder(folder, masks=True)
    counts = [(problem.severity.value, problem.kind) for problem in report.parts["train"].problems]
    assert counts == [
        ("refused", "unknown category"),
        ("noted", "box without area"),
        ("refused", "missing image"),
        ("refused", "unreadable image"),
        ("refused", "image of another size"),
        ("refused", "mask"),
    ]
    assert report.refused == 5
    assert not report.parts["val"].problems
    text = str(report)
    assert "5 problems to repair before training" in text
    assert "annotation 1000" in text
    assert json.dumps(report.to_dict())


@pytest.mark.parametrize(
    ("text", "sentence"), [("{", "not a JSON"), ("[]", "no list 'images'"), ('{"images": 3}', "no list 'images'")]
)
def test_files_that_are_not_coco_are_refused(folder: Path, text: str, sentence: str) -> None:
    (folder / "annotations" / "instances_train.json").write_text(text)
    with pytest.raises(InputError, match=sentence):
        open_detection(folder)
    assert sentence.split("'")[0] in str(check_folder(folder))


def test_parts_of_other_categories_are_refused(folder: Path) -> None:
    change(folder, lambda data: data["categories"].append({"id": 9, "name": "tile"}), "val")
    with pytest.raises(InputError, match="different categories"):
        open_detection(folder)
    assert check_folder(folder).refused == 1


def test_annotations_beside_the_images_are_found(folder: Path, tmp_path: Path) -> None:
    for part, name in (("train", "train"), ("val", "valid")):
        target = tmp_path / "flat" / name
        shutil.copytree(folder / part, target)
        shutil.copy(folder / "annotations" / f"instances_{part}.json", target / "_annotations.coco.json")
    splits = open_detection(tmp_path / "flat")
    assert (len(splits.train), len(splits.val)) == (8, 8)
    assert splits.val.image(0).size == (64, 48)


def test_a_part_can_be_held_out(folder: Path) -> None:
    with pytest.raises(InputError, match="--holdout is 1/4; folds are for classifiers, so give a fraction"):
        open_detection(folder, holdout="1/4")
    splits = open_detection(folder, holdout=0.25, seed=3)
    assert (splits.held_out, open_detection(folder).held_out) == (HeldOut(0.25, 3), None)
    ids = [{part.image_id(index) for index in range(len(part))} for part in (splits.train, splits.val)]
    assert [len(each) for each in ids] == [6, 2]
    assert not ids[0] & ids[1]


def test_data_sets_of_hugging_face_have_boxes(folder: Path, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    source = open_part(folder, "train")
    rows = []
    for index in range(len(source)):
        buffer = io.BytesIO()
        source.image(index).save(buffer, "PNG")
        objects = source.annotations.objects[source.image_id(index)]
        kinds = [source.category_ids.index(each["category_id"]) for each in objects]
        rows.append(
            {
                "image": {"bytes": buffer.getvalue(), "path": None},
                "objects": {"bbox": [each["bbox"] for each in objects], "category": kinds},
            }
        )
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "objects": {
                "bbox": datasets.List(datasets.List(datasets.Value("float32"))),
                "category": datasets.List(datasets.ClassLabel(names=source.class_names)),
            },
        }
    )
    for part in ("train", "validation"):
        data = datasets.Dataset.from_list(rows).cast(features)
        (tmp_path / "hub").mkdir(exist_ok=True)
        data.to_parquet(tmp_path / "hub" / f"{part}-00000.parquet")
    splits = open_detection(tmp_path / "hub")
    assert splits.train.class_names == source.class_names
    torch.testing.assert_close(splits.val.target(1), source.target(1))
    assert splits.val.image(1).tobytes() == source.image(1).tobytes()
    with pytest.raises(InputError, match="no masks"):
        open_detection(tmp_path / "hub", masks=True)


@pytest.mark.parametrize("large_scale_jitter", [None, 56])
def test_boxes_and_masks_move_together(folder: Path, large_scale_jitter: int | None) -> None:
    source = open_part(folder, "train", masks=True)
    dataset = DetectionDataset(source, training_transform(1.0, large_scale_jitter), seed=0)
    seen = 0
    for index in range(len(source)):
        sample = dataset[Draw(index, epoch=1)]
        target = sample["target"]
        assert len(target["boxes"]) == len(target["labels"]) == len(target["masks"])
        if large_scale_jitter is not None:
            assert sample["image"].shape == (3, 56, 56)
        whole = target["masks"].flatten(1).bool().any(1)
        seen += int(whole.sum())
        corners = masks_to_boxes(target["masks"][whole]) + torch.tensor([0.0, 0, 1, 1])
        torch.testing.assert_close(corners, target["boxes"][whole], rtol=0, atol=1.01)
    assert seen > 5


def test_augmentation_depends_on_seed_epoch_and_image_alone(folder: Path) -> None:
    source = open_part(folder, "train", masks=True)
    dataset = DetectionDataset(source, training_transform(0.5, 56), seed=0)
    again = DetectionDataset(source, training_transform(0.5, 56), seed=0)
    torch.rand(5)
    torch.testing.assert_close(dataset[Draw(2, epoch=3)], again[Draw(2, epoch=3)])
    assert not torch.equal(dataset[Draw(2, epoch=3)]["image"], dataset[Draw(2, epoch=4)]["image"])


def test_batches_are_of_like_shape_and_the_same_after_resuming() -> None:
    ratios = np.where(np.arange(37) % 3 == 0, 0.7, 1.4)

    def epoch(rank: int, start: int = 0) -> list[list[int]]:
        batches = AspectBatches(ratios, 2, seed=5, rank=rank, world_size=2)
        batches.start(4, start)
        drawn = [[draw.index for draw in batch] for batch in batches]
        assert len(drawn) + start == len(batches)
        return drawn

    parts = [epoch(rank) for rank in range(2)]
    everything = [index for part in parts for batch in part for index in batch]
    assert len(set(everything)) == len(everything) == 4 * (24 // 4 + 13 // 4)
    for one, other in zip(*parts, strict=True):
        assert len({ratios[index] >= 1 for index in [*one, *other]}) == 1
    assert epoch(1, start=3) == parts[1][3:]
    assert epoch(0) == parts[0]


def test_too_few_images_for_a_batch_are_refused(folder: Path) -> None:
    data = DetectionData(open_detection(folder), batch_size=5)
    with pytest.raises(InputError, match="8 training images are too few for one batch of 5"):
        data.train_dataloader()
    assert len(DetectionData(open_detection(folder), batch_size=5, aspect_groups=False).train_dataloader()) == 1


def guesses(source: Any, seed: int = 0) -> CocoMetrics:
    """Detections near the truth, some of them lost, doubled, or of a wrong class, with random scores."""
    generator = torch.Generator().manual_seed(seed)
    metrics = CocoMetrics(source, masks=True)
    for index in range(len(source)):
        target = source.target(index)
        count = len(target["labels"])
        if not count:
            metrics.update(index, {**target, "scores": torch.zeros(0), "masks": target["masks"][:, None].float()})
            continue
        chosen = torch.randint(count, (count + 3,), generator=generator)
        boxes = target["boxes"][chosen] + 4 * torch.randn(len(chosen), 4, generator=generator)
        labels = target["labels"][chosen]
        wrong = torch.rand(len(chosen), generator=generator) < 0.15
        labels[wrong] = torch.randint(1, len(source.class_names) + 1, (int(wrong.sum()),), generator=generator)
        masks = target["masks"][chosen].roll(2, dims=2)[:, None].float()
        scores = torch.rand(len(chosen), generator=generator)
        metrics.update(index, {"boxes": boxes, "labels": labels, "scores": scores, "masks": masks})
    return metrics


def pycocotools_stats(annotation_file: Path, results: list[dict[str, Any]], iou_type: str, path: Path) -> list[float]:
    """pycocotools by itself, on files."""
    if iou_type == "segm":
        # With a box in it, pycocotools takes an object's size from the box.
        results = [{name: value for name, value in result.items() if name != "bbox"} for result in results]
    path.write_text(json.dumps(results))
    truth = COCO(str(annotation_file))
    evaluation = COCOeval(truth, truth.loadRes(str(path)), iou_type)
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return evaluation.stats.tolist()


def require_equal_to_pycocotools(source: Any, tmp_path: Path) -> None:
    metrics = guesses(source)
    figures = metrics.compute()
    for kind, iou_type in IOU_TYPES.items():
        expected = pycocotools_stats(
            source.annotations.path, copy.deepcopy(metrics.results), iou_type, tmp_path / "results.json"
        )
        actual = [value for name, value in figures.items() if name.startswith(kind)]
        assert actual == expected
        assert 0.05 < actual[0] < 0.95
        rows = [row[f"{kind}_ap"] for row in metrics.by_category() if row[f"{kind}_ap"] > -1]
        assert np.mean(rows) == pytest.approx(actual[0])


def test_metrics_are_those_of_pycocotools(folder: Path, tmp_path: Path) -> None:
    require_equal_to_pycocotools(open_part(folder, "val", masks=True), tmp_path)


def test_metrics_are_those_of_pycocotools_on_coco(test_data: Path, tmp_path: Path) -> None:
    if not (test_data / "coco-mini").is_dir():
        pytest.skip("the folder of real data sets is not here")
    require_equal_to_pycocotools(open_part(test_data / "coco-mini", "val", masks=True), tmp_path)


def test_the_real_folders_have_nothing_to_mend(test_data: Path) -> None:
    if not (test_data / "coco-mini").is_dir():
        pytest.skip("the folder of real data sets is not here")
    for name, images in (("coco-mini", 79), ("penn-fudan", 50)):
        report = check_folder(test_data / name, masks=True)
        assert report.refused == 0
        assert report.parts["val"].images == images


def test_nothing_found_is_zero_and_nothing_to_find_is_none(folder: Path) -> None:
    source = open_part(folder, "val", masks=True)
    metrics = CocoMetrics(source, masks=True)
    for index in range(len(source)):
        metrics.update(
            index, {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64), "scores": torch.zeros(0)}
        )
    figures = metrics.compute()
    assert figures["box_ap"] == figures["mask_ap"] == 0
    assert figures["box_apl"] == -1


def test_classes_that_the_data_lack_do_not_count(folder: Path) -> None:
    source = open_part(folder, "val")
    found = {
        "boxes": torch.tensor([[0.0, 0, 9, 9]] * 2),
        "labels": torch.tensor([1, 2]),
        "scores": torch.tensor([0.9, 0.8]),
    }
    metrics = CocoMetrics(source, category_ids=[None, 7])
    metrics.update(0, found)
    assert [result["category_id"] for result in metrics.results] == [7]
