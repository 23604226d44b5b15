"""Reading and checking COCO's annotation files."""

from __future__ import annotations

import json
import reprlib
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from xvolution.training.data.problems import Problem, Severity
from xvolution.training.data.reading import MAX_PIXELS, leaves_folder, printable
from xvolution.training.errors import InputError

#: pycocotools and COCO's servers keep the ids of categories in 32 bits, and compare other ids as float64.
_MOST_CATEGORY, _MOST_ID = 2**31 - 1, 2**53
#: Coordinates of boxes, in pixels; those of polygons are bounded by their image.
_MOST_COORDINATE = 1e7
#: Of a polygon, in pixels: pycocotools takes five points for each.
_MOST_OUTLINE = 1e7
#: Characters of a number in compressed RLE, five bits each.
_MOST_DIGITS = 8


@dataclass
class Annotations:
    """The contents of one file, checked.

    Attributes:
        path: path of the file, or the name of a data set.
        images: id, file_name, width and height of each, by id, in the order of the file.
        objects: of each image id, in the order of the file: id, image_id, category_id, bbox (x, y, width, height in pixels),
            area (pixels), iscrowd, and segmentation where there is one.
        categories: names by id, in the order of the ids.
        problems: the problems in it.
    """

    path: Path
    images: dict[int, dict[str, Any]]
    objects: dict[int, list[dict[str, Any]]]
    categories: dict[int, str]
    problems: list[Problem] = field(default_factory=list)

    def require_valid(self) -> Annotations:
        """Return this object if it is valid.

        Raises:
            InputError: it has problems; the message names the first one and their number.
        """
        refused = [problem for problem in self.problems if problem.severity is Severity.REFUSED]
        if refused:
            more = f" ({len(refused)} such problems; `xvolution data check` lists all)" if len(refused) > 1 else ""
            raise InputError(f"{refused[0]}{more}")
        return self


def read_annotations(
    path: Path, masks: bool = False, max_pixels: int | None = None, outside_images: bool = False
) -> Annotations:
    """Read and check one annotation file.

    Args:
        path: a COCO JSON file.
        masks: every object must have a mask; otherwise invalid masks are noted and left out.
        max_pixels: largest number of pixels in an image; Pillow's own limit if None.
        outside_images: allow images outside of the data's folder.

    Raises:
        InputError: there is no such file, it is not JSON, or does not have COCO's structure.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"there is no file {path}.") from error
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} is not a JSON file, or it is damaged ({error}).") from error
    return check_content(content, path, masks, max_pixels, outside_images)


def check_content(
    content: Any, path: Path, masks: bool = False, max_pixels: int | None = None, outside_images: bool = False
) -> Annotations:
    """Check the contents of a COCO JSON file; the arguments are those of ``read_annotations``.

    Raises:
        InputError: it does not have COCO's structure.
    """
    for part in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(part), list):
            raise InputError(f"{path} has no list {part!r}; a COCO file has images, annotations and categories.")
    problems: list[Problem] = []
    images = _by_id(content["images"], "image", path, problems)
    for key, image in list(images.items()):
        if wrong := _image_problem(image, max_pixels or MAX_PIXELS, outside_images):
            kind, sentence = wrong
            problems.append(_refused(kind, f"image {key} of {path} {sentence}."))
            del images[key]
    categories = _by_id(content["categories"], "category", path, problems)
    names = {key: printable(str(category.get("name", key))) for key, category in sorted(categories.items())}
    problems += _category_problems(names, path)
    # An image that was refused is one problem, not one more for each of its objects.
    known = {image["id"] for image in content["images"] if isinstance(image, dict) and _is_id(image.get("id"))}
    objects: dict[int, list[dict[str, Any]]] = {key: [] for key in images}
    for key, annotation in _by_id(content["annotations"], "annotation", path, problems).items():
        where = f"annotation {key} of {path}"
        found = list(_object_problems(annotation, images, known, names, where, masks))
        problems += found
        if not any(problem.severity is Severity.REFUSED for problem in found) and annotation["image_id"] in images:
            unusable = any(problem.kind == "mask" for problem in found)
            objects[annotation["image_id"]].append(_completed(annotation, keep_mask=not unusable))
    if not names:
        problems.append(_refused("category", f"{path} has no categories."))
    return Annotations(path, images, objects, names, problems)


def clipped(box: list[float], width: float, height: float) -> tuple[float, float, float, float]:
    """Corners x1, y1, x2, y2 of a box (x, y, width, height) inside the image, in pixels."""
    x, y, w, h = box
    return max(x, 0.0), max(y, 0.0), min(x + w, float(width)), min(y + h, float(height))


def _refused(kind: str, sentence: str) -> Problem:
    return Problem(Severity.REFUSED, kind, sentence)


def _noted(kind: str, sentence: str) -> Problem:
    return Problem(Severity.NOTED, kind, sentence)


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) <= _MOST_ID


def _is_number(value: Any) -> bool:
    # Compared and not converted: a file can write whole numbers that no float holds.
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _by_id(entries: list[Any], what: str, path: Path, problems: list[Problem]) -> dict[int, dict[str, Any]]:
    result: dict[int, dict[str, Any]] = {}
    for index, entry in enumerate(entries):
        key: Any = entry.get("id") if isinstance(entry, dict) else None
        if not _is_id(key):
            problems.append(
                _refused(
                    what, f"{what} number {index} of {path} has an id that is not a whole number, or is too large."
                )
            )
        elif key in result:
            problems.append(_refused(what, f"{path} has the {what} {key} twice; ids must differ."))
        else:
            result[key] = entry
    return result


def _image_problem(image: Mapping[str, Any], max_pixels: int, outside_images: bool) -> tuple[str, str] | None:
    """The problem with the entry of an image: its kind, and the end of a sentence."""
    name = image.get("file_name")
    if not isinstance(name, str) or not name:
        return "image", "has no file_name"
    if not outside_images and leaves_folder(name):
        what = f"is outside of the folder: {printable(name)}; give --outside-images if you trust the file"
        return "image outside the folder", what
    sizes: tuple[Any, Any] = (image.get("width"), image.get("height"))
    if not all(_is_id(size) and size > 0 for size in sizes):
        return (
            "image",
            f"has the size {sizes[0]} x {sizes[1]}; width and height must be whole numbers of pixels above 0",
        )
    if sizes[0] * sizes[1] > max_pixels:
        what = (
            f"has the size {sizes[0]} x {sizes[1]}, more than the limit of {max_pixels} pixels; give a larger "
            "--max-pixels if you trust the file"
        )
        return "large image", what
    return None


def _category_problems(names: Mapping[int, str], path: Path) -> Iterator[Problem]:
    first: dict[str, int] = {}
    for key, name in names.items():
        if not 0 <= key <= _MOST_CATEGORY:
            yield _refused("category", f"category {key} ({name}) of {path} must have an id from 0 to {_MOST_CATEGORY}.")
        if name in first:
            yield _refused(
                "category name",
                f"the categories {first[name]} and {key} of {path} are both called {name!r}; names must differ.",
            )
        first.setdefault(name, key)


def _object_problems(
    annotation: Mapping[str, Any],
    images: Mapping[int, Mapping[str, Any]],
    known: set[int],
    names: Mapping[int, str],
    where: str,
    masks: bool,
) -> Iterator[Problem]:
    image_id: Any = annotation.get("image_id")
    image = images.get(image_id) if _is_id(image_id) else None
    if not _is_id(image_id) or image_id not in known:
        yield _refused("unknown image", f"{where} refers to image {image_id}, which the file does not have.")
    if not _is_id(annotation.get("category_id")) or annotation["category_id"] not in names:
        yield _refused(
            "unknown category",
            f"{where} refers to category {annotation.get('category_id')}, which the file does not have.",
        )
    if annotation.get("iscrowd", 0) not in (0, 1):
        yield _refused("crowd", f"{where} has iscrowd {annotation['iscrowd']}; 0 and 1 are allowed.")
    box = annotation.get("bbox")
    if not isinstance(box, list) or len(box) != 4 or not all(map(_is_number, box)) or min(box[2:]) < 0:
        yield _refused(
            "box",
            f"{where} has the bbox {reprlib.repr(box)}; it must be four numbers: x, y, width, height, with "
            "width and height at least 0.",
        )
    elif max(map(abs, box)) > _MOST_COORDINATE:
        yield _refused("box", f"{where} has the bbox {reprlib.repr(box)}, far outside of any image.")
    elif image is not None:
        yield from _box_notes(box, image, where)
    if image is not None and (sentence := segmentation_problem(annotation.get("segmentation"), image, masks)):
        if masks:
            yield _refused("mask", f"{where} {sentence}.")
        else:
            yield _noted("mask", f"{where} {sentence}: left out, because only boxes are used.")


def _box_notes(box: list[float], image: Mapping[str, Any], where: str) -> Iterator[Problem]:
    x1, y1, x2, y2 = clipped(box, image["width"], image["height"])
    size = f"{image['width']} x {image['height']}"
    if min(box[2:]) == 0:
        yield _noted(
            "box without area",
            f"{where} has a box of {box[2]} x {box[3]} pixels: left out of training, kept in evaluation.",
        )
    elif x2 <= x1 or y2 <= y1:
        yield _noted(
            "box outside the image",
            f"{where} has the box {box}, outside the image ({size}): left out of training, kept in evaluation.",
        )
    # COCO's own boxes exceed their images by fractions of a pixel.
    elif box[0] < -1 or box[1] < -1 or box[0] + box[2] > image["width"] + 1 or box[1] + box[3] > image["height"] + 1:
        yield _noted(
            "box beyond the image",
            f"{where} has the box {box}, beyond the image ({size}): clipped in training, unchanged in evaluation.",
        )


def segmentation_problem(segmentation: Any, image: Mapping[str, Any], required: bool) -> str | None:
    """The problem with a segmentation (polygons, uncompressed or compressed RLE), as the end of a sentence."""
    if segmentation is None or segmentation == []:
        return "has no mask (segmentation)" if required else None
    if isinstance(segmentation, list):
        for polygon in segmentation:
            if (
                not isinstance(polygon, list)
                or len(polygon) < 6
                or len(polygon) % 2
                or not all(map(_is_number, polygon))
            ):
                return "has a polygon that is not a list of x and y of at least three points"
            if sentence := _outline_problem(polygon, image):
                return sentence
        return None
    if not isinstance(segmentation, dict) or not {"size", "counts"} <= segmentation.keys():
        return "has a segmentation that is neither polygons nor RLE with size and counts"
    size, counts = [image["height"], image["width"]], segmentation["counts"]
    if segmentation["size"] != size:
        return f"has a mask of {segmentation['size']} (height, width), but its image has {size}"
    if isinstance(counts, list):
        if not all(_is_id(count) and count >= 0 for count in counts) or sum(counts) != size[0] * size[1]:
            return f"has RLE counts that do not add up to the {size[0] * size[1]} pixels of its image"
    elif not isinstance(counts, str | bytes):
        return "has RLE counts that are neither a list nor a string"
    return None


def _outline_problem(polygon: list[float], image: Mapping[str, Any]) -> str | None:
    """Check the length of an outline: pycocotools allocates memory for it, also outside of the image, without a limit."""
    xs, ys, width, height = polygon[::2], polygon[1::2], image["width"], image["height"]
    if min(xs) < -width or max(xs) > 2 * width or min(ys) < -height or max(ys) > 2 * height:
        return f"has a polygon that leaves its image ({width} x {height}) by more than the image's own size"
    steps = zip(xs, ys, [*xs[1:], xs[0]], [*ys[1:], ys[0]], strict=True)
    if sum(max(abs(x2 - x1), abs(y2 - y1)) for x1, y1, x2, y2 in steps) > _MOST_OUTLINE:
        return f"has a polygon with an outline of more than {_MOST_OUTLINE:.0f} pixels"
    return None


def run_lengths(counts: str | bytes) -> list[int]:
    """The runs of a compressed RLE mask, by column, beginning with zeros.

    pycocotools decodes damaged masks without an error; a wrong sum of the runs shows the damage.

    Source: the format of pycocotools (``rleFrString``): six bits in a character, from 48 on, five of them digits, the sixth says
    that more follow; from the fourth run on, the difference from the run before the last.

    Raises:
        ValueError: a run is longer than any image.
    """
    text = counts.encode("latin-1") if isinstance(counts, str) else counts
    runs: list[int] = []
    value = digits = 0
    for character in text:
        bits = character - 48
        value |= (bits & 31) << (5 * digits)
        digits += 1
        if digits > _MOST_DIGITS:
            raise ValueError("a run is longer than any image")
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << (5 * digits)
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        value = digits = 0
    return runs


def _completed(annotation: Mapping[str, Any], keep_mask: bool) -> dict[str, Any]:
    """The fields that COCO's evaluation reads, with defaults for optional ones."""
    box = [float(value) for value in annotation["bbox"]]
    area: Any = annotation.get("area")
    completed = {
        "id": annotation["id"],
        "image_id": annotation["image_id"],
        "category_id": annotation["category_id"],
        "bbox": box,
        "area": float(area) if _is_number(area) else box[2] * box[3],
        "iscrowd": int(annotation.get("iscrowd", 0)),
    }
    if keep_mask and annotation.get("segmentation"):
        completed["segmentation"] = annotation["segmentation"]
    return completed
