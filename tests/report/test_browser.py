"""The page in a real browser."""

import base64
import json
from pathlib import Path

import pytest
from PIL import Image

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
@pytest.mark.parametrize("width", [360, 1280])
@pytest.mark.parametrize("dark", [False, True])
def test_it_opens_from_the_disk_whole_and_silent(browser, pages, name, width, dark):
    assert opened(browser, pages[name], width, dark) == []
    ask = browser.execute_script
    ask("for (const part of document.querySelectorAll('details')) part.open = true")
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
