"""Training images held in memory: the batches are those that the transforms of single images give."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torchvision.transforms import functional as images

from tests.training.conftest import write_folder
from xvolution.training import InputError, TrainConfig, open_data, train
from xvolution.training.data import EpochBatches, evaluation_loader
from xvolution.training.data.dataset import BAD, GOOD
from xvolution.training.data.memory import ImagesInMemory
from xvolution.training.data.sampler import EvaluationBatches
from xvolution.training.data.transforms import Augmentation, Preprocessing, evaluation_transform

PREPROCESSING = Preprocessing(32, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4))


def test_batches_are_the_padded_crops_of_single_images(image_folder: Path) -> None:
    source = open_data(image_folder).train
    held = ImagesInMemory(source, PREPROCESSING, Augmentation(), seed=3)
    (batch, *_) = [held[draws] for draws in EpochBatches(len(source), 8, seed=3)]
    assert batch["image"].is_contiguous(memory_format=torch.channels_last)
    assert batch["status"].tolist() == [GOOD] * 8
    assert np.array_equal(batch["target"], source.labels[batch["index"]])
    shifts = held._augmentation(epoch=0)[batch["index"]].tolist()
    assert {mirrored for _, _, mirrored in shifts} == {0, 1}
    for image, index, (top, left, mirrored) in zip(batch["image"], batch["index"], shifts, strict=True):
        padded = images.pad(images.resize(source.image(int(index)), [32, 32], images.InterpolationMode.BICUBIC), [4])
        cropped = images.crop(padded, top, left, 32, 32)
        expected = evaluation_transform(PREPROCESSING)(images.hflip(cropped) if mirrored else cropped)
        torch.testing.assert_close(image, expected, rtol=0, atol=1e-5)


def test_batches_are_the_resized_crops_of_single_images(image_folder: Path) -> None:
    source = open_data(image_folder).train
    augmentation = Augmentation(crop="rrc", crop_scale=0.25)
    held = ImagesInMemory(source, PREPROCESSING, augmentation, seed=3)
    boxes = torch.tensor([[0, 0, 64, 64, 0], [10, 20, 40, 30, 0], [24, 0, 40, 64, 1], [31, 32, 32, 32, 1]])
    crops = held.crops(held.images[:4], boxes / torch.tensor([64, 64, 64, 64, 1]))
    for index, (crop, (top, left, height, width, mirrored)) in enumerate(zip(crops, boxes.tolist(), strict=True)):
        image = images.resize(source.image(index), [64, 64], images.InterpolationMode.BICUBIC)
        pixels = images.pil_to_tensor(images.hflip(image) if mirrored else image).float()
        left = 64 - left - width if mirrored else left
        expected = images.resized_crop(pixels, top, left, height, width, [32, 32], antialias=False)
        # The border of a crop takes part in the interpolation, where torchvision repeats its last pixel.
        torch.testing.assert_close(crop.permute(2, 0, 1)[:, 1:-1, 1:-1], expected[:, 1:-1, 1:-1], rtol=0, atol=1e-2)
    (batch, *_) = [held[draws] for draws in EpochBatches(len(source), 8, seed=3)]
    assert batch["image"].shape == (8, 3, 32, 32)
    assert batch["image"].is_contiguous(memory_format=torch.channels_last)


def test_resized_crops_have_the_areas_and_shapes_that_timm_draws(tmp_path: Path) -> None:
    source = open_data(write_folder(tmp_path / "pictures", {"cats": 150, "dogs": 150})).train
    augmentation = Augmentation(crop="rrc", crop_scale=0.2, hflip=0.0)
    drawn = ImagesInMemory(source, PREPROCESSING, augmentation, seed=0)._augmentation(0)
    corner, sides = drawn[:, :2], drawn[:, 2:4]
    assert corner.min() >= 0
    assert (corner + sides).max() <= 1 + 1e-6
    assert not drawn[:, 4].any()
    area, shape = sides.prod(1), sides[:, 1] / sides[:, 0]
    assert 0.2 <= area.min() < 0.25
    assert 0.9 < area.max() <= 1
    assert 0.749 < shape.min() < 0.8
    assert 1.25 < shape.max() < 1.334
    assert abs(area.mean() - 0.59) < 0.05  # uniform, less what is clipped


@pytest.mark.parametrize("crop_pct", [1.0, 0.8])
def test_images_that_judge_are_those_of_the_loader(image_folder: Path, crop_pct: float) -> None:
    source = open_data(image_folder).train
    preprocessing = replace(PREPROCESSING, crop_pct=crop_pct)
    held = ImagesInMemory(source, preprocessing, None)
    usual = evaluation_loader(source, preprocessing, 7, world_size=2, rank=1)
    batches = EvaluationBatches(len(source), 7, rank=1, world_size=2)
    for batch, expected in zip([held[draws] for draws in batches], usual, strict=True):
        assert batch.keys() == expected.keys()
        for name in ("target", "index", "status"):
            assert torch.equal(batch[name], expected[name])
        torch.testing.assert_close(batch["image"], expected["image"], rtol=0, atol=1e-5)


def test_augmentation_depends_on_seed_epoch_and_image_alone(image_folder: Path) -> None:
    source = open_data(image_folder).train

    def batch(seed: int, epoch: int, start: int = 0) -> torch.Tensor:
        batches = EpochBatches(len(source), 4, seed=0)
        batches.start(epoch, start)
        held = ImagesInMemory(source, PREPROCESSING, Augmentation(), seed)
        return torch.cat([held[draws]["image"] for draws in batches])

    assert torch.equal(batch(0, 2)[8:], batch(0, 2, start=2))
    assert not torch.equal(batch(0, 2), batch(1, 2))
    held = ImagesInMemory(source, PREPROCESSING, Augmentation(hflip=0.5), seed=0)
    first, second = held._augmentation(0), held._augmentation(1)
    assert not torch.equal(first, second)
    assert torch.equal(first, held._augmentation(0))


def test_every_shift_is_drawn_and_nothing_is_mirrored_unasked(tmp_path: Path) -> None:
    source = open_data(write_folder(tmp_path / "pictures", {"cats": 150, "dogs": 150})).train
    drawn = ImagesInMemory(source, PREPROCESSING, Augmentation(hflip=0.0), seed=0)._augmentation(0)
    assert set(drawn[:, 0].tolist()) == set(drawn[:, 1].tolist()) == set(range(9))
    assert not drawn[:, 2].any()


def test_unreadable_images_are_replaced_by_the_next_one(image_folder: Path) -> None:
    for name in ("00", "01", "02", "03", "04"):
        (image_folder / "cats" / f"{name}.png").write_bytes(b"no image")
    source = open_data(image_folder).train
    with pytest.warns(UserWarning, match="not a readable image"):
        held = ImagesInMemory(source, PREPROCESSING, Augmentation(hflip=0.0), seed=0, on_bad_image="skip")
    bad = np.flatnonzero(held.status == BAD)
    assert 1 <= len(bad) <= 5
    readable = np.setdiff1d(np.arange(len(source)), bad)
    for index in bad:
        following = next(other for other in [*range(index, len(source)), *range(index)] if other in readable)
        assert torch.equal(held.images[index], held.images[following])
        assert held.targets[index] == source.labels[following]
    with pytest.raises(InputError, match=r"0\d\.png is not a readable image"):
        ImagesInMemory(source, PREPROCESSING, Augmentation(), seed=0)


@pytest.mark.parametrize("crop", ["pad", "rrc"])
def test_a_run_in_memory_learns(tiny: Callable[..., TrainConfig], crop: str) -> None:
    result = train(tiny(in_memory=True, crop=crop, epochs=2, limit_train_batches=None))
    assert result.history[1]["train_loss"] < result.history[0]["train_loss"]


@pytest.mark.parametrize(
    ("changes", "flag"),
    [
        ({"auto_augment": "rand-m5"}, "--auto-augment"),
        ({"color_jitter": 0.2}, "--color-jitter"),
        ({"random_erase": 0.2}, "--random-erase"),
    ],
    ids=str,
)
def test_augmentation_of_single_images_is_refused(
    tiny: Callable[..., TrainConfig], changes: dict[str, Any], flag: str
) -> None:
    with pytest.raises(InputError, match=flag):
        train(tiny(in_memory=True, **changes))
