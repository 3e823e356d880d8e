"""The page in a real browser."""

import base64
import json
from pathlib import Path

import pytest
from PIL import Image

from excite.pages.page import Column, Page
from tests.report.test_page import page


def opened(browser, path: Path, width: int, dark: bool = False) -> list[str]:
    """Open a file at a width; what the browser fetched, but for the file itself. The console must be silent."""
    browser.get_log("performance"), browser.get_log("browser")
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    )
    feature = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
    browser.get(path.as_uri())
    assert browser.get_log("browser") == []
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
    return [url for url in asked if not url.startswith("data:") and url != path.as_uri()]


#: What a reader could not see: parts that reach beyond the screen, boxes that hold more than they show and are silent,
#: values of stacked tables without their names.
CUT_OFF = """
const out = [], name = (e) => `${e.tagName}.${e.className?.baseVal ?? e.className} of ${e.closest("section")?.id}`;
for (const part of document.querySelectorAll("header *, nav *, main *")) {
  const box = part.parentElement.closest(".scroll, svg");
  const place = part.getBoundingClientRect();
  if (!box && place.width && (place.left < -1 || place.right > innerWidth + 1)) out.push(`off screen: ${name(part)}`);
}
for (const box of document.querySelectorAll(".scroll, pre")) {
  const wider = box.scrollWidth > box.clientWidth + 1;
  const says = getComputedStyle(box, "::before").content.includes("scroll sideways");
  if (wider !== says) out.push(`${wider ? "cut off in silence" : "says that it scrolls"}: ${name(box)}`);
  if (wider && getComputedStyle(box).overflowX !== "auto") out.push(`does not scroll: ${name(box)}`);
}
for (const cell of document.querySelectorAll(".stacked td:not(:first-child)"))
  if (!cell.dataset.label || !getComputedStyle(cell, "::before").content.includes(cell.dataset.label))
    out.push(`no name: ${name(cell)}`);
return out;
"""


def cut_off(browser) -> list[str]:
    """What of the page that is open cannot be seen, everything being unfolded."""
    browser.execute_script("for (const part of document.querySelectorAll('details')) part.open = true")
    browser.execute_async_script("const done = arguments[0]; requestAnimationFrame(() => setTimeout(done))")  # "toggle"
    return browser.execute_script(CUT_OFF)


@pytest.fixture(scope="module")
def pages(reported, tmp_path_factory) -> dict[str, Path]:
    """A real report, and a page of hostile texts with a real picture."""
    folder = tmp_path_factory.mktemp("pages")
    made = page()
    for section in made.sections:  # the browser decodes pictures
        for block in section.blocks:
            if block.kind == "gallery":
                block.values["pictures"] = []
    return {"report": reported / "report.html", "hostile": made.write(folder / "hostile.html")}


@pytest.mark.parametrize("name", ["report", "hostile"])
@pytest.mark.parametrize("width", [360, 390, 1280])
@pytest.mark.parametrize("dark", [False, True])
def test_it_opens_from_the_disk_whole_and_silent(browser, pages, name, width, dark):
    assert opened(browser, pages[name], width, dark) == []
    ask = browser.execute_script
    assert cut_off(browser) == []
    assert ask("return document.documentElement.scrollWidth") <= width
    sizes = ask("return [...document.images].map(i => [i.complete, i.naturalWidth, i.naturalHeight])")
    assert all(complete and w > 0 and h > 0 for complete, w, h in sizes)
    assert name == "hostile" or sizes
    boxes = ask(
        "return [...document.querySelectorAll('svg')].map(s => s.getBoundingClientRect()).map(b => [b.width, b.height])"
    )
    assert boxes
    assert all(w > 100 and h > 60 for w, h in boxes)
    background = ask("return getComputedStyle(document.body).backgroundColor")
    assert (max(map(int, background[4:-1].split(","))) < 60) == dark
    assert browser.get_log("browser") == []


def test_what_does_not_fit_is_stacked_or_says_that_it_scrolls_and_again_at_another_width(browser, tmp_path):
    made = Page("t", headline="h")
    section = made.section("one", "One")
    columns = [Column(f"c{k}", f"a heading of {k}") for k in range(12)]
    section.table(columns, [{f"c{k}": "x" * 20 for k in range(12)}])
    section.details("many").table(columns, [{f"c{k}": "x" * 20 for k in range(12)}] * 9)
    path = made.write(tmp_path / "page.html")
    ask = browser.execute_script
    classes = "return [...document.querySelectorAll('table')].map((t) => [t.className, t.parentElement.className])"
    opened(browser, path, 390)
    assert cut_off(browser) == []
    assert ask(classes) == [["stacked", "scroll cells"], ["", "scroll cells more"]]
    wide = {"width": 6000, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", wide)
    ask("document.body.style.maxWidth = 'none'")
    ask("dispatchEvent(new Event('resize'))")
    assert cut_off(browser) == []
    assert ask(classes) == [["", "scroll cells"], ["", "scroll cells"]]


def test_theme_and_sorting_work_and_text_in_figures_follows(browser, pages):
    opened(browser, pages["report"], 1280)
    ask = browser.execute_script
    colour = "return getComputedStyle(document.querySelector('svg text')).fill"
    before = ask(colour)
    ask("document.getElementById('theme').click()")
    assert ask("return document.documentElement.dataset.theme") == "dark"
    assert ask(colour) != before
    ask("document.querySelector('#classes th:nth-child(2) button').click()")
    values = ask("return [...document.querySelectorAll('#classes tbody tr')].map(r => r.cells[1].dataset.sort ?? null)")
    known = [float(v) for v in values if v is not None]
    assert known == sorted(known)
    assert values[len(known) :] == [None] * (len(values) - len(known))  # absent ones last


def test_it_prints(browser, pages, tmp_path):
    opened(browser, pages["report"], 1280, dark=True)
    printed = browser.execute_cdp_cmd("Page.printToPDF", {"printBackground": True})
    assert base64.b64decode(printed["data"]).startswith(b"%PDF")
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    assert browser.execute_script("return getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    browser.save_screenshot(str(tmp_path / "print.png"))
    assert Image.open(tmp_path / "print.png").convert("L").getextrema()[1] == 255
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
