"""Damaged records, and records that an attacker wrote: everything else is still served."""

import shutil
from pathlib import Path

import pytest

from gsec_core.store import Run, Store

from .examples import Shown, edited, figures, rows, served


def damage(kind: str, run: Path) -> None:
    """Damage the records of a run in one of many ways."""
    match kind:
        case "half pruned":
            (run / "request.json").unlink()
        case "half written":
            edited(run / "request.json", created="yesterday")
        case "another shape":
            (run / "request.json").write_text("[]")
        case "hostile corpus":
            edited(run / "request.json", corpus="../<script>")
        case "hostile run":
            edited(run / "request.json", of_run="../../x")
        case "hostile stages":
            edited(run / "request.json", stages=["../x"])
        case "torn result":
            (run / "result.json").write_text('{"images": ')
        case "odd result":
            (run / "result.json").write_text('{"images": 1, "rejected": 0, "missing": 0, "moved": "far", "remarks": 3}')
        case "endless result":
            (run / "result.json").write_text('{"at": "2026-01-01T00:00:00+00:00", "images": 1e999, "rejected": 0, "missing": 0}')
        case "nested result":
            (run / "result.json").write_text("[" * 100_000)
        case "result without a time zone":
            (run / "result.json").write_text('{"at": "0001-01-01T00:00:00", "images": 1, "rejected": 0, "missing": 0}')
        case "torn stage":
            (run / "stage-encode.json").write_bytes(b"\xff\x00")
        case "torn attempt":
            (run / f"attempt-{'0' * 32}-start.json").write_text("{")
            (run / "result.json").unlink(missing_ok=True)


UNREADABLE = ["half written", "another shape", "hostile corpus", "hostile run", "hostile stages"]
"""Kinds of damage after which the request of a run cannot be read."""


@pytest.mark.parametrize("which", ["finished", "unfinished"])
@pytest.mark.parametrize(
    "kind",
    ["half pruned", *UNREADABLE, "torn result", "odd result", "endless result", "nested result", "result without a time zone", "torn stage", "torn attempt"],
)
def test_a_damaged_run_is_reported_and_all_else_is_served(shown: Shown, copied: Path, kind: str, which: str) -> None:
    run: Run = getattr(shown, which).run
    damage(kind, copied / "runs" / run.id)
    with served(Store.open(str(copied))) as client:
        front = client.get("/")
        assert front.status_code == 200
        assert "<script" not in front.text.partition("<body>")[2]
        there = rows(front.text)
        assert shown.failed.run.id[:12] in there
        unread = kind in UNREADABLE
        requested = not unread and kind != "half pruned"
        assert (run.id[:12] in there) == requested
        assert (f"the request of run {run.id} cannot be read" in front.text) == unread
        found = figures(client)
        assert found["gsec_unreadable_records",] == unread
        assert found["gsec_runs", shown.finished.corpus.name, "failed"] == 1
        damaged = requested and not (kind == "torn stage" and which == "finished")
        assert found.get(("gsec_runs", shown.finished.corpus.name, "damaged"), 0) == damaged
        assert (damaged and "cannot be read:" in there.get(run.id[:12], "")) == damaged
        for route in (f"/runs/{run.id}", f"/runs/{run.id}/report/index.html"):
            answer = client.get(route)
            assert answer.status_code in (200, 302, 404, 500)
            assert "A fault in gsec" not in answer.text
            assert "evil" not in answer.headers.get("location", "")


HOSTILE_PUBLICATIONS = {"hostile": {"run_id": "../../../evil"}, "endless": {"generation": float("inf")}, "without a time zone": {"at": "0001-01-01T00:00:00"}}


@pytest.mark.parametrize("bad", ["{", "[]", '{"number": 1}', *HOSTILE_PUBLICATIONS])
def test_a_damaged_publication_is_reported_and_all_else_is_served(shown: Shown, copied: Path, bad: str) -> None:
    path = copied / "published" / "nightly" / "00000001.json"
    if bad in HOSTILE_PUBLICATIONS:
        edited(path, **HOSTILE_PUBLICATIONS[bad])
    else:
        path.write_text(bad)
    (copied / "published" / "Stray <b>").mkdir()
    with served(Store.open(str(copied))) as client:
        front = client.get("/").text
        assert "what pipeline nightly publishes cannot be read" in front
        assert "Stray" not in front
        assert shown.finished.run.id[:12] in rows(front)
        assert figures(client)["gsec_unreadable_records",] == 1
        assert client.get("/published/nightly").status_code == 404


def test_the_open_pages_of_a_run_that_is_pruned_say_that_it_is_gone(shown: Shown, copied: Path) -> None:
    run = shown.finished.run
    with served(Store.open(str(copied))) as client:
        assert client.get(f"/runs/{run.id}/explore").status_code == 200
        assert client.get(f"/runs/{run.id}/report/index.html").status_code == 200
        shutil.rmtree(copied / "runs" / run.id)
        shutil.rmtree(copied / shown.finished.corpus.name)
        pages = ("report/index.html", "images", "map.bin", "duplicates", "explore")
        answers = [client.get(f"{root}/{page}") for root, page in [(f"/runs/{run.id}", page) for page in pages] + [(f"/api/v1/runs/{run.id}", "images")]]
    assert [(answer.status_code, "there is no such run here" in answer.text) for answer in answers] == [(404, True)] * len(answers)


def test_a_published_run_that_is_missing_is_not_found_and_all_else_is_served(shown: Shown, copied: Path) -> None:
    shutil.rmtree(copied / "runs" / shown.finished.run.id)
    with served(Store.open(str(copied))) as client:
        assert '<a href="/published/nightly">nightly</a>' in client.get("/").text
        assert client.get("/published/nightly", follow_redirects=True).status_code == 404
        assert client.get("/metrics").status_code == 200
