"""A hook of mkdocs: formulas, ``$...$`` and ``$$...$$`` in LaTeX, become SVG, for which a browser needs no script and no font."""

from __future__ import annotations

import re
from html import unescape
from xml.etree import ElementTree

import ziamath
from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import Files
from mkdocs.structure.pages import Page

#: What `pymdownx.arithmatex` makes of them with ``generic: true``.
_FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', flags=re.DOTALL)
#: Pixels of an em while a formula is drawn; on the page it is as large as the text around it.
_EM = 16

# Each picture is whole by itself, and refers to no glyph of another one.
ziamath.config.svg2 = False
ziamath.config.precision = 2


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Set the formulas of a page."""
    try:
        return _FORMULA.sub(lambda found: picture(unescape(found[2]), display=found[1] == "div"), html)
    except ValueError as error:
        raise PluginError(f"{page.file.src_uri}: {error}") from error


def picture(formula: str, *, display: bool) -> str:
    """A formula as an element of HTML.

    Args:
        formula: in LaTeX.
        display: on a line of its own, and not within one.

    Raises:
        ValueError: it has a command that the converter does not know, and would leave as it is.
    """
    source = " ".join(formula.split())
    # GitHub knows the one, the converter the other.
    known = source.replace(r"\begin{aligned}", r"\begin{align*}").replace(r"\end{aligned}", r"\end{align*}")
    unknown = re.findall(r"\\\w+|<mi>&</mi>", convert(known))
    if unknown:
        raise ValueError(f"the formula {source!r} has {unknown[0]}, which latex2mathml does not know")
    drawn = ziamath.Latex(known, size=_EM, color="currentColor", inline=not display)
    element = drawn.svgxml()
    width = float(element.attrib.pop("width")) / _EM
    del element.attrib["height"]
    element.set("class", "formula")
    element.set("role", "img")
    element.set("aria-label", source)
    # The height follows, on a phone too, where the style sheet keeps the width within the page.
    element.set("style", f"width: {width:.3f}em; vertical-align: {drawn.getyofst() / _EM:.3f}em")
    text = ElementTree.tostring(element, encoding="unicode")
    return f'<p class="formula">{text}</p>' if display else text
