"""Reports can be read on a wide screen and on a phone, on light and on dark: what of that can be held without a browser."""

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

pytest.importorskip("matplotlib")

from matplotlib.figure import Figure

from xvolution.compare.figures import accuracy_over_cost, differences
from xvolution.compare.task import Metric
from xvolution.training.figures import WIDTH, in_lines, style, svg, svg_file

SOURCES = Path(__file__).parents[2] / "src" / "xvolution"
TEMPLATES = [*SOURCES.rglob("*.jinja"), SOURCES / "training" / "detection" / "pictures.py"]
STYLE_SHEET = (SOURCES / "training" / "style.css").read_text(encoding="utf-8")


class Tables(HTMLParser):
    """The attributes of what stands around each table."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[dict[str, str | None]] = []
        self.around: list[dict[str, str | None]] = []

    def handle_starttag(self, tag, attrs):
        if tag == "table":
            self.around.append(self.open[-1])
        if tag == "div":
            self.open.append(dict(attrs))

    def handle_endtag(self, tag):
        if tag == "div":
            self.open.pop()


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda path: path.parent.name)
def test_every_page_is_made_for_phones_and_for_both_colour_schemes(template):
    text = template.read_text(encoding="utf-8")
    assert '<meta name="viewport" content="width=device-width, initial-scale=1">' in text
    assert '<meta name="color-scheme" content="light dark">' in text


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda path: path.parent.name)
def test_every_table_scrolls_in_a_box_of_its_own(template):
    tables = Tables()
    tables.feed(template.read_text(encoding="utf-8"))
    for around in tables.around:
        assert around.get("class") == "scroll"
        assert around.get("tabindex") == "0"  # the keyboard scrolls what has the focus
        assert around.get("role") == "region"
        assert around.get("aria-label")


def test_the_style_sheet_lets_nothing_but_tables_scroll():
    rules = dict(re.findall(r"^([^\n{@]+) \{ (.*?) \}", STYLE_SHEET, flags=re.DOTALL | re.MULTILINE))
    assert "overflow-x: auto" in rules[".scroll"]
    assert "local" in rules[".scroll"]  # the shades that say that there is more
    assert [name for name, rule in rules.items() if "overflow-x" in rule] == [".scroll"]
    assert "min-width" not in rules["figure svg"]
    assert "white-space: pre-wrap" in rules["pre"]


def test_a_picture_scales_and_takes_the_colours_of_the_page():
    with style():
        figure = Figure(figsize=(WIDTH, 2.0))
        figure.add_subplot().set(xlabel="pixels")
        element, file = svg(figure, "a < b"), svg_file(figure, "a < b")
    assert "viewBox" in element
    assert 'aria-label="a &lt; b"' in element
    assert "currentColor" in element
    assert "prefers-color-scheme" not in element
    assert re.search(r"<svg[^>]*><style>[^<]*prefers-color-scheme:dark", file)


@pytest.mark.parametrize(
    ("label", "lines"),
    [
        ("conv", ["conv"]),
        ("xvolution in stages 3 and 4", ["xvolution in stages 3", "and 4"]),
        ("backbone.body.layer4.2.conv2", ["backbone.body.layer4.", "2.conv2"]),
        ("x" * 30, ["x" * 30]),
        ("", [""]),
    ],
)
def test_labels_are_broken_where_they_may_be(label, lines):
    assert in_lines(label).split("\n") == lines


def test_names_of_variants_that_lie_on_each_other_do_not():
    rows = [
        {
            "label": f"variant with a name of its own {number}",
            "score": {"estimate": 0.5, "low": 0.4, "high": 0.6, "half": 0.1, "seeds": 3},
            "difference": {"estimate": 0.01, "low": 0.0, "high": 0.02, "half": 0.01, "seeds": 3},
            "bootstrap": None,
            "deployed_flops_ratio": 1.0,
            "pareto": number == 0,
        }
        for number in range(9)
    ]
    metric = Metric("top1", "top-1", True)
    for picture in (accuracy_over_cost(rows, "conv", metric), differences(rows, "conv", metric)):
        places = re.findall(r'<text[^>]*?(?:translate\(([-\d.]+) ([-\d.]+)\)|x="([-\d.]+)" y="([-\d.]+)")', picture)
        points = [(float(a or c), float(b or d)) for a, b, c, d in places]
        assert len(points) > 18
        for place, (x, y) in enumerate(points):
            for other_x, other_y in points[:place]:
                assert abs(x - other_x) > 20 or abs(y - other_y) > 8
