import re
from html.parser import HTMLParser

import numpy as np
import pytest

from fasegr.visualization.html_page import (
    Section,
    bar,
    code,
    details,
    facts,
    gallery,
    notice,
    page,
    picture,
    plot,
    swatch,
    table,
    write_page,
)

NAME = "<b>road & 'car'</b>"
VOID = {"meta", "link", "img", "br", "path", "use", "line"}


class Outline(HTMLParser):
    """The tags of a page, their attributes and the text outside them. Fails where tags are not nested."""

    def __init__(self, source):
        super().__init__()
        self.open, self.tags, self.text = [], [], ""
        self.feed(str(source))  # of Markup, all that is taken from it is Markup again
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] != ["style"] and self.open[-1:] != ["script"]:
            self.text += data


def _draw(*axes):
    for ax in axes:
        ax.plot([1, 2], [3, 4], label=NAME)
        ax.legend()


@pytest.fixture(scope="module")
def whole():
    image = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    parts = [
        NAME,
        facts([(NAME, NAME, NAME)]),
        notice("error", NAME, NAME),
        code(NAME),
        details(NAME, NAME),
        table(["Class", "Pixels"], [[swatch((1, 2, 3), NAME), bar(0.5, NAME)], [NAME, None]], NAME),
        gallery([picture(image, NAME, NAME), picture(image, NAME, lossless=True)]),
        plot(_draw, NAME, NAME, ncols=2),
        plot(_draw, NAME),
    ]
    return page(NAME, [Section(NAME, parts), Section(NAME, parts)], NAME, NAME)


def test_text_of_others_is_text(whole):
    """Also where it is an attribute, or in a plot."""
    outline = Outline(whole)
    assert "b" not in [tag for tag, _ in outline.tags]
    alternatives = [attributes["alt"] for tag, attributes in outline.tags if tag == "img"]
    assert alternatives == [NAME] * 4
    assert outline.text.count(NAME) > 20


def test_page_needs_no_network(whole):
    loaded = [
        attributes.get(key)
        for _, attributes in Outline(whole).tags
        for key in ("src", "href", "xlink:href", "srcset", "data")
        if attributes.get(key)
    ]
    assert loaded
    assert all(address.startswith(("data:", "#")) for address in loaded)
    assert not re.search(r"@import|url\((?!#)", whole)


def test_every_anchor_and_mark_is_there_once(whole):
    tags = Outline(whole).tags
    ids = [attributes["id"] for tag, attributes in tags if "id" in attributes and tag != "clippath"]
    targets = {attributes["href"][1:] for tag, attributes in tags if tag == "a"}
    assert targets <= set(ids)
    assert sum(anchor in targets for anchor in ids) == len(targets) == 3  # two sections and the content
    pointed_to = set(re.findall(r"url\(#([^)]+)\)", whole))
    assert pointed_to
    assert pointed_to <= {attributes.get("id") for _, attributes in tags}


def test_everything_seen_has_words(whole):
    for tag, attributes in Outline(whole).tags:
        if tag == "img":
            assert attributes["alt"]
        if tag == "svg":
            assert attributes["aria-label"] == NAME


def test_table_is_sorted_by_numbers_and_not_by_their_text():
    outline = Outline(
        table(["Class", "Pixels", "Note"], [["a", 12345, "x"], ["b", None, "y"], ["c", bar(0.5, "half"), ""]])
    )
    cells = [attributes for tag, attributes in outline.tags if tag in ("td", "th") and "data-key" in attributes]
    assert [cell["data-key"] for cell in cells] == ["a", "12345", "x", "b", "", "y", "c", "0.5", ""]
    assert [cell.get("class") for cell in cells[:3]] == [None, "number", None]
    assert "12\u202f345" in outline.text


def test_plot_takes_the_text_colour_of_the_page():
    assert "currentColor" in plot(_draw, "x")
    assert "#1d2127" not in plot(_draw, "x")


def test_plot_is_the_same_in_every_run():
    assert plot(_draw, "x") == plot(_draw, "x")


def test_page_is_written_whole(tmp_path):
    write_page(tmp_path / "a.html", page("\udcff", []))  # a byte of a file's name that is no text
    assert (tmp_path / "a.html").read_bytes().startswith(b"<!DOCTYPE html>")
    assert [path.name for path in tmp_path.iterdir()] == ["a.html"]
