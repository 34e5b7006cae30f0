"""Opens pages in Chromium, and checks what must hold for every report."""

import re
import shutil
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn
from playwright.sync_api import Browser, Dialog, Locator, Page, expect, sync_playwright
from starlette.applications import Starlette

from gsec_core.report.pages import MAX_INLINE, MAX_LISTED

PATIENCE = 120_000
"""Milliseconds that a page may take. Playwright's own 5 s for an expectation are too few for a machine that is busy with other tests."""

expect.set_options(timeout=PATIENCE)


@contextmanager
def chromium() -> Iterator[Browser]:
    """The system's Chromium, without a window. A machine that has none fails."""
    path = shutil.which("chromium")
    assert path, "no chromium on the path: install Debian's package chromium"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"], timeout=PATIENCE)
        yield browser
        browser.close()


@contextmanager
def serving(application: Starlette) -> Iterator[str]:
    """A server of this process. Yields its URL."""
    listening = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(application, log_config=None))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    server.should_exit = True
    thread.join(60)


@contextmanager
def watched(
    browser: Browser, inside: str, *, width: int = 1280, height: int = 900, dark: bool = False, scripts: bool = True, touch: bool = False
) -> Iterator[Page]:
    """A new page. Fails at the end if it logged an error, opened a dialog, or requested anything whose address does not begin with ``inside``."""
    context = browser.new_context(
        viewport={"width": width, "height": height},
        color_scheme="dark" if dark else "light",
        java_script_enabled=scripts,
        has_touch=touch,
        reduced_motion="reduce",
    )
    context.set_default_timeout(PATIENCE)
    page, wrongs = context.new_page(), []

    def dismiss(dialog: Dialog) -> None:
        wrongs.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    page.on("console", lambda message: wrongs.append(f"error on the console: {message.text}") if message.type == "error" else None)
    page.on("pageerror", lambda error: wrongs.append(f"uncaught: {error}"))
    page.on("dialog", dismiss)
    page.on("request", lambda request: None if request.url.startswith(("data:", inside)) else wrongs.append(f"request: {request.url[:200]}"))
    yield page
    context.close()
    assert not wrongs, "\n".join(wrongs)


@contextmanager
def opened(browser: Browser, path: Path, **window: Any) -> Iterator[Page]:
    """A page of a report, which may request nothing outside the report's folder; see `watched`."""
    path = path.resolve()
    folder = path.parents[1] if path.parent.name == "clusters" else path.parent
    with watched(browser, f"{folder.as_uri()}/", height=800, **window) as page:
        page.goto(path.as_uri())
        yield page


def check_report(browser: Browser, index: Path, clusters: int) -> None:
    """Check every interactive part of a report of ``clusters`` clusters: search, sorting, map, keyboard and galleries."""
    with opened(browser, index) as page:
        listed = min(clusters, MAX_LISTED)
        expect(page.locator("h1")).to_contain_text(f"in {clusters:,} cluster")
        expect(page.locator("#rows tr")).to_have_count(listed)
        check_search(page)
        check_sorting(page)
        check_pointing(page)
        check_keys(page)
        check_galleries(page, clusters)
    for dark in (False, True):
        with opened(browser, index, width=360, dark=dark) as page:
            assert overflow(page) <= 0


def check_search(page: Page) -> None:
    """The search field hides rows that do not contain all words, and shows all rows again after it is cleared."""
    rows, field = page.locator("#rows tr:visible"), page.get_by_role("searchbox")
    every = rows.count()
    last = page.locator("#rows tr").last
    number, name = last.get_attribute("data-cluster"), last.locator(".name").inner_text()
    field.fill(f"#{number}")
    expect(page.locator(f"#row-{number}")).to_be_visible()
    assert 1 <= rows.count() <= every
    field.fill(name.upper())
    expect(page.locator(f"#row-{number}")).to_be_visible()
    assert all(word in row.lower() for row in rows.all_inner_texts() for word in name.lower().split())
    expect(page.locator("#match-count")).to_have_text(f"{rows.count():,} of {every:,} match")
    field.fill("no cluster is called so")
    expect(rows).to_have_count(0)
    expect(page.locator("#gallery-list article:visible")).to_have_count(0)
    field.press("Escape")
    expect(rows).to_have_count(every)


def check_sorting(page: Page) -> None:
    """Each click on a heading sorts the rows by its column, the second click in the opposite order."""
    for column in ("Name", "Description", "Terms", "Size", "Share", "Confidence", "Cohesion", "Separation", "Agreement", "No."):
        heading = page.locator("#table thead th").filter(has=page.get_by_role("button", name=column, exact=True))
        for _ in range(2):
            heading.get_by_role("button").click()
            order = heading.get_attribute("aria-sort")
            assert order in ("ascending", "descending")
            values = _column(page, heading)
            there = [value for value in values if value is not None]
            assert values[: len(there)] == there, "rows without a value must come last"
            assert there == sorted(there, reverse=order == "descending")
        expect(page.locator("#table th[aria-sort]")).to_have_count(1)
    heading.get_by_role("button").click()


def check_pointing(page: Page) -> None:
    """The map has coloured points, and shows the image under the pointer with its name and thumbnail."""
    x, y = coloured_point(page)
    page.mouse.move(x, y)
    tip = page.locator("#map-tip")
    expect(tip).to_be_visible()
    expect(tip.locator("#map-tip-facts")).to_contain_text(re.compile(r"No\. \d+ · confidence"))
    assert tip.locator("#map-tip-name").inner_text()
    assert tip.locator("#map-tip-uri").inner_text()
    assert thumbnail_colours(page) > 3
    page.mouse.move(1, 1)
    expect(tip).to_be_hidden()


def check_keys(page: Page) -> None:
    """The map by keyboard: Tab reaches it, arrows step through its images, Escape hides the image, Enter opens the cluster's gallery."""
    page.locator("[data-zoom=reset]").focus()
    page.keyboard.press("Tab")
    expect(page.locator("#map-canvas")).to_be_focused()
    page.keyboard.press("ArrowRight")
    tip = page.locator("#map-tip")
    expect(tip).to_be_visible()
    said = set()
    for key in ("ArrowRight", "ArrowUp", "ArrowLeft", "ArrowLeft", "ArrowDown"):
        page.keyboard.press(key)
        said.add(tip.locator("#map-tip-uri").inner_text())
    assert len(said) > 1 or page.evaluate("JSON.parse(document.getElementById('map-data').textContent).x.length") < 5
    page.keyboard.press("Escape")
    expect(tip).to_be_hidden()
    page.keyboard.press("ArrowRight")
    target = tip.locator("#map-tip-name").get_attribute("href")
    assert target
    page.keyboard.press("Enter")
    page.wait_for_url(f"**/*{target}")
    if "#" not in target:
        page.go_back()


def check_galleries(page: Page, clusters: int) -> None:
    """Each listed cluster has a gallery, in the index or on a page that links to its neighbours and back to the index."""
    if clusters <= MAX_INLINE:
        expect(page.locator("#gallery-list article")).to_have_count(clusters)
        for picture in page.locator("#gallery-list img").all()[:40]:
            assert loaded(picture)
        return
    index = page.url
    page.locator("#rows .name a").first.click()
    first = page.locator("h1").inner_text()
    pictures = page.locator(".gallery img").all()
    assert all(loaded(picture) for picture in pictures)
    page.get_by_role("link", name="Next").first.click()
    assert page.url.endswith("/clusters/00001.html")
    page.get_by_role("link", name="Previous").first.click()
    expect(page.locator("h1")).to_have_text(first)
    page.get_by_role("link", name="All clusters").first.click()
    expect(page.locator("#row-0")).to_be_in_viewport()
    assert page.url.startswith(index.partition("#")[0])


def coloured_point(page: Page) -> tuple[float, float]:
    """The position of a coloured pixel of the map in the viewport. Fails if the map has none."""
    page.locator("#map-canvas").scroll_into_view_if_needed()
    found: list[float] | None = page.locator("#map-canvas").evaluate(
        """async canvas => {
            await new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)));
            const { data, width } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
            const places = [];
            for (let i = 0; i < data.length; i += 4) {
                const [r, g, b, a] = data.slice(i, i + 4);
                if (a > 150 && Math.max(r, g, b) - Math.min(r, g, b) > 40) places.push(i / 4);
            }
            if (!places.length) return null;
            const place = places[places.length >> 1], box = canvas.getBoundingClientRect();
            return [box.left + place % width * box.width / width, box.top + Math.floor(place / width) * box.width / width];
        }"""
    )
    assert found, "the map has no coloured pixel"
    return found[0], found[1]


def drawn(page: Page) -> str:
    """The picture that the map shows once it has drawn all pending changes."""
    shows: str = page.locator("#map-canvas").evaluate(
        """async canvas => {
            for (let frame = 0; frame < 4; frame++) await new Promise(requestAnimationFrame);
            return canvas.toDataURL();
        }"""
    )
    return shows


def thumbnail_colours(page: Page) -> int:
    """How many different colours the thumbnail at the map's pointer has, once it is drawn."""
    count: int = page.locator("#map-tip canvas").evaluate(
        """async canvas => {
            const colours = new Set(), until = performance.now() + 60_000;
            while (performance.now() < until && colours.size < 2) {
                await new Promise(requestAnimationFrame);
                const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
                for (let i = 0; i < data.length; i += 4) if (data[i + 3]) colours.add(data[i] << 16 | data[i + 1] << 8 | data[i + 2]);
            }
            return colours.size;
        }"""
    )
    return count


def loaded(picture: Locator) -> bool:
    """Whether an image element, once in view, shows something."""
    picture.scroll_into_view_if_needed()
    shows: bool = picture.evaluate("async image => { await image.decode(); return image.naturalWidth > 0; }")
    return shows


def overflow(page: Page) -> int:
    """By how many pixels the page is wider than the window."""
    pixels: int = page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
    return pixels


def mark_scrolled(box: Locator) -> None:
    """Give an element the attribute ``data-scrolled`` as soon as it scrolls.

    The pages forbid ``eval``, which Playwright's ``wait_for_function`` needs whenever it has to look twice.
    """
    box.evaluate(
        """box => {
            const target = box === document.documentElement ? document : box;
            target.addEventListener("scroll", () => { box.dataset.scrolled = ""; }, { once: true });
        }"""
    )


def _column(page: Page, heading: Locator) -> list[Any]:
    """The values by which the rows are sorted: numbers, or the ranks of words as Intl compares them; None for empty cells."""
    values: list[Any] = page.evaluate(
        """column => {
            const cells = Array.from(document.getElementById("rows").rows, row => row.cells[column]);
            if (cells.some(cell => cell.classList.contains("number") || cell.dataset.value !== undefined))
                return cells.map(cell => cell.dataset.value === undefined ? null : Number(cell.dataset.value));
            const words = cells.map(cell => cell.textContent.trim() || null);
            const distinct = [...new Set(words.filter(Boolean))].sort(new Intl.Collator("en", { numeric: true, sensitivity: "base" }).compare);
            return words.map(word => word === null ? null : distinct.indexOf(word));
        }""",
        heading.evaluate("heading => heading.cellIndex"),
    )
    return values
