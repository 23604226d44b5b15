"""Formulas of the documentation are set while the site is built, and one that cannot be set is refused."""

import re
from pathlib import Path

import pytest

pytest.importorskip("ziamath")

from benchmarks.formulas_hook import picture

DOCS = Path(__file__).parents[2] / "docs"


def test_a_formula_is_a_picture_that_scales_and_says_itself():
    line = picture(r"\begin{aligned} y &= \sum_\delta w_\delta \\ z &= 1 \end{aligned}", display=True)
    assert line.startswith('<p class="formula"><svg')
    assert "viewBox" in line
    assert 'aria-label="\\begin{aligned} y' in line
    assert "currentColor" in line
    assert re.search(r'style="width: [\d.]+em; vertical-align', line)
    assert not re.search(r"<svg[^>]* (?:width|height)=", line)
    assert picture("x_0", display=False).startswith("<svg")


@pytest.mark.parametrize("formula", [r"\nosuchcommand x", r"\begin{gathered} a &= b \end{gathered}"])
def test_a_formula_with_an_unknown_command_is_refused(formula):
    with pytest.raises(ValueError, match="which latex2mathml does not know"):
        picture(formula, display=False)


def test_no_formula_of_a_page_is_wider_than_a_phone():
    for path in DOCS.rglob("*.md"):
        for formula in re.findall(r"^\$\$\n(.*?)^\$\$$", path.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE):
            width = re.search(r"width: ([\d.]+)em", picture(formula, display=True))
            assert float(width[1]) <= 21, f"{path.name}: {formula}"  # 21 ems of 17.6 pixels are 370 of the 400
