"""The page: figures and pictures in, one HTML document out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from xvolution.training.pages import environment


def render(figures: Mapping[str, Any], pictures: Mapping[str, str]) -> str:
    """Fill the template.

    Args:
        figures: what `results.json` holds.
        pictures: SVG by name: ``losses``, which is drawn from the figures; ``attention`` and ``field``, which take the
            network and its images, and without which their sections are left out.

    Returns:
        A self-contained HTML document.
    """
    template = environment("xvolution.explain").get_template("page.html.jinja")
    return template.render(**figures, pictures=pictures)
