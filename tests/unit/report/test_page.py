"""The page: whole in itself, hostile text escaped, every section there."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from pipeline.report.page import render_page
from pipeline.report.plots import draw_plots
from pipeline.report.view_contents import Segment
from pipeline.report.write import write_report

SECTIONS = ["head", "compared", "table", "curves", "levels", "calibration", "examples", "cost"]
HOSTILE = "</pre><script>alert('x')</script><img src=x onerror=alert(1)>&amp;\"'"


class _Reader(HTMLParser):
    """Every tag with its attributes, and the text."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "source"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"</{tag}> closes another"

    def handle_data(self, data):
        self.text += data


def _read(page: str) -> _Reader:
    reader = _Reader()
    reader.feed(page)
    reader.close()
    assert reader.open == []
    return reader


@pytest.fixture(scope="module", params=["tokens", "chunks"])
def report(request, token_report, chunk_report):
    return token_report if request.param == "tokens" else chunk_report


@pytest.fixture(scope="module")
def written(report, tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    return folder, write_report(report, folder)


def test_every_section_is_there_and_every_tag_closed(written):
    reader = _read((written[0] / "report.html").read_text("utf-8"))
    ids = [attributes["id"] for _, attributes in reader.tags if "id" in attributes]
    assert ids == SECTIONS
    links = [attributes["href"] for tag, attributes in reader.tags if tag == "a"]
    assert links == [f"#{name}" for name in SECTIONS[1:]]


def test_nothing_is_fetched_from_anywhere(written):
    page = (written[0] / "report.html").read_text("utf-8")
    reader = _read(page)
    assert not {tag for tag, _ in reader.tags} & {"script", "link", "iframe", "object", "base"}
    sources = [
        value
        for _, attributes in reader.tags
        for name, value in attributes.items()
        if name in ("src", "srcset")
    ]
    assert sources
    assert all(value.startswith("data:image/png;base64,") for value in sources)
    style = re.search(r"<style>(.*?)</style>", page, re.DOTALL)[1]
    assert "url(" not in style
    assert "@import" not in style
    assert "default-src 'none'" in page


def test_pictures_are_files_beside_it_and_numbers_are_json(written, report):
    folder, places = written
    assert places[0] == folder / "report.html"
    assert all(place.exists() for place in places)
    names = {place.name for place in places if place.suffix == ".png"}
    assert {"curves-masked_nll.png", "calibration-0.png", "agreement-0-dark.png"} <= names
    for place in places:
        if place.suffix == ".png":
            assert place.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    numbers = json.loads((folder / "report.json").read_text("utf-8"))
    assert numbers["verdict"] == list(report.verdict)
    assert [one["label"] for one in numbers["settings"]] == [one.label for one in report.settings]


def test_hostile_text_is_shown_and_never_run(report):
    (part,) = report.views
    segments = (Segment(text=HOSTILE, is_masked=True, number=1),)
    example = replace(part.examples[0], record_id=HOSTILE, segments=segments)
    hostile = replace(
        report,
        title=HOSTILE,
        verdict=(HOSTILE,),
        notes=(HOSTILE,),
        settings=tuple(
            replace(one, label=HOSTILE, details={HOSTILE: HOSTILE}) for one in report.settings
        ),
        views=(replace(part, teacher=HOSTILE, examples=(example,)),),
    )
    page = render_page(hostile, draw_plots(hostile))
    reader = _read(page)
    assert "script" not in {tag for tag, _ in reader.tags}
    assert all("onerror" not in attributes for _, attributes in reader.tags)
    assert reader.text.count(HOSTILE) >= 6


def test_spaces_of_tokens_can_be_seen(token_report):
    page = render_page(token_report, ())
    assert "\N{OPEN BOX}" in page
    assert "\N{DOWNWARDS ARROW WITH CORNER LEFTWARDS}" in page
