"""The page: whole, escaped, closed to the network."""

import re
from html.parser import HTMLParser

import matplotlib.figure
import pytest

from excite.pages.page import Column, Page, Picture, data_address, inline_svg, link

HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "x" * 300,
    "猫 $\\frac{a}{b}$ ü",
    "{{ 7 * 7 }}",
    "",
]


class Reader(HTMLParser):
    """Checks the nesting of tags, and collects them with the texts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in {"meta", "link", "img"}:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


def figure(label: str = "a"):
    drawn = matplotlib.figure.Figure(figsize=(3, 2))
    axis = drawn.subplots()
    axis.plot([1, 2, 3], color="black")
    axis.fill_between([0, 1], [0, 1])
    axis.set_title(label.replace("$", r"\$"))
    return drawn


def page() -> Page:
    made = Page(HOSTILE[0], HOSTILE[1], headline=HOSTILE[3])
    for i, text in enumerate(HOSTILE):
        section = made.section(f"s{i}", text)
        section.paragraph(text, link(text, "https://example.org/?a=1&b=2"))
        section.note(text)
        section.key_values([(text, text)])
        section.code(text, text)
        section.table([Column("a", text), Column("b", "n", ".1f", title=text)], [{"a": text, "b": 1.25}, {}], text)
        section.gallery([Picture(b"\x89PNG", text, [text])])
        section.details(text).paragraph(text)
        section.draw(figure(text), text, text)
    return made


def test_hostile_text_stays_text():
    html = page().render()
    read = Reader(html)
    assert read.open == []
    assert [tag for tag, _ in read.tags].count("script") == 1
    assert not any(name.startswith("on") for _, attributes in read.tags for name in attributes)
    for text in HOSTILE:
        assert text in read.texts or not text
    assert {a["src"] for t, a in read.tags if t == "img"} == {"data:image/png;base64,iVBORw=="}


def test_nothing_is_loaded_and_ids_are_each_there_once():
    read = Reader(page().render())
    for tag, attributes in read.tags:
        for name in ("src", "href", "xlink:href"):
            address = attributes.get(name)
            if address is not None:
                assert address.startswith(("data:", "#")) or tag == "a", (tag, address)
    ids = [a["id"] for _, a in read.tags if "id" in a]
    assert len(ids) == len(set(ids))
    for _, attributes in read.tags:  # whatever is referred to is there
        for value in attributes.values():
            for name in re.findall(r"url\(#([^)]*)\)|^#(.*)$", value or ""):
                assert "".join(name) in ids
    policy = next(a["content"] for _, a in read.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-")


def test_headings_are_in_order_and_values_are_formatted():
    made = Page("t", headline="the result")
    section = made.section("one", "One")
    section.heading("below")
    section.table([Column("a", "A", ".2f"), Column("b", "B")], [{"a": 1.005, "b": True}, {"a": None, "b": "x"}])
    section.key_values([("k", None), ("n", 12)])
    read = Reader(made.render())
    assert [t for t, _ in read.tags if re.fullmatch(r"h\d", t)] == ["h1", "h2", "h3"]
    assert read.texts[read.texts.index("the result") - 1].strip() == ""  # nothing is said before it
    assert {"1.00", "yes", "\u2013", "12"} <= set(read.texts)
    assert [a.get("data-sort") for t, a in read.tags if t == "td"] == ["1.005", None, None, None]
    for bad in ("One", "one", "a b"):
        with pytest.raises(ValueError, match="is not a valid id"):
            made.section(bad, "x")


def test_figures_take_on_the_colours_of_the_page():
    svg = inline_svg(figure(), "f9", 'a "b"')
    assert "currentColor" in svg
    assert "#000000" not in svg
    assert "fill: #ffffff" not in svg
    assert "<style" not in svg  # it would hold for the whole page
    assert 'aria-label="a &#34;b&#34;"' in svg
    assert svg.startswith("<svg")
    assert set(re.findall(r'\bid="([^-"]*)', svg)) == {"f9"}
    with pytest.raises(ValueError, match="only PNG"):
        data_address(b"<svg>")
