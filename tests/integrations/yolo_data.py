"""A part of COCO as Ultralytics reads it: pictures and labels in folders, and a YAML file that names them."""

import json
import shutil
from pathlib import Path

import yaml

SPLITS = {"train": "train2017", "val": "val2017"}


def coco_as_yolo(coco: Path, target: Path, pictures: int) -> Path:
    """The first ``pictures`` of each split of a COCO data set as a YOLO data set; the path of its YAML file.

    Labels are written by Ultralytics' own converter.
    """
    from ultralytics.data.converter import convert_coco

    annotations = target / "annotations"
    annotations.mkdir(parents=True)
    for split in SPLITS.values():
        content = json.loads((coco / f"annotations/instances_{split}.json").read_text())
        content["images"] = content["images"][:pictures]
        kept = {image["id"] for image in content["images"]}
        content["annotations"] = [row for row in content["annotations"] if row["image_id"] in kept]
        (annotations / f"instances_{split}.json").write_text(json.dumps(content))
    convert_coco(labels_dir=str(annotations), save_dir=str(target / "yolo"), use_segments=False)
    names = [category["name"] for category in sorted(content["categories"], key=lambda category: category["id"])]
    for split in SPLITS.values():
        folder = target / "yolo/images" / split
        folder.mkdir(parents=True, exist_ok=True)
        found = json.loads((annotations / f"instances_{split}.json").read_text())
        for image in found["images"]:
            shutil.copy(coco / split / image["file_name"], folder)
    described = {"path": str(target / "yolo"), **{key: f"images/{name}" for key, name in SPLITS.items()}}
    path = target / "coco-mini.yaml"
    path.write_text(yaml.safe_dump({**described, "names": dict(enumerate(names))}))
    return path
