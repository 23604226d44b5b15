"""One reader for every picture: what a viewer shows is what is trained on, judged and drawn, and what is unusual is said."""

from __future__ import annotations

import csv
import json
import os
import warnings
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.training import coco_folder
from tests.training.conftest import write_folder
from xvolution.training import InputError, TrainConfig, deploy, evaluate, load_model, open_data, train
from xvolution.training.coco import check_folder
from xvolution.training.coco.catalog import open_part
from xvolution.training.data.reading import IMAGE_ENDINGS, BadImage, printable, read_picture
from xvolution.training.data.sources import FolderImages
from xvolution.training.data.transforms import Augmentation, Preprocessing, evaluation_transform, training_transform
from xvolution.training.detection.pictures import read_image

ORIENTATION = 0x0112


def exif(orientation: int) -> Image.Exif:
    values = Image.Exif()
    values[ORIENTATION] = orientation
    return values


def wide(path: Path, **options: Any) -> Path:
    """8 x 4 pixels, red on the left and blue on the right."""
    pixels = np.zeros((4, 8, 3), dtype=np.uint8)
    pixels[:, :4, 0] = pixels[:, 4:, 2] = 255
    Image.fromarray(pixels).save(path, **options)
    return path


def by_folder(path: Path) -> np.ndarray:
    source = FolderImages(path.parent.parent)
    return np.asarray(source.image([str(file) for file in source.files].index(str(path))))


def by_coco(path: Path) -> np.ndarray:
    """As an image of a COCO file that tells its size rightly."""
    size = by_detector(path).shape
    entry = {"id": 1, "file_name": f"{path.parent.name}/{path.name}", "height": size[0], "width": size[1]}
    box = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 2, 2]}
    content = {"images": [entry], "annotations": [box], "categories": [{"id": 1, "name": "thing"}]}
    (path.parent.parent / "train.json").write_text(json.dumps(content))
    return np.asarray(open_part(path.parent.parent, "train").image(0))


def by_detector(path: Path) -> np.ndarray:
    return (read_image(path) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()


@pytest.fixture(params=[by_folder, by_coco, by_detector])
def read(request: pytest.FixtureRequest) -> Callable[[Path], np.ndarray]:
    return request.param


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "class").mkdir()
    return tmp_path / "class"


pytestmark = pytest.mark.filterwarnings("ignore:.*images that were checked")


@pytest.mark.parametrize("ending", ["jpg", "png", "tif", "webp"])
@pytest.mark.parametrize(("orientation", "red_end"), [(1, "left"), (3, "right"), (6, "top"), (8, "bottom")])
def test_pictures_are_turned_by_their_exif_orientation(
    place: Path, read: Callable[[Path], np.ndarray], ending: str, orientation: int, red_end: str
) -> None:
    found = read(wide(place / f"a.{ending}", exif=exif(orientation))).astype(int)
    assert found.shape == ((8, 4, 3) if orientation in (6, 8) else (4, 8, 3))
    at = {"left": found[:, 0], "right": found[:, -1], "top": found[0], "bottom": found[-1]}[red_end].mean(0)
    assert at[0] > 220
    assert at[2] < 40


def test_sixteen_bits_are_scaled(place: Path, read: Callable[[Path], np.ndarray]) -> None:
    values = np.array([[0, 257, 32896, 65535]], dtype=np.uint16)
    for ending in ("png", "tif"):
        Image.fromarray(values).save(place / f"a.{ending}")
        assert read(place / f"a.{ending}")[0, :, 1].tolist() == [0, 1, 128, 255]


def test_numbers_of_no_known_range_are_refused(place: Path, read: Callable[[Path], np.ndarray]) -> None:
    for name, values in {
        "fractions": np.array([[0.25, 0.5]], dtype=np.float32),
        "large": np.array([[0, 70_000]], dtype=np.int32),
    }.items():
        Image.fromarray(values).save(place / f"{name}.tif")
        with pytest.raises(BadImage, match=r"write 8 or 16 bits"):
            read(place / f"{name}.tif")
        (place / f"{name}.tif").unlink()


def test_transparent_pictures_are_laid_on_white(place: Path, read: Callable[[Path], np.ndarray]) -> None:
    pixels = np.array([[[200, 0, 0, 0], [200, 0, 0, 255], [0, 0, 0, 51]]], dtype=np.uint8)
    Image.fromarray(pixels).save(place / "a.png")
    assert read(place / "a.png")[0].tolist() == [[255, 255, 255], [200, 0, 0], [204, 204, 204]]
    palette = Image.fromarray(np.array([[0, 1]], dtype=np.uint8), "P")
    palette.putpalette([200, 0, 0, 0, 200, 0])
    palette.save(place / "b.png", transparency=0)
    assert read(place / "b.png")[0].tolist() == [[255, 255, 255], [0, 200, 0]]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I;16"])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_kind_of_picture_has_the_channels_asked_for(tmp_path: Path, mode: str, channels: int) -> None:
    white = Image.new("I;16", (6, 5), 65535) if mode == "I;16" else Image.new("RGB", (6, 5), "white").convert(mode)
    path = tmp_path / ("a.tif" if mode in ("CMYK", "YCbCr") else "a.png")
    white.save(path)
    found = np.asarray(read_picture(lambda: Image.open(path), lambda: "a", channels))
    assert found.shape == ((5, 6) if channels == 1 else (5, 6, 3))
    assert (found == 255).all()


def test_what_is_unusual_is_said_once_for_each_data_set(tmp_path: Path) -> None:
    write_folder(tmp_path, {"cats": 3, "dogs": 3})
    for number in range(3):
        wide(tmp_path / "cats" / f"turned{number}.jpg", exif=exif(6))
    Image.fromarray(np.full((4, 4), 900, dtype=np.uint16)).save(tmp_path / "cats" / "dark.png")
    Image.fromarray(np.full((4, 4), 65535, dtype=np.uint16)).save(tmp_path / "cats" / "deep.png")
    Image.new("RGBA", (4, 4)).save(tmp_path / "dogs" / "clear.png")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        open_data(tmp_path)
    told = "\n".join(str(each.message) for each in said)
    assert len(said) == 4
    assert "3 of 12 images that were checked have an EXIF orientation" in told
    assert "1 of 12 images that were checked have 16 bits per channel but only values below 4096" in told
    assert "1 of 12 images that were checked have 16 bits per channel and are scaled" in told
    assert "1 of 12 images that were checked have transparent pixels" in told


def test_an_annotated_size_that_the_orientation_turns_is_told_so(tmp_path: Path) -> None:
    folder = coco_folder.write_folder(tmp_path / "blocks")
    picture = Image.open(folder / "train" / "001.png")
    picture.save(folder / "train" / "001.png", exif=exif(6))
    source = open_part(folder, "train")
    with pytest.raises(BadImage, match=r"64 x 48 pixels.*48 x 64, once turned by its EXIF orientation; annotate"):
        source.image(1)
    report = check_folder(folder)
    assert [problem.kind for problem in report.parts["train"].problems] == ["EXIF orientation", "image of another size"]
    assert "once turned by its EXIF orientation" in str(report)


def test_links_are_followed_and_hidden_files_are_nobodys(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "data", {"cats": 2, "dogs": 2})
    elsewhere = write_folder(tmp_path / "elsewhere", {"more": 3})
    (folder / "cats" / "more").symlink_to(elsewhere / "more")
    (folder / "cats" / "one.png").symlink_to(elsewhere / "more" / "00.png")
    (folder / "dogs" / "._00.png").write_bytes(b"what another system leaves")
    (folder / "dogs" / ".thumbnails").mkdir()
    wide(folder / "dogs" / ".thumbnails" / "a.png")
    (folder / "dogs" / "Thumbs.db").write_bytes(b"\x00")
    source = FolderImages(folder)
    assert np.bincount(source.labels).tolist() == [6, 2]


def test_a_folder_that_links_to_itself_is_read_once(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "data", {"cats": 2, "dogs": 2})
    (folder / "cats" / "again").symlink_to(folder / "cats")
    (folder / "cats" / "above").symlink_to(folder)
    (folder / "loop").symlink_to(folder / "loop")
    (folder / "whole").symlink_to(folder)
    with pytest.warns(UserWarning, match=r"whole links to a folder that contains it, and is left out"):
        source = FolderImages(folder)
    assert source.class_names == ["cats", "dogs"]
    assert np.bincount(source.labels).tolist() == [2, 2]


def test_a_named_pipe_is_told_and_not_waited_for(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "data", {"cats": 2, "dogs": 2})
    os.mkfifo(folder / "cats" / "pipe.png")
    (folder / "cats" / "broken.png").symlink_to(tmp_path / "nowhere.png")
    source = FolderImages(folder)
    names = [path.name for path in source.files]
    with pytest.raises(BadImage, match=r"pipe\.png is not a readable image \(it is a folder, a pipe or a device"):
        source.image(names.index("pipe.png"))
    with pytest.raises(BadImage, match=r"broken\.png is not on the disk"):
        source.image(names.index("broken.png"))
    with pytest.raises(BadImage, match="a pipe"):
        read_image(folder / "cats" / "pipe.png")


def test_large_pictures_need_a_flag_that_the_message_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_folder(tmp_path / "data", {"cats": 2, "dogs": 2})
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # of Pillow, which refuses twice as much
    with pytest.raises(BadImage, match=r"larger than the limit of .* pixels .*; give a larger --max-pixels"):
        open_data(folder).train.image(0)
    assert open_data(folder, max_pixels=480).train.image(0).size == (24, 20)
    with pytest.raises(BadImage, match=r"larger than the limit of 479 pixels .*24 x 20 pixels"):
        open_data(folder, max_pixels=479).train.image(0)
    for wrong in (0, 2**31):
        with pytest.raises(InputError, match=f"--max-pixels is {wrong}"):
            open_data(folder, max_pixels=wrong)


def test_a_picture_that_says_it_is_huge_takes_no_memory(tmp_path: Path) -> None:
    """Fifty thousand pixels a side, said in 200 bytes."""
    Image.new("L", (1, 1)).save(tmp_path / "a.png")
    data = bytearray((tmp_path / "a.png").read_bytes())
    data[16:24] = (50_000).to_bytes(4, "big") * 2
    data[29:33] = zlib.crc32(bytes(data[12:29])).to_bytes(4, "big")
    (tmp_path / "a.png").write_bytes(bytes(data))
    with pytest.raises(BadImage, match="--max-pixels"):
        read_image(tmp_path / "a.png")


def test_names_that_are_no_utf8_are_written(trained: Any, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "data", {"3": 2, "7": 2})
    name = os.fsdecode(b"caf\xe9.png")
    try:
        (folder / "3" / "00.png").rename(folder / "3" / name)
    except OSError:
        pytest.skip("this file system takes UTF-8 alone")
    assert printable(name) == r"caf\xe9.png"
    assert printable("half \ud800") == r"half \ud800"
    table = tmp_path / "p.csv"
    evaluate(trained.weights, folder, split="train", predictions=table, workers=0)
    with open(table, newline="", encoding="utf-8") as file:
        assert any(row["image"].endswith(r"caf\xe9.png") for row in csv.DictReader(file))


def grey_folder(folder: Path) -> Path:
    """Two classes that the mean tells apart."""
    generator = np.random.default_rng(0)
    for name, level in (("dark", 60), ("light", 180)):
        (folder / name).mkdir(parents=True)
        for number in range(24):
            pixels = generator.normal(level, 20, (16, 16)).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number:02d}.png")
    return folder


@pytest.mark.parametrize(("in_chans", "in_memory"), [("auto", False), (1, True)])
def test_grey_images_end_to_end(
    tiny: Callable[..., TrainConfig], tmp_path: Path, in_chans: Any, in_memory: bool
) -> None:
    data = grey_folder(tmp_path / "grey")
    augmented = {} if in_memory else {"auto_augment": "rand-m5-mstd0.5", "color_jitter": 0.2, "random_erase": 0.3}
    config = tiny(data=str(data), batch_size=8, in_chans=in_chans, in_memory=in_memory, lr=0.02, epochs=3, **augmented)
    result = train(config)
    model, metadata = load_model(result.weights)
    assert metadata.model.in_chans == metadata.preprocessing.channels == 1
    assert model.conv1.weight.shape[1] == 1
    found = evaluate(result.weights, data, workers=0)
    assert found.top1 == result.metrics["val_top1"]
    deploy(result.weights, [tmp_path / "small.safetensors", tmp_path / "small.onnx"])
    for form in ("small.safetensors", "small.onnx"):
        assert evaluate(tmp_path / form, data, workers=0).loss == pytest.approx(found.loss, rel=1e-4)


def test_channels_are_taken_from_the_data_only_where_all_are_grey(image_folder: Path, tmp_path: Path) -> None:
    assert open_data(grey_folder(tmp_path / "grey")).survey.grey
    assert not open_data(image_folder).survey.grey
    assert open_data("digits").survey.grey


def test_grey_transforms_are_those_of_colour() -> None:
    """Of a grey picture, all three channels are what the one is."""
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (20, 24), dtype=np.uint8))
    grey, colour = Preprocessing(16, (0.4,), (0.2,)), Preprocessing(16, (0.4,) * 3, (0.2,) * 3)
    expected = evaluation_transform(colour)(picture.convert("RGB"))
    torch.testing.assert_close(evaluation_transform(grey)(picture), expected[:1])
    for size in (16, 128):
        transform = training_transform(replace(grey, image_size=size), Augmentation(auto_augment="rand-m5"))
        assert transform(picture).shape == (1, size, size)


def test_one_list_of_endings() -> None:
    from torchvision.datasets.folder import IMG_EXTENSIONS

    assert set(IMG_EXTENSIONS) == set(IMAGE_ENDINGS)
