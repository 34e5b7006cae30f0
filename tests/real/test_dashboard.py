"""The artifacts of a run on Prefect's dashboard, in a real browser."""

import json
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Browser, expect

from ..command import SMALL, gsec
from ..flows.test_hostile import CAPTIONS, write_hostile
from .browser import PATIENCE


def test_descriptions_with_markup_are_shown_as_text_on_the_dashboard(browser: Browser, server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = write_hostile(tmp_path)
    monkeypatch.setenv("PREFECT_API_URL", server)
    captioner = ("--captioner", config["describe"]["captioner"], "--set", "max_rejects=1")
    gsec("run", config["source"], "-k", "2", "--store", config["store"], *captioner, *SMALL, home=tmp_path / "prefect")
    [table] = httpx.post(f"{server}/artifacts/filter", json={"artifacts": {"key": {"any_": ["clusters"]}}}, timeout=60).json()
    said = {row["description"] for row in json.loads(table["data"])}
    assert {text.replace("\u2060", "") for text in said} <= {*CAPTIONS}
    page = browser.new_page()
    page.set_default_timeout(PATIENCE)
    wrongs: list[str] = []
    page.on("dialog", lambda dialog: (wrongs.append(dialog.message), dialog.dismiss()))
    page.on("request", lambda request: wrongs.append(request.url) if request.url.endswith(("x.png", "/x")) else None)
    page.goto(f"{server.removesuffix('/api')}/artifacts/artifact/{table['id']}")
    for text in said:
        expect(page.get_by_text(text, exact=True).first).to_be_visible()
    expect(page.locator("td img, td a")).to_have_count(0)
    assert not wrongs
    page.close()
