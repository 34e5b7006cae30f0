"""What the server reads again for each page, and what it remembers."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flows.serve import known
from flows.serve.known import Remembered
from gsec_core import pipeline
from gsec_core.stages.base import Context
from gsec_core.store import Run, Store

from .examples import Shown, edited, figures, rows, served, worked_on


def test_finished_runs_are_read_once_and_tables_never(shown: Shown, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    kind = type(shown.store.files)

    def noted(name: str, really: Callable[[Any, str], Any]) -> Callable[[Any, str], Any]:
        def method(self: Any, path: str) -> Any:
            asked.append(f"{name} {path}")
            return really(self, path)

        return method

    for name in ("read", "open", "files", "directories"):
        monkeypatch.setattr(kind, name, noted(name, getattr(kind, name)))
    with served(shown.store) as client:
        pages = [client.get("/"), client.get("/metrics")]
        assert not [one for one in asked if "parquet" in one]
        assert [one for one in asked if one.startswith("read") and one.endswith("request.json")]
        asked.clear()
        assert [client.get("/").text, client.get("/metrics").text] == [page.text for page in pages]
        assert not [one for one in asked if one.startswith(("read runs", "open runs"))]
        for context in (shown.finished, shown.assigned):
            assert not [one for one in asked if context.run.id in one]


def test_runs_of_all_stages_are_read(shown: Shown, copied: Path) -> None:
    edited(copied / "runs" / shown.unfinished.run.id / "request.json", stages=[stage.name for stage in pipeline.ALL_STAGES])
    with served(Store.open(str(copied))) as client:
        page = client.get("/").text
        assert "cannot be read" not in page
        assert shown.unfinished.run.id[:12] in rows(page)
        assert client.get(f"/api/v1/runs/{shown.unfinished.run.id}").status_code == 200


def test_new_changed_and_removed_runs_are_seen(shown: Shown, copied: Path) -> None:
    store = Store.open(str(copied))
    unfinished = Context.of(Run(store.files, shown.unfinished.run.id), shown.unfinished.config.model_copy(update={"store": str(copied)}))
    with served(store) as client:
        before = rows(client.get("/").text)[unfinished.run.id[:12]]
        with pytest.raises(RuntimeError), unfinished.run.attempt({"stage": "describe"}):
            raise RuntimeError("stopped")
        assert "prototypes" not in before
        worked_on(unfinished, "prototypes")
        after = rows(client.get("/").text)[unfinished.run.id[:12]]
        assert re.search(r"prototypes (\d+)/\1", after)
        assert "stopped" not in after, "an earlier failure must not be shown after the newest attempt"
        shutil.rmtree(copied / "runs" / shown.finished.run.id)
        assert shown.finished.run.id[:12] not in rows(client.get("/").text)
        shutil.rmtree(copied / "published")
        again, _ = pipeline.request(shown.finished.config.model_copy(update={"store": str(copied)}))
        assert again.id == shown.finished.run.id
        assert "not begun" in rows(client.get("/").text)[again.id[:12]], "the server must forget what it remembered of the removed run"


def test_new_attempts_on_a_finished_run_are_seen_after_a_while(copied: Path, shown: Shown, monkeypatch: pytest.MonkeyPatch) -> None:
    store, name = Store.open(str(copied)), ("gsec_attempts_failed", shown.finished.corpus.name, "align")
    with served(store) as client:
        assert figures(client).get(name, 0) == 0
        with pytest.raises(RuntimeError), Run(store.files, shown.finished.run.id).attempt({"stage": "align"}):
            raise RuntimeError("the disk again")
        assert figures(client).get(name, 0) == 0
        monkeypatch.setattr(known, "SETTLED_SECONDS", 0)
        assert figures(client)[name] == 1


def test_of_two_concurrent_listings_the_newer_one_is_remembered(shown: Shown, copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One request lists a run; before the list is remembered, the run finishes and another request sees it."""
    store, directory = Store.open(str(copied)), f"runs/{shown.unfinished.run.id}"
    files, kind = Remembered(store.files), type(store.files)
    really = kind.files

    def slow(self: Any, path: str) -> set[str]:
        names = really(self, path)
        monkeypatch.setattr(kind, "files", really)
        (copied / directory / "result.json").write_text("{}")
        files.settle(directory)
        return names

    monkeypatch.setattr(kind, "files", slow)
    assert "result.json" in files.files(directory)
    assert "result.json" in files.files(directory)
