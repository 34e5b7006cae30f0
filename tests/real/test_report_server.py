"""The report server's pages in a real browser."""

import re
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvicorn
from playwright.sync_api import Browser, ConsoleMessage, expect

from flows.serve.app import application
from gsec_core import pipeline
from gsec_core.store import Store

from ..pictures import cluster, settings, write_pictures
from ..stages.steps import run_stages
from .browser import overflow


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server of a store with a published run and one that is under way."""
    folder = tmp_path_factory.mktemp("served")
    config = settings(write_pictures(folder / "in", range(20)), folder / "store", pipeline="a-pipeline-with-a-long-name")
    context, _, _ = cluster(config)
    assert pipeline.finish(context)["published"]
    run_stages(config.model_copy(update={"clusters": 3}), *pipeline.STAGES[:2])
    listening = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(application([Store.open(config.store)]), log_config=None))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    server.should_exit = True
    thread.join(30)


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [360, 1280])
def test_the_front_page_leads_to_reports_that_work_as_served(browser: Browser, url: str, width: int, dark: bool, tmp_path: Path) -> None:
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme="dark" if dark else "light")
    page, wrongs = context.new_page(), []

    def listen(message: ConsoleMessage) -> None:
        if message.type == "error":
            wrongs.append(message.text)

    page.on("console", listen)
    page.goto(url)
    assert overflow(page) <= 0
    assert page.locator("body").evaluate("body => getComputedStyle(body).fontFamily").startswith("system-ui"), "its styles are allowed"
    page.screenshot(path=tmp_path / "front.png")
    expect(page.get_by_text("published", exact=True)).to_have_count(1)
    expect(page.get_by_text(re.compile(r"encode \d+/\d+, baseline"))).to_have_count(1)
    page.get_by_role("link", name="a-pipeline-with-a-long-name").click()
    expect(page.locator("h1")).to_contain_text("20 images in 2 clusters")
    page.get_by_role("searchbox").fill("#1")
    expect(page.locator("#rows tr:visible")).to_have_count(1)
    assert not wrongs
    context.close()
