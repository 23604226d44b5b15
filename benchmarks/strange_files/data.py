"""Files of data: pictures, tables of them, and annotations in COCO's format."""

from __future__ import annotations

import io
import json
import random
import shutil
import warnings
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.kills import draw_rectangles
from benchmarks.strange_files.damage import crafted
from benchmarks.strange_files.subject import Read, Subject, digest
from xvolution.training import check_folder, open_data, open_detection
from xvolution.training.coco.metrics import evaluate_results
from xvolution.training.data.reading import open_file, read_picture


def noise(side: int, channels: int = 3) -> np.ndarray:
    """A picture of random numbers, always the same: (side, side, channels) uint8."""
    return np.random.default_rng(0).integers(0, 256, (side, side, channels), dtype=np.uint8)


class Picture(Subject):
    name = "picture"

    def originals(self, folder: Path) -> list[Path]:
        picture, deep = Image.fromarray(noise(48)), Image.fromarray(noise(48, 2).view(np.uint16)[..., 0])
        turned = Image.Exif()
        turned[0x0112] = 6
        for ending in ("png", "jpg", "webp"):
            picture.save(folder / f"picture.{ending}", exif=turned)
        for ending in ("bmp", "gif", "tif"):
            picture.save(folder / f"picture.{ending}")
        Image.fromarray(noise(48, 4)).save(folder / "transparent.png")
        deep.save(folder / "deep.png")
        return sorted(folder.iterdir())

    def read(self, path: Path) -> Read:
        return Read(digest(np.asarray(read_picture(lambda: open_file(path), lambda: str(path)))))


class Table(Subject):
    """Parquet files of pictures and labels."""

    name = "table"

    def originals(self, folder: Path) -> list[Path]:
        import pyarrow
        import pyarrow.parquet

        picture = io.BytesIO()
        Image.fromarray(noise(16)).save(picture, format="png")
        rows = {"image": [{"bytes": picture.getvalue(), "path": None}] * 6, "label": [0, 1] * 3}
        pyarrow.parquet.write_table(pyarrow.table(rows), folder / "train.parquet")
        return [folder / "train.parquet"]

    def read(self, path: Path) -> Read:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            splits = open_data(path)
        source = splits.train
        return Read(digest(source.labels, *(np.asarray(source.image(index)) for index in range(len(source)))))


class Annotations(Subject):
    """Annotations in COCO's format: opened, turned into targets with masks, and judged by pycocotools."""

    name = "annotations"

    def originals(self, folder: Path) -> list[Path]:
        draw_rectangles(folder / "rectangles", pictures=4)
        for part in ("train", "val"):
            path = folder / "rectangles" / part / "_annotations.coco.json"
            content = json.loads(path.read_text(encoding="utf-8"))
            for annotation in content["annotations"]:
                x, y, width, height = annotation["bbox"]
                corners = [x, y, x + width, y, x + width, y + height, x, y + height]
                annotation["segmentation"] = [[float(each) for each in corners]]
            content["annotations"][0]["segmentation"] = {"size": [64, 64], "counts": [0, 64 * 64]}
            content["annotations"][1] |= {"segmentation": {"size": [64, 64], "counts": "0P400"}, "iscrowd": 1}
            path.write_text(json.dumps(content), encoding="utf-8")
        return [folder / "rectangles" / "train" / "_annotations.coco.json"]

    def craft(self, path: Path, rng: random.Random) -> bool:
        content = json.loads(path.read_text(encoding="utf-8"))
        for _ in range(rng.choice([1, 1, 3])):
            content = crafted(content, rng)
        path.write_text(json.dumps(content), encoding="utf-8")
        return True

    def read(self, path: Path) -> Read:
        folder = path.parent / "opened"
        shutil.rmtree(folder, ignore_errors=True)
        draw_rectangles(folder, pictures=4)
        shutil.copy(path, folder / "train" / "_annotations.coco.json")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            check_folder(folder, masks=True)
            source = open_detection(folder, masks=True, holdout=0.5).train
            targets = [source.target(index) for index in range(len(source))]
        found = [
            {
                "image_id": source.image_id(index),
                "category_id": source.category_ids[0],
                "bbox": [0, 0, 9, 9],
                "score": 0.5,
            }
            for index in range(len(source))
        ]
        evaluate_results(source.annotations, found, "box")
        return Read(digest(*(values for target in targets for values in target.values())))
