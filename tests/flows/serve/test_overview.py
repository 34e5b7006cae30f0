"""The front page of the report server."""

import re
import shutil
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from flows.serve import overview
from gsec_core.store import Store

from .examples import Shown, edited, rows, served


def test_the_front_page_shows_every_run_with_its_state(shown: Shown, client: TestClient) -> None:
    page = client.get("/").text
    found = rows(page)
    kinds = (shown.finished, shown.unfinished, shown.failed, shown.assigned, shown.counting)
    finished, unfinished, failed, assigned, counting = (found[context.run.id[:12]] for context in kinds)
    assert len(found) == 5
    assert "published</span>" in finished
    assert "1 rejected" in finished
    assert f'href="{shown.report}"' in finished
    assert re.search(r"encode (\d)/\1, baseline (\d)/\2", unfinished)
    assert 'class="state unfinished"' in unfinished
    assert "published</span>" not in unfinished
    assert "href" not in unfinished
    assert 'class="state failed"' in failed
    assert "finished</span>" in assigned
    assert '<td class="number">4' in assigned
    assert "not published" not in assigned, "its images are assigned to published clusters; there is nothing to publish"
    assert f'href="{shown.report}"' in assigned
    assert f"assigns images to the clusters of {shown.finished.run.id[:12]}" in assigned
    assert "finds the number of clusters" in counting
    assert "not begun</span>" in counting


def test_hostile_texts_are_shown_escaped_and_without_secrets(shown: Shown, client: TestClient) -> None:
    page = client.get("/").text
    assert "No space left on &lt;b&gt;device&lt;/b&gt; &lt;/span&gt;&lt;script&gt;" in page
    assert r"\u202e" in page
    for bad in ("<script", "<b>", "\u202e", "\x00", "secret", "token=1"):
        assert bad not in page.partition("<body>")[2], bad


def test_the_front_page_agrees_with_gsec_status(shown: Shown, client: TestClient) -> None:
    from gsec_core.results import status

    found = rows(client.get("/").text)
    for row in status.runs(shown.store):
        assert f">{row['state']}</span>" in found[row["run"][:12]]


def test_older_runs_are_on_pages_of_their_own(shown: Shown, monkeypatch: pytest.MonkeyPatch, client: TestClient) -> None:
    everything = list(rows(client.get("/").text))
    assert "Older runs" not in client.get("/").text
    monkeypatch.setattr(overview, "MOST_RUNS", 2)
    address, seen = "/", []
    while address:
        page = client.get(address).text
        assert "5 runs</h1>" in page
        assert ('id="published"' in page) == (address == "/")
        seen += rows(page)
        older = re.search(r'href="([^"]*)" rel="next"', page)
        address = older[1] if older else ""
    assert seen == everything
    assert 'href="/?page=2" rel="prev"' in page
    for bad in ("0", "-1", "x", "4", "9999999", "1%0a", ""):
        assert client.get(f"/?page={bad}").status_code == 404, bad


def test_a_run_finished_after_the_last_publication_and_not_published_is_marked_with_the_reasons(shown: Shown, copied: Path) -> None:
    mark, run = "not published</span>", copied / "runs" / shown.finished.run.id
    publication = copied / "published" / "nightly" / "00000001.json"
    with served(Store.open(str(copied))) as client:
        assert mark not in client.get("/").text, "a published run must not be marked"
    edited(publication, run_id=shown.unfinished.run.id)
    with served(Store.open(str(copied))) as client:
        assert mark not in client.get("/").text, "a run before the last publication must not be marked"
    why = {"warnings": ["too many <b>rejects</b>"], "why_not": "look at it first"}
    edited(run / "result.json", at="2999-01-01T00:00:00.000+00:00", published=False, **why)
    with served(Store.open(str(copied))) as client:
        assert [id for id, row in rows(client.get("/").text).items() if mark in row] == [shown.finished.run.id[:12]]
        assert "too many &lt;b&gt;rejects&lt;/b&gt;" in rows(client.get("/").text)[shown.finished.run.id[:12]], "the mark must give the reasons"
        assert "look at it first" in rows(client.get("/").text)[shown.finished.run.id[:12]]
    edited(publication, run_id=shown.finished.run.id)
    with served(Store.open(str(copied))) as client:
        assert "too many" in client.get("/").text
        assert "look at it first" not in client.get("/").text, "after it was published, the reason against must not be shown"
    shutil.rmtree(copied / "published")
    with served(Store.open(str(copied))) as client:
        assert mark in rows(client.get("/").text)[shown.finished.run.id[:12]]


def test_a_new_store_is_shown_as_empty_and_not_created(tmp_path: Path) -> None:
    with served(Store.open(str(tmp_path / "new"))) as client:
        assert "None yet" in client.get("/").text
        assert client.get("/metrics").status_code == 200
        assert client.get("/health").text == "ok\n"
    assert not (tmp_path / "new").exists()
