"""Pages in a browser: they render, load nothing, fit a phone, can be read in light and dark, and on paper.

For this there must be Chromium (or Chrome): on the path, or named by the variable SHORTFLOW_CHROMIUM.
"""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from reports import made_diagnosis, made_run, made_study
from shortflow.config import recipe_named
from shortflow.data.toys import toy
from shortflow.diagnose import Looking, diagnose_data, diagnose_run
from shortflow.report import write_report
from shortflow.theory import exact_flow
from test_diagnose_data import clusters
from test_diagnose_run import exact, model_of
from test_report_files import drawn

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

PAGES = ("run", "study", "several", "data", "exact")
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "microsoft-edge")
CHROMIUM = os.environ.get("SHORTFLOW_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason=f"no browser on the path ({', '.join(NAMES)})")

# Every text with its colour and that behind it: the lowest contrast ratio (WCAG 2) and where it is. Words in the cells
# of maps, in black or white on the colour of the cell, have a test of their own.
CONTRAST = """() => {
  const parts = text => text.match(/[\\d.]+/g).map(Number);
  const linear = c => c <= .04045 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4;
  const light = ([r, g, b]) => [r, g, b].map(c => linear(c / 255))
    .reduce((sum, c, k) => sum + c * [.2126, .7152, .0722][k], 0);
  const behind = element => {
    for (let at = element; at; at = at.parentElement) {
      const found = parts(getComputedStyle(at).backgroundColor);
      if (found.length === 3 || found[3] === 1) return found;
    }
    return [255, 255, 255];
  };
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  let worst = [99, ""], count = 0;
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement, style = getComputedStyle(element);
    if (!walker.currentNode.data.trim() || !element.getClientRects().length) continue;
    if (["TITLE", "STYLE", "title", "desc"].includes(element.tagName)) continue;
    const svg = element instanceof SVGElement;
    const ink = parts(svg ? style.fill : style.color);
    if (svg && (ink.every(c => c === 0) || ink.every(c => c === 255))) continue;
    const [a, b] = [light(ink), light(behind(element))].sort((x, y) => y - x);
    const ratio = (a + .05) / (b + .05);
    count += 1;
    if (ratio < worst[0]) worst = [ratio, element.tagName + " " + walker.currentNode.data.trim().slice(0, 40)];
  }
  return [...worst, count];
}"""


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run with everything, a study with many variants, two runs side by side, and diagnoses as they are made."""
    folder = tmp_path_factory.mktemp("pages")
    run, other = drawn(made_run(folder / "run", lines=4)), made_run(folder / "other", "imm", lines=4)
    made_diagnosis(run / "diagnosis.json", "run")
    study = made_study(folder / "study", variants=12)
    looking = Looking(rows=32, flow_rows=3)
    diagnose_data(clusters(), recipe_named("esc"), batch=32, looking=looking).write(folder / "data.json")
    gauss = toy("gaussian", "train", 500)
    model = model_of(exact_flow(exact(gauss)), gauss)
    diagnose_run(model, gauss, toy("gaussian", "test", 500), looking=looking).write(folder / "exact.json")
    return {
        "data": write_report([folder / "data.json"], folder / "data.html"),
        "exact": write_report([folder / "exact.json"], folder / "exact.html"),
        "run": write_report([run], folder / "run.html"),
        "study": write_report([study], folder / "study.html"),
        "several": write_report([run, other], folder / "several.html"),
    }


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        # Without the sandbox, which containers often forbid: the pages are ours.
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


def opened(browser: Any, path: Path, **settings: Any) -> tuple[Any, list[str]]:
    """A page that has loaded, and everything that went wrong or was asked for."""
    page, odd = browser.new_page(**settings), []
    page.on("console", lambda message: odd.append(f"console: {message.text}"))
    page.on("pageerror", lambda error: odd.append(f"error: {error}"))
    page.on("requestfailed", lambda request: odd.append(f"failed: {request.url[:80]}"))
    page.on("request", lambda request: odd.append(f"request: {request.url[:80]}"))
    page.goto(path.as_uri())
    page.wait_for_load_state("load")
    return page, [each for each in odd if not each.startswith(("request: data:", f"request: {path.as_uri()}"))]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", PAGES)
def test_a_page_renders_and_can_be_read(name: str, scheme: str, pages: dict[str, Path], browser: Any) -> None:
    page, odd = opened(browser, pages[name], color_scheme=scheme, viewport={"width": 1200, "height": 900})
    assert odd == []
    assert page.title()
    widths = page.evaluate("[...document.images].map(image => image.naturalWidth)")
    assert all(width > 0 for width in widths)
    assert len(widths) == {"run": 7, "several": 7 + 3 + 2}.get(name, 0)
    sizes = page.evaluate("[...document.querySelectorAll('figure > svg')].map(e => e.getBoundingClientRect().height)")
    assert len(sizes) >= 4
    assert min(sizes) > 50
    page.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
    ratio, where, count = page.evaluate(CONTRAST)
    assert count > 200
    assert ratio >= 4.5, where
    paper = page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
    assert paper == {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 23, 27)"}[scheme]
    page.close()


@pytest.mark.parametrize("name", PAGES)
def test_a_page_fits_a_phone(name: str, pages: dict[str, Path], browser: Any) -> None:
    page, odd = opened(browser, pages[name], viewport={"width": 360, "height": 740}, is_mobile=True, has_touch=True)
    assert odd == []
    page.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    assert page.evaluate("parseFloat(getComputedStyle(document.body).fontSize)") >= 16
    page.close()


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_to_what_they_name(name: str, pages: dict[str, Path], browser: Any) -> None:
    page, _ = opened(browser, pages[name])
    links = page.query_selector_all("nav a")
    assert len(links) > 2
    assert page.evaluate("[...document.links].every(link => link.hash && document.querySelector(link.hash))")
    for link in links:
        link.click()
        target = page.evaluate("document.querySelector(':target').textContent")
        assert target == link.text_content()
    page.close()


def test_motion_moves_stops_and_is_left_out_where_it_is_unwelcome(pages: dict[str, Path], browser: Any) -> None:
    point = "document.querySelector('.motion .mover:last-child').getBoundingClientRect().x"
    state = "getComputedStyle(document.querySelector('.mover')).animation"
    page, _ = opened(browser, pages["run"], reduced_motion="no-preference")
    count = page.evaluate("document.getAnimations().length")
    assert count == 2 * (5 + 1)  # points and a bar in each of two panels
    page.evaluate("document.getAnimations().forEach(each => each.currentTime = 0)")
    start = page.evaluate(point)
    page.evaluate("document.getAnimations().forEach(each => each.currentTime = 7900)")
    assert abs(page.evaluate(point) - start) > 1
    page.check(".pause")
    assert "paused" in page.evaluate(state)
    page.close()
    page, _ = opened(browser, pages["run"], reduced_motion="reduce")
    assert page.evaluate("document.getAnimations().length") == 0
    assert page.evaluate("getComputedStyle(document.querySelector('.pause')).display") == "none"
    page.close()


@pytest.mark.parametrize("name", ["run", "study", "data"])
def test_a_page_prints(name: str, pages: dict[str, Path], browser: Any) -> None:
    """Dark mode stays on the screen; what is folded up is either a file that is printed or left out."""
    page, _ = opened(browser, pages[name], color_scheme="dark", viewport={"width": 720, "height": 900})
    page.emulate_media(media="print", color_scheme="dark")
    assert page.evaluate("getComputedStyle(document.documentElement).backgroundColor") == "rgb(255, 255, 255)"
    assert page.evaluate("document.documentElement.scrollWidth") <= 720
    assert page.evaluate("document.getAnimations().length") == 0
    content = page.pdf(format="A4")
    assert content.startswith(b"%PDF")
    assert len(content) > 20_000
    page.close()
