"""The report server's pages in a real browser."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect

from flows.serve.app import application
from gsec_core.results import finishing
from gsec_core.stages.base import Context
from gsec_core.store import Store

from ..pictures import assign_images, cluster, settings, write_pictures
from ..stages.steps import STAGES, run_stages
from .browser import PATIENCE, check_galleries, check_keys, check_pointing, check_search, check_sorting, coloured_point, overflow, serving, watched

NAME = "a-pipeline-with-a-long-name-as-people-give"

ERROR = "OSError: [Errno 28] No space left on device; make room on its disk: '/data/a/folder/with/a/rather/long/name/and/no/place/to/break/it.parquet'"


@dataclass
class Served:
    """A running server for a store with runs in every state."""

    url: str
    finished: Context


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("served")
    images = write_pictures(folder / "in", range(20))
    (images / "bad.jpg").write_text("no image")
    config = settings(images, folder / "store", pipeline=NAME, clusters=3, max_rejects=1)
    context, _, _ = cluster(config)
    assert finishing.finish(context)["published"]
    run_stages(config.model_copy(update={"clusters": 4}), *STAGES[:2])
    failed = run_stages(config.model_copy(update={"clusters": 5}), *STAGES[:2])
    with pytest.raises(OSError, match="No space"), failed.run.attempt({"stage": "prototypes"}):
        raise OSError(ERROR.removeprefix("OSError: "))
    assign_images(context, settings(write_pictures(folder / "new", range(30, 34)), folder / "store"))
    with serving(application([Store.open(config.store)])) as url:
        yield Served(url, context)


@contextmanager
def opened(browser: Browser, url: str, **window: Any) -> Iterator[Page]:
    """A page as it is served, which may request nothing elsewhere; see `watched`."""
    with watched(browser, url, **window) as page:
        page.goto(url)
        yield page


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [360, 768, 1280])
def test_the_front_page_fits_and_is_readable(browser: Browser, served: Served, width: int, dark: bool, tmp_path: Path) -> None:
    with opened(browser, served.url, width=width, dark=dark) as page:
        page.screenshot(path=tmp_path / "front.png", full_page=True)
        assert overflow(page) <= 0
        assert page.locator("body").evaluate("body => getComputedStyle(body).fontFamily").startswith("system-ui"), (
            "the page's own styles must be allowed by its policy"
        )
        red = int(page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/)[0]"))
        assert (red < 64) == dark
        expect(page.locator(".state.published")).to_have_count(1)
        expect(page.get_by_text(re.compile(r"encode \d+/\d+, refit"))).to_have_count(2)
        expect(page.get_by_text("No space left on device")).to_have_count(1)
        for table in page.locator("table.runs").all():
            for row in table.locator("tbody tr").all():
                for cell in (row.locator("th"), row.locator(".state").first):
                    if cell.count():
                        cell.scroll_into_view_if_needed()
                        box = cell.bounding_box()
                        assert box
                        assert box["x"] >= 0
                        assert box["x"] + box["width"] <= width, "a run and its state must be visible without scrolling sideways"


@pytest.mark.parametrize(("width", "dark"), [(360, True), (1280, False)])
def test_axe_finds_no_accessibility_fault(browser: Browser, served: Served, width: int, dark: bool) -> None:
    with opened(browser, served.url, width=width, dark=dark) as page:
        for path in ("/", "/api/v1/", f"/runs/{served.finished.run.id}/report/index.html"):
            page.goto(served.url + path)
            page.evaluate("for (const fold of document.querySelectorAll('details')) fold.open = true")  # also folds inside closed ones
            found = Axe().run(page, options={"resultTypes": ["violations"]}).response["violations"]
            assert not [(one["id"], [node["html"][:200] for node in one["nodes"][:3]]) for one in found], path


def test_links_of_the_front_page_lead_to_reports(browser: Browser, served: Served) -> None:
    with opened(browser, served.url) as page:
        for link in (page.get_by_role("link", name=NAME, exact=True), page.get_by_role("link", name=served.finished.run.id[:12], exact=True)):
            link.click()
            expect(page.locator("h1")).to_contain_text("20 images in 3 clusters")
            page.go_back()
        assigned = page.locator("tr", has_text="assigns images to").get_by_role("link")
        assigned.click()
        page.wait_for_url(f"**/runs/{served.finished.run.id}/report/index.html")


@pytest.mark.parametrize("width", [360, 1280])
def test_every_interactive_part_of_a_report_works_when_served(browser: Browser, served: Served, width: int) -> None:
    with opened(browser, served.url, width=width) as page:
        page.get_by_role("link", name=served.finished.run.id[:12], exact=True).click()
        expect(page.locator("#rows tr")).to_have_count(3)
        coloured_point(page)
        check_search(page)
        if width > 1000:
            check_sorting(page)
            check_pointing(page)
            check_keys(page)
            check_galleries(page, 3)
        assert overflow(page) <= 0


def test_a_forged_page_in_place_of_a_report_cannot_read_from_the_server(browser: Browser, served: Served) -> None:
    """Its scripts run, as those of reports of any version must, but they get nothing from the server."""
    context = browser.new_context()
    context.set_default_timeout(PATIENCE)
    page = context.new_page()
    said = page.goto(f"{served.url}/runs/{served.finished.run.id}/report/index.html")
    assert said
    headers = {"content-security-policy": said.headers["content-security-policy"]}
    body = "<script>fetch('/').then(() => document.title = 'read', () => document.title = 'kept out')</script>"
    page.route("**/forged", lambda route: route.fulfill(body=body, content_type="text/html", headers=headers))
    page.goto(f"{served.url}/forged")
    expect(page).to_have_title("kept out")
    assert page.evaluate("self.origin") == "null"
    assert page.evaluate("self.open('/')") is None
    context.close()
