"""The documentation's pages are made of the committed results alone."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from benchmarks.pages import report_of, write_pages
from benchmarks.records import read_index
from benchmarks.results_page.__main__ import PAGES, filled, tables

ROOT = Path(__file__).parents[2]
RECORDS = sorted((ROOT / "results").rglob("*.json"))


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages")
    write_pages(ROOT / "results", folder)
    return folder


def test_every_page_that_a_text_links_to_is_made(pages):
    linked = {
        link
        for text in (ROOT / "docs").rglob("*.md")
        for link in re.findall(r"\]\(((?:reports|images|records)/[^)#]+)", text.read_text(encoding="utf-8"))
    }
    assert len(linked) > 5
    assert [
        link for link in sorted(linked) if not any((place / link).is_file() for place in (pages, ROOT / "docs"))
    ] == []


def test_the_navigation_has_the_pages_of_bench_and_coverage(pages):
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    for name in ("performance.md", "coverage.md", "libraries.md", "mechanisms.md"):
        assert f": {name}\n" in navigation
        assert not (ROOT / "docs" / name).exists()
        assert (pages / name).read_text(encoding="utf-8").startswith("# ")
    assert (pages / "images" / "performance-scaling.svg").is_file()


def test_reports_are_whole_documents_with_their_pictures(pages):
    reports = sorted((pages / "reports").glob("*.html"))
    assert {path.stem.split("-")[-1] for path in reports} >= {"explain", "operators", "small", "clothing"}
    for path in reports:
        text = path.read_text(encoding="utf-8")
        HTMLParser().feed(text)
        assert text.rstrip().endswith("</html>")
        assert "<svg" in text


def test_an_explanation_without_its_network_leaves_those_pictures_out(pages):
    text = (pages / "reports" / "tiny-imagenet-explain.html").read_text(encoding="utf-8")
    assert "Which operators matter" in text
    assert "Where attention is active" not in text


def test_other_records_have_no_page():
    assert report_of({"rows": [], "seeds": 1}) is None


@pytest.mark.parametrize("page", PAGES)
def test_the_tables_are_those_of_the_records(page):
    text, found = (ROOT / page).read_text(encoding="utf-8"), tables(ROOT / "results")
    assert filled(text, found) == text, "write them anew: python -m benchmarks.results_page"
    forged = re.sub(r"(<!-- table: \w+ -->\n.*?)1", r"\g<1>2", text, count=1, flags=re.DOTALL)
    assert forged != text
    assert filled(forged, found) == text


def test_every_table_is_somewhere():
    text = "".join((ROOT / page).read_text(encoding="utf-8") for page in PAGES)
    assert re.findall(r"<!-- table: (\w+) -->", text) == ["gains", "costs", "trained_on", "shipped", "readme"]


def test_the_story_of_the_results_is_short():
    lines = (ROOT / "docs" / "results.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 120
    assert max(len(line) for line in lines if not line.startswith("|")) <= 120
    for path in (ROOT / "results" / "notebook").glob("*.md"):
        assert path.name == "README.md" or f"]({path.name})" in (path.parent / "README.md").read_text(encoding="utf-8")


def test_every_record_is_in_the_index_with_its_commit_and_what_supersedes_it(pages):
    index = {record.name: record for record in read_index(ROOT / "results")}
    files = {path.relative_to(ROOT / "results").with_suffix("").as_posix() for path in RECORDS}
    assert sorted(index) == sorted(files), "results/README.md lists each record once"
    for name, record in index.items():
        said = _commits(json.loads((ROOT / "results" / f"{name}.json").read_text(encoding="utf-8")))
        assert all(any(commit.startswith(listed) for commit in said) for listed in record.commits), name
        assert all(any(commit.startswith(listed) for listed in record.commits) for commit in said), name
        assert re.fullmatch(r"2\d{3}-\d\d-\d\d", record.date)
        assert record.superseded_by is None or record.superseded_by in files - {name}
    page = (pages / "reports.md").read_text(encoding="utf-8")
    assert all(f"(records/{name}.json)" in page for name in files)
    assert page.count("(reports/") == len(list((pages / "reports").glob("*.html")))


def _commits(record):
    """The commits that were measured, where a record says them: of the whole, or of each case."""
    whole = record.get("commit") or record.get("conditions", {}).get("commit")
    if whole:
        return {whole}
    cases = record.get("cases", {})
    return {case["commit"] for case in cases.values()} if isinstance(cases, dict) else set()


def test_a_report_that_is_superseded_says_so(pages):
    for record in read_index(ROOT / "results"):
        report = pages / "reports" / record.report
        if report.is_file():
            assert ("Superseded: " in report.read_text(encoding="utf-8")) == bool(record.superseded_by)
            later = re.search(r'Superseded: [^<]*<a href="([^"]+)"', report.read_text(encoding="utf-8"))
            assert later is None or (report.parent / later[1]).is_file()


def test_the_site_cuts_nothing_off_and_copies_no_prompt():
    settings = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    style = (ROOT / "docs" / "stylesheets" / "site.css").read_text(encoding="utf-8")
    rules = dict(re.findall(r"^([^\n{@/]+) \{(.*?)\}", style, flags=re.DOTALL | re.MULTILINE))
    assert "extra_css: [stylesheets/site.css]" in settings
    assert "benchmarks/formulas_hook.py" in settings
    assert "pre-wrap" in rules[".md-typeset pre > code"]
    assert "local" in rules[".md-typeset__scrollwrap"]  # the shades that say that there is more of a table
    assert "user-select: none" in rules[".md-typeset .highlight .gp, .md-typeset .highlight .go"]
    assert "display: none" in rules["[data-md-copying] .gp, [data-md-copying] .go"]


@pytest.mark.parametrize("path", sorted((ROOT / "docs" / "images").glob("*.svg")), ids=lambda path: path.stem)
def test_diagrams_are_as_wide_as_a_phone_and_have_both_colour_schemes(path):
    text = path.read_text(encoding="utf-8")
    assert int(re.search(r'viewBox="0 0 (\d+) ', text)[1]) <= 480
    assert "prefers-color-scheme:dark" in text
    assert "aria-label=" in text


def test_the_search_finds_the_names_of_arguments():
    separator = re.search(r"separator: '(.*)'", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"))[1].replace("''", "'")
    assert "stages" in re.split(separator, "convert(model, stages=(3,))")
    assert {"lr", "factor"} <= set(re.split(separator, "--new-lr-factor 0.5"))
    assert "0.5" in re.split(separator, "lr=0.5")
