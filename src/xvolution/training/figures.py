"""What all pictures have in common: SVG that takes its text colour from the page, or from the reader's colour scheme."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from html import escape
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

INK = "#010203"  # replaced by currentColor in the SVG
#: Inches. Letters of 11 points keep at least 9 pixels where the picture is as wide as a phone.
WIDTH = 5.4
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "xvolution",
    "font.family": "sans-serif",
    "font.size": 11,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
}
# Readable on white and on black; the baseline is grey, marks tell apart what colours repeat.
GREY = "#8b93a1"
COLOURS = ("#129c93", "#e0902f", "#7a6fd0", "#d0527d", "#4a90d9", "#8a9a2b", "#b06ab3", "#c2703d")
MARKERS = "osD^vPX*"

#: A file of its own has no page around it to take a colour from.
_SCHEMES = "<style>svg{color:#1d232b}@media(prefers-color-scheme:dark){svg{color:#e6e9ed}}</style>"


@contextmanager
def style() -> Iterator[None]:
    """The look of every picture."""
    with mpl.rc_context(STYLE):
        yield


def svg(figure: Figure, label: str) -> str:
    """The figure as an <svg> element that scales with the page; ``label`` is what a screen reader says."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", bbox_inches="tight", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    element = text[text.index("<svg") :].replace(INK, "currentColor")
    return element.replace("<svg", f'<svg role="img" aria-label="{escape(label)}"', 1)


def svg_file(figure: Figure, label: str) -> str:
    """The figure as an SVG file, dark on light or light on dark as the reader's colour scheme asks."""
    element = svg(figure, label)
    end = element.index(">", element.index("<svg")) + 1
    return f"{element[:end]}{_SCHEMES}{element[end:]}"


def in_lines(label: str, width: int = 22) -> str:
    """A label in lines of at most ``width`` letters: broken at spaces, and behind dots, hyphens and underscores."""
    lines = [""]
    for part in re.findall(r"[^ ._-]*[ ._-]|[^ ._-]+", label):
        if lines[-1] and len(lines[-1]) + len(part.rstrip()) > width:
            lines.append("")
        lines[-1] += part
    return "\n".join(line.rstrip() for line in lines)
