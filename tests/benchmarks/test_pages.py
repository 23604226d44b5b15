"""The documentation's pages are made of the committed results alone."""

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from benchmarks.pages import report_of, write_pages

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages")
    write_pages(ROOT / "results", folder)
    return folder


def test_every_page_that_a_text_links_to_is_made(pages):
    linked = {
        link
        for text in (ROOT / "docs").rglob("*.md")
        for link in re.findall(r"\]\(((?:reports|images)/[^)#]+)", text.read_text(encoding="utf-8"))
    }
    assert len(linked) > 5
    assert [link for link in sorted(linked) if not (pages / link).is_file()] == []


def test_the_navigation_has_the_pages_of_bench_and_coverage(pages):
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    for name in ("performance.md", "coverage.md", "mechanisms.md"):
        assert f": {name}\n" in navigation
        assert not (ROOT / "docs" / name).exists()
        assert (pages / name).read_text(encoding="utf-8").startswith("# ")
    assert (pages / "images" / "performance-scaling.svg").is_file()


def test_reports_are_whole_documents_with_their_pictures(pages):
    reports = sorted((pages / "reports").glob("*.html"))
    assert {path.name.split("-")[2].removesuffix(".html") for path in reports} >= {"explain", "operators", "small"}
    for path in reports:
        text = path.read_text(encoding="utf-8")
        HTMLParser().feed(text)
        assert text.rstrip().endswith("</html>")
        assert "<svg" in text


def test_an_explanation_without_its_network_leaves_those_pictures_out(pages):
    text = (pages / "reports" / "tiny-imagenet-explain.html").read_text(encoding="utf-8")
    assert "Which operators matter" in text
    assert "Where attention speaks" not in text


def test_other_records_have_no_page():
    assert report_of({"rows": [], "seeds": 1}) is None
