"""One `--data` argument, five kinds of data sets."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.training.conftest import write_folder
from xvolution.training import InputError, TrainConfig, evaluate, open_data, train
from xvolution.training.data import EvaluationBatches, evaluation_loader
from xvolution.training.data.dataset import GOOD, PADDING
from xvolution.training.data.transforms import Augmentation, Preprocessing, evaluation_transform, training_transform
from xvolution.training.fit import TrainResult

datasets = pytest.importorskip("datasets")


def names(source: object) -> set[str]:
    return {source.describe(index) for index in range(len(source))}


def test_digits_split_is_fixed_and_stratified() -> None:
    a, b = open_data("digits"), open_data("digits", seed=5)
    assert (len(a.train), len(a.val)) == (1438, 359)
    assert np.array_equal(a.val.labels, b.val.labels)
    assert names(a.train).isdisjoint(names(a.val))
    assert np.ptp(np.bincount(a.val.labels)) <= 2
    assert a.train.image(0).size == (8, 8)


def test_holdout_splits_the_training_part_only() -> None:
    whole, tuning = open_data("digits"), open_data("digits", holdout=0.25, seed=1)
    assert names(tuning.val).isdisjoint(names(whole.val))
    assert names(tuning.train) | names(tuning.val) == names(whole.train)
    assert len(tuning.val) == pytest.approx(0.25 * len(whole.train), abs=5)


def test_folds_judge_every_image_once() -> None:
    whole = open_data("digits")
    folds = [open_data("digits", holdout=f"{number}/5", seed=3) for number in range(1, 6)]
    everything = names(whole.train) | names(whole.val)
    judged = [names(fold.val) for fold in folds]
    assert set().union(*judged) == everything
    assert sum(map(len, judged)) == len(everything) == 1797
    for fold, own in zip(folds, judged, strict=True):
        assert names(fold.train) == everything - own
        assert len(fold.val) in (359, 360)
        assert np.ptp(np.bincount(fold.val.labels) - np.bincount(folds[0].val.labels)) <= 2
    assert judged[0] != names(open_data("digits", holdout="1/5", seed=4).val)
    assert folds[1].judged_by == "part 2 of 5 of all images but a test part's, because of --holdout 2/5"


def test_folds_are_of_training_and_validation_part_and_not_of_the_test_part(tmp_path: Path) -> None:
    for part, count in {"train": 6, "val": 3, "test": 5}.items():
        write_folder(tmp_path / part, {"cats": count, "dogs": count})
    folds = [open_data(tmp_path, holdout=f"{number}/3") for number in (1, 2, 3)]
    for fold in folds:
        assert fold.test is not None
        assert (len(fold.train), len(fold.val), len(fold.test)) == (12, 6, 10)
        assert np.bincount(fold.val.labels).tolist() == [3, 3]
        for source in (fold.train, fold.val):
            for index, label in enumerate(source.labels):
                assert ("cats", "dogs")[label] in source.describe(index)
                assert source.image(index).mode == "RGB"
    assert sum("/val/" in fold.val.describe(index) for fold in folds for index in range(6)) == 6
    with pytest.raises(InputError, match="18 images cannot be divided into 40 parts; ask for fewer"):
        open_data(tmp_path, holdout="39/40")


def test_class_folders_without_a_split(image_folder: Path) -> None:
    a, b = open_data(image_folder), open_data(image_folder)
    assert a.train.class_names == ["cats", "dogs"]
    assert (len(a.train), len(a.val)) == (20, 4)
    assert names(a.val) == names(b.val) != names(open_data(image_folder, seed=1).val)


@pytest.mark.parametrize("second", ["val", "validation", "test"])
def test_class_folders_with_a_split(tmp_path: Path, second: str) -> None:
    write_folder(tmp_path / "train", {"cats": 4, "dogs": 4})
    write_folder(tmp_path / second, {"dogs": 3})
    splits = open_data(tmp_path)
    assert (len(splits.train), len(splits.val)) == (8, 3)
    assert splits.val.labels.tolist() == [1, 1, 1]


def write_parquet(path: Path, count: int, classes: int) -> Path:
    rows = {"image": [], "label": []}
    for index in range(count):
        file = io.BytesIO()
        Image.fromarray(np.full((10, 12), index, dtype=np.uint8)).save(file, format="PNG")
        rows["image"].append({"bytes": file.getvalue(), "path": None})
        rows["label"].append(index % classes)
    labels = datasets.ClassLabel(names=[f"class{i}" for i in range(classes)])
    features = datasets.Features({"image": datasets.Image(), "label": labels})
    datasets.Dataset.from_dict(rows, features=features).to_parquet(path)
    return path


def test_parquet_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    write_parquet(tmp_path / "train-00000-of-00002.parquet", 6, 3)
    write_parquet(tmp_path / "train-00001-of-00002.parquet", 6, 3)
    write_parquet(tmp_path / "validation-00000-of-00001.parquet", 3, 3)
    splits = open_data(tmp_path)
    assert (len(splits.train), len(splits.val)) == (12, 3)
    assert splits.train.class_names == ["class0", "class1", "class2"]
    assert splits.image_size == 10
    pixels = np.asarray(splits.val.image(2))
    assert pixels.shape == (10, 12, 3)
    assert (pixels == 2).all()
    single = open_data(tmp_path / "train-00000-of-00002.parquet")
    assert len(single.train) + len(single.val) == 6


def test_torchvision_data_sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision import datasets as vision

    class Downloaded:
        def __init__(self, root: str, train: bool, download: bool) -> None:
            assert download
            self.targets = [0, 1] * (5 if train else 2)
            self.classes = ["no", "yes"]

        def __getitem__(self, index: int) -> tuple[Image.Image, int]:
            return Image.new("L", (28, 28), index), self.targets[index]

    monkeypatch.setattr(vision, "FashionMNIST", Downloaded)
    for name in ("torchvision:FashionMNIST", "fashionmnist"):
        splits = open_data(name)
        assert (len(splits.train), len(splits.val), splits.image_size) == (10, 4, 28)


def test_tiny_imagenet(test_data: Path, tiny: Callable[..., TrainConfig]) -> None:
    folder = test_data / "tiny-imagenet"
    if not folder.is_dir():
        pytest.skip(f"{folder} is absent; XVOLUTION_TEST_DATA names the folder of real data sets")
    splits = open_data(folder)
    assert (len(splits.train), len(splits.val), splits.image_size) == (50_000, 5_000, 64)
    assert len(splits.train.class_names) == 200
    assert np.bincount(splits.val.labels).tolist() == [25] * 200
    result = train(tiny(data=str(folder), epochs=1, limit_train_batches=2, limit_val_batches=2))
    found = evaluate(result.weights, folder, limit_batches=2, batch_size=32)
    assert found.top5 == pytest.approx(result.metrics["val_top5"])


def test_labels_meet_the_network_by_class_name(trained: TrainResult, tmp_path: Path) -> None:
    splits = open_data("digits")
    for name in ("3", "7"):
        (tmp_path / name).mkdir()
    for index in range(100):
        label = int(splits.val.labels[index])
        if label in (3, 7):
            splits.val.image(index).save(tmp_path / str(label) / f"{index:03d}.png")
    found = evaluate(trained.weights, tmp_path, split="train")
    whole = evaluate(trained.weights, "digits")
    kept = [int(p.stem) for p in sorted(tmp_path.rglob("*.png"))]
    from_folder = open_data(tmp_path)
    files = [int(Path(from_folder.train.describe(i)).stem) for i in range(len(from_folder.train))]
    assert set(files) <= set(kept)
    assert found.predictions.tolist() == whole.predictions[files].tolist()
    right = sum(int(whole.predictions[i]) == int(splits.val.labels[i]) for i in files)
    assert found.top1 == pytest.approx(right / len(files))


@pytest.mark.parametrize(("length", "world_size"), [(10, 1), (10, 2), (11, 2), (7, 4), (3, 4), (64, 3)])
def test_evaluation_counts_every_image_once(length: int, world_size: int) -> None:
    shares = [list(EvaluationBatches(length, 4, rank, world_size)) for rank in range(world_size)]
    counted = [draw.index for share in shares for batch in share for draw in batch if not draw.padding]
    assert sorted(counted) == list(range(length))
    assert len({tuple(len(batch) for batch in share) for share in shares}) == 1


def test_padding_is_marked() -> None:
    splits = open_data("digits")
    loader = evaluation_loader(splits.val.subset(range(3)), Preprocessing(16), 2, rank=1, world_size=2)
    (batch,) = list(loader)
    assert batch["status"].tolist() == [GOOD, PADDING]
    assert batch["image"].shape == (2, 3, 16, 16)


@pytest.mark.parametrize("size", [8, 16, 28, 32, 64, 96, 128])
@pytest.mark.parametrize("crop", ["auto", "pad", "rrc"])
def test_transforms_give_the_size_asked_for(size: int, crop: str) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (37, 51, 3), dtype=np.uint8))
    preprocessing = Preprocessing(size, crop_pct=0.875)
    augmentation = Augmentation(crop=crop, auto_augment="rand-m5", color_jitter=0.2, random_erase=1.0)
    for transform in (evaluation_transform(preprocessing), training_transform(preprocessing, augmentation)):
        tensor = transform(image)
        assert tensor.shape == (3, size, size)
        assert tensor.dtype == torch.float32
