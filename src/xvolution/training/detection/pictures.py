"""Detections drawn on their images, and a page of them beside the annotations."""

from __future__ import annotations

import base64
import colorsys
import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.functional import to_pil_image
from torchvision.utils import draw_bounding_boxes, draw_segmentation_masks

from xvolution.training.data.reading import open_file, printable, read_picture
from xvolution.training.files import atomic_path, write_text

#: Side in pixels that a picture on a page is reduced to.
_PAGE_SIDE = 480


@dataclass(frozen=True)
class Pictured:
    """One image on a page: its name, and drawings of its annotations and its detections."""

    name: str
    truth: Image.Image
    found: Image.Image


def draw(
    image: Tensor, objects: Mapping[str, Tensor], class_names: Sequence[str], threshold: float = 0.5
) -> Image.Image:
    """Draw boxes, names, scores and masks.

    Args:
        image: (3, H, W) in [0, 1].
        objects: boxes (n, 4), labels (n,), and where there are any scores (n,) and masks, (n, 1, H, W) as probabilities or
            (n, H, W) as 0 and 1.
        class_names: of the labels 1, 2, ...
        threshold: lowest score of a drawn object.
    """
    picture = (image.cpu() * 255).round().to(torch.uint8)
    kept = (
        objects["scores"] >= threshold if "scores" in objects else torch.ones(len(objects["boxes"]), dtype=torch.bool)
    )
    if not kept.any():
        return to_pil_image(picture)
    labels = objects["labels"][kept].tolist()
    colours = [_colour(label) for label in labels]
    captions = [class_names[label - 1] for label in labels]
    if "scores" in objects:
        captions = [
            f"{name} {score:.0%}" for name, score in zip(captions, objects["scores"][kept].tolist(), strict=True)
        ]
    if "masks" in objects:
        masks = objects["masks"][kept].cpu().reshape(-1, *picture.shape[1:]) > 0.5
        picture = draw_segmentation_masks(picture, masks, alpha=0.45, colors=colours)
    boxes = objects["boxes"][kept].cpu()
    drawable = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    chosen = drawable.nonzero().flatten().tolist()
    width = max(2, round(max(picture.shape[1:]) / 300))
    return to_pil_image(
        draw_bounding_boxes(
            picture, boxes[drawable], [captions[i] for i in chosen], [colours[i] for i in chosen], width=width
        )
    )


def read_image(path: Path, max_pixels: int | None = None) -> Tensor:
    """(3, H, W) float32 in [0, 1]; see ``read_picture``.

    Raises:
        BadImage: the image cannot be decoded.
    """
    return as_tensor(read_picture(partial(open_file, path), partial(printable, path), max_pixels=max_pixels))


def as_tensor(picture: Image.Image) -> Tensor:
    """(3, H, W) float32 in [0, 1] of a picture of mode RGB."""
    return v2.functional.to_dtype(v2.functional.pil_to_tensor(picture), torch.float32, scale=True)


def write_picture(path: Path, picture: Image.Image) -> None:
    """Write a picture in the format of its ending, completely or not at all."""
    with atomic_path(path) as temporary:
        picture.save(temporary)


def write_page(path: str | os.PathLike[str], title: str, figures: str, pictured: Sequence[Pictured]) -> None:
    """Write a self-contained page: annotations on the left, detections on the right."""
    from jinja2 import Environment

    rows = [{"name": each.name, "truth": _embedded(each.truth), "found": _embedded(each.found)} for each in pictured]
    template = Environment(autoescape=True).from_string(_PAGE)
    write_text(path, template.render(title=title, figures=figures, rows=rows))


def _colour(label: int) -> tuple[int, int, int]:
    """Neighbouring labels get hues far apart, by the golden ratio."""
    red, green, blue = colorsys.hsv_to_rgb((label * 0.618034) % 1.0, 0.85, 0.95)
    return round(255 * red), round(255 * green), round(255 * blue)


def _embedded(picture: Image.Image) -> str:
    reduced = picture.copy()
    reduced.thumbnail((_PAGE_SIDE, _PAGE_SIDE))
    buffer = io.BytesIO()
    reduced.save(buffer, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{{ title }}</title>
<style>
  body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 64rem; padding: 0 1rem; }
  pre { white-space: pre-wrap; overflow-wrap: anywhere; }
  .pair { display: grid; grid-template-columns: 1fr 1fr; gap: .75rem; margin: 0 0 1.5rem; }
  figure { margin: 0; } img { max-width: 100%; } figcaption { opacity: .7; font-size: 13px; overflow-wrap: anywhere; }
</style>
<h1>{{ title }}</h1>
<pre>{{ figures }}</pre>
{% for row in rows %}
<div class="pair">
  <figure><img src="{{ row.truth }}" alt="truth"><figcaption>{{ row.name }}: truth</figcaption></figure>
  <figure><img src="{{ row.found }}" alt="found"><figcaption>found</figcaption></figure>
</div>
{% endfor %}
</html>
"""
