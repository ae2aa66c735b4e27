"""The report's page in a real browser, with the network off: whole, legible, printable."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from made_up import accounted, run, told

from clsearch.report import write_report

EVIL = "<script>document.title='owned'</script>"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report on two runs, one with a chain that ended, with a hostile label among the reasons."""
    records, results = accounted(run(["clnp", "ewc"], 2, seeds=2, end=("ewc", 1, 2)))
    records = [
        r if r.status != "FAILED" else type(r)(**{**vars(r), "reason": EVIL}) for r in records
    ]
    runs = [told((records, results), 2, "one"), told(run(["mas"], 3), 3, "two")]
    folder = tmp_path_factory.mktemp("page") / "report"
    return write_report(folder, runs)[0]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no Chromium here: apt-get install chromium")
    sync_api = pytest.importorskip("playwright.sync_api", reason="pip install -e '.[dev]'")
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_api.sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=chromium, args=arguments)
        yield launched
        launched.close()


@pytest.fixture(params=[1280, 390], ids=["desktop", "phone"])
def opened(
    request: pytest.FixtureRequest, browser: Any, page: Path
) -> Iterator[tuple[Any, list[str]]]:
    """The page from its file, offline, and what the browser complained about or asked for."""
    context = browser.new_context(viewport={"width": request.param, "height": 800}, offline=True)
    tab, complaints, here = context.new_page(), [], ("data:", "file:")
    tab.on("console", lambda message: complaints.append(message.text))
    tab.on("pageerror", lambda error: complaints.append(str(error)))
    tab.on("request", lambda asked: asked.url[:5] in here or complaints.append(asked.url))
    tab.goto(page.as_uri())
    yield tab, complaints
    context.close()


def test_it_loads_whole_and_fits_the_screen(opened: tuple[Any, list[str]], page: Path) -> None:
    tab, complaints = opened
    assert complaints == []
    assert tab.title() == "one, two · clsearch report"
    images = tab.evaluate(
        "[...document.images].map(i => [i.naturalWidth, i.clientWidth, i.alt.length])"
    )
    assert len(images) == len(list((page.parent / "figures").glob("*.svg")))
    assert all(natural > 100 and shown > 300 and alt > 20 for natural, shown, alt in images)
    assert tab.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    assert EVIL in tab.inner_text("main")
    for link in tab.query_selector_all("nav a"):
        assert tab.query_selector(link.get_attribute("href")) is not None


def test_nothing_on_it_is_cut_off_without_a_way_to_see_it(opened: tuple[Any, list[str]]) -> None:
    """What is wider than the screen scrolls inside its own box."""
    tab, _ = opened
    outside = tab.evaluate(
        """[...document.querySelectorAll('main *')].filter(e => !e.closest('.scroll')
           && e.getBoundingClientRect().right > window.innerWidth + 1).map(e => e.outerHTML)"""
    )
    assert outside == []


def test_no_script_runs_and_nothing_can_be_loaded(browser: Any, page: Path, tmp_path: Path) -> None:
    """Even where a script or an address had got in, the page's own policy forbids them."""
    hostile = page.read_text().replace("</main>", f"{EVIL}<img src='http://127.0.0.1:9/x'></main>")
    (tmp_path / "hostile.html").write_text(hostile)
    context = browser.new_context()
    tab = context.new_page()
    refused: list[str] = []
    tab.on("console", lambda message: refused.append(message.text))
    tab.goto((tmp_path / "hostile.html").as_uri())
    assert tab.title() == "one, two · clsearch report"
    assert len(refused) >= 2
    assert all("Content Security Policy" in text for text in refused)
    context.close()


def test_it_works_with_scripts_off_and_prints(browser: Any, page: Path) -> None:
    context = browser.new_context(java_script_enabled=False, offline=True)
    tab = context.new_page()
    tab.goto(page.as_uri())
    printed = tab.pdf(format="A4")
    assert printed.startswith(b"%PDF-")
    assert printed.count(b"/Type /Page\n") >= 5
    context.close()
