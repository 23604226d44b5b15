"""A page of pictures with their most probable classes."""

from __future__ import annotations

import base64
import io
import os
from typing import TYPE_CHECKING, Any

from xvolution.training.data.reading import printable
from xvolution.training.files import write_text
from xvolution.training.pages import environment

if TYPE_CHECKING:
    from xvolution.training.classification.predict import ClassifiedPicture, ClassifierPredictions, ClassifierPredictor

#: Side in pixels that a picture on the page is reduced to.
_SIDE = 320


def write_page(
    path: str | os.PathLike[str], predictor: ClassifierPredictor, found: ClassifierPredictions, pictures: int
) -> None:
    """Write a self-contained page.

    Args:
        path: path of the page.
        predictor: the predictor, which reads the pictures again.
        found: the predictions of a run over files.
        pictures: number of pictures to show.
    """
    shown = [_row(predictor, answer) for answer in found.answers[:pictures]]
    template = environment("xvolution.training.classification").get_template("page.html.jinja")
    text = template.render(
        network=predictor.metadata.model.name,
        data=predictor.metadata.data,
        form=predictor.metadata.form,
        summary=found.summary,
        skipped=[printable(each) for each in found.skipped],
        count=len(found.answers),
        shown=shown,
    )
    write_text(path, text)


def _row(predictor: ClassifierPredictor, answer: ClassifiedPicture) -> dict[str, Any]:
    picture = predictor.read(answer.picture)
    picture.thumbnail((_SIDE, _SIDE))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=85)
    return {
        "name": printable(os.path.basename(answer.picture)),
        "path": printable(answer.picture),
        "source": "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii"),
        "classes": list(zip(answer.classes, answer.probabilities, strict=True)),
    }
