"""The report server: who gets what, and that it shows what the stores hold."""

import base64
import json
import os
import re
import shutil
import signal
import socket
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
import s3fs
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from flows.serve import app, known, metrics, overview, server
from flows.serve.app import HEADERS, TOKEN, application
from flows.serve.known import Known, Remembered
from gsec_core import pipeline
from gsec_core.errors import Refused
from gsec_core.stages.base import Context, run_stage
from gsec_core.stages.report import index
from gsec_core.store import Run, Store

from ..command import GSEC, environment, wait
from ..pictures import settings, write_pictures
from ..stages.steps import run_stages

SECRET = "a long random text"

HOSTILE = "</span><script>alert(1)</script>\u202e\x00 s3://key:secret@host/x?token=1"


@dataclass
class Shown:
    """A store with a run of every kind."""

    store: Store
    finished: Context
    unfinished: Context
    failed: Context
    assigned: Context
    counting: Context

    @property
    def folder(self) -> Path:
        return Path(self.store.url)

    @property
    def report(self) -> str:
        return f"/runs/{self.finished.run.id}/report/index.html"


def worked_on(context: Context, *stages: str) -> Context:
    """The stages, with an attempt on record for each, as the flows have it."""
    for name in stages:
        with context.run.attempt({"stage": name, **pipeline.provenance(context.config)}) as facts:
            facts["sums"] = run_stage(context, pipeline.stage(name))
    return context


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Shown:
    folder = tmp_path_factory.mktemp("serve")
    images = write_pictures(folder / "in", range(16))
    (images / "bad.jpg").write_text("no image")
    config = settings(images, folder / "store", pipeline="nightly", max_rejects=1)
    run, _ = pipeline.request(config)
    finished = worked_on(Context.of(run, config), *run.request()["stages"])
    assert pipeline.finish(finished)["published"]
    unfinished = worked_on(run_stages(config.model_copy(update={"clusters": 3})), "encode", "baseline")
    failed = run_stages(config.model_copy(update={"clusters": 4}))
    with pytest.raises(OSError, match="No space"), failed.run.attempt({"stage": "train"}):
        raise OSError(f"No space left on <b>device</b> {HOSTILE}")
    new = pipeline.assignment_config(finished.run, settings(write_pictures(folder / "new", range(20, 24)), folder / "store"))
    run, _ = pipeline.request(new, of_run=finished.run.id)
    assigned = worked_on(Context.of(run, new), *run.request()["stages"])
    counting = run_stages(config.model_copy(update={"clusters": "auto"}))
    return Shown(Store.open(config.store), finished, unfinished, failed, assigned, counting)


@pytest.fixture
def client(shown: Shown) -> Iterator[TestClient]:
    with served(shown.store) as client:
        yield client


@contextmanager
def served(*stores: Store, token: str | None = None) -> Iterator[TestClient]:
    """The server, asked from this machine; with a ``token``, which is not sent by itself."""
    with TestClient(application(stores, token), base_url="http://127.0.0.1:4280", follow_redirects=False) as client:
        yield client


def rows(page: str) -> dict[str, str]:
    """First digits of a run -> its row on the front page."""
    return {found[1]: row for row in page.partition('id="runs"')[2].split("<tr>") if (found := re.search(r"<code>(\w{12})</code>", row))}


def figures(client: TestClient) -> dict[tuple[str, ...], float]:
    """Name and values of the labels, without the store, of every sample."""
    found = {}
    for family in text_string_to_metric_families(client.get("/metrics").text):
        assert family.documentation.endswith(".")
        for sample in family.samples:
            key = (sample.name, *(value for label, value in sample.labels.items() if label != "store"))
            assert key not in found
            found[key] = sample.value
    return found


def routes(shown: Shown) -> list[str]:
    return ["/", "/metrics", "/published/nightly", f"/runs/{shown.finished.run.id}", shown.report, "/nothing", "/runs/x", "/health/", "//health"]


def basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


# Who gets what


def test_with_a_token_nothing_is_served_without_it(shown: Shown) -> None:
    wrong = ["", "Bearer", "Bearer x", f"Bearer {SECRET}x", basic("me", "x"), basic(SECRET, ""), "Basic !", "Basic é", SECRET, f"Digest {SECRET}"]
    right = [f"Bearer {SECRET}", f"bearer  {SECRET}", basic("", SECRET), basic("anybody", SECRET)]
    with served(shown.store) as open_, served(shown.store, token=SECRET) as guarded:
        for route in routes(shown):
            for method in ("GET", "HEAD"):
                as_ever = open_.request(method, route)
                for authorization in wrong:
                    answer = guarded.request(method, route, headers={b"Authorization": authorization.encode("latin-1")} if authorization else {})
                    assert answer.status_code == 401, (route, authorization)
                    assert answer.headers["WWW-Authenticate"].startswith("Basic ")
                for authorization in right:
                    answer = guarded.request(method, route, headers={"Authorization": authorization})
                    assert answer.status_code == as_ever.status_code, (route, authorization)
        assert guarded.post("/").status_code == 401
        assert guarded.get("/health").text == "ok\n"
        assert guarded.head("/health").status_code == 200


def test_a_token_may_have_any_letters(shown: Shown) -> None:
    with served(shown.store, token="schlüssel:Ω") as client:
        for authorization in (basic("me", "schlüssel:Ω").encode(), "Bearer schlüssel:Ω".encode()):
            assert client.get("/nothing", headers={b"Authorization": authorization}).status_code == 404


@pytest.mark.parametrize("host", ["x/health?", "x/health#", "127.0.0.1/health?", "127.0.0.1/health?x=", ""])
def test_a_forged_host_opens_nothing(shown: Shown, host: str) -> None:
    with served(shown.store, token=SECRET) as client:
        for route in routes(shown):
            assert client.get(route, headers={"Host": host}).status_code == 401


def test_without_a_token_a_page_elsewhere_that_has_its_name_point_here_reads_nothing(client: TestClient, shown: Shown) -> None:
    for host in ("evil.example", "evil.example:4280", "127.0.0.1.evil.example", "10.0.0.1", "[", "localhost.evil.example"):
        assert client.get("/", headers={"Host": host}).status_code == 421, host
    for host in ("127.0.0.1", "localhost:4280", "LOCALHOST", "[::1]:4280", "127.0.0.2:1"):
        assert client.get("/", headers={"Host": host}).status_code == 200, host
    assert client.get("/health", headers={"Host": "reports:4280"}).status_code == 200
    with served(shown.store, token=SECRET) as guarded:
        assert guarded.get("/", headers={"Host": "reports.example", "Authorization": f"Bearer {SECRET}"}).status_code == 200


def test_every_answer_has_the_headers(shown: Shown, client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [client.get(route) for route in [*routes(shown), "/health", "/?%FF=%FF"]]
    answers += [client.post("/"), client.get("/", headers={"Host": "evil.example"})]
    answers.append(client.get(shown.report, headers={"If-None-Match": client.get(shown.report).headers["etag"]}))
    with served(shown.store, token=SECRET) as guarded:
        answers.append(guarded.get("/"))
    for error in (ZeroDivisionError("why"), OSError(5, "why")):
        with monkeypatch.context() as patched:
            patched.setattr(Known, "runs", lambda self, error=error: (_ for _ in ()).throw(error))
            answers.append(client.get("/"))
            assert "why" not in answers[-1].text
    assert {answer.status_code for answer in answers} == {200, 302, 304, 401, 404, 405, 421, 500, 503}
    for answer in answers:
        for name, value in HEADERS.items():
            report = "sandbox" in answer.headers["Content-Security-Policy"]
            wanted = "unsafe-none" if report and name == "Cross-Origin-Opener-Policy" else value
            assert answer.headers.get(name) == wanted or name == "Cache-Control", answer.url
        assert "default-src 'none'; frame-ancestors 'none'" in answer.headers["Content-Security-Policy"]
        assert answer.headers["Cache-Control"].startswith("private")
        assert "server" not in answer.headers


def test_it_only_reads(shown: Shown, client: TestClient) -> None:
    before = {path: path.stat().st_mtime_ns for path in shown.folder.rglob("*")}
    for route in routes(shown):
        for method in ("POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT", "PROPFIND"):
            assert client.request(method, route).status_code in (404, 405)
        client.get(route)
        assert client.head(route).content == b""
    assert {path: path.stat().st_mtime_ns for path in shown.folder.rglob("*")} == before
    files = Remembered(shown.store.files)
    for write in (lambda: files.create("x", b""), lambda: files.replace("x", b""), lambda: files.move("x", "y"), lambda: files.remove("x")):
        with pytest.raises(OSError, match="writes nothing"):
            write()


# The front page


def test_the_front_page_shows_every_run(shown: Shown, client: TestClient) -> None:
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
    assert f'href="{shown.report}"' in assigned
    assert f"assigns images to the clusters of {shown.finished.run.id[:12]}" in assigned
    assert "finds the number of clusters" in counting
    assert "not begun</span>" in counting


def test_foreign_text_is_shown_as_text_and_without_secrets(shown: Shown, client: TestClient) -> None:
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
        assert ("Published now" in page) == (address == "/")
        seen += rows(page)
        older = re.search(r'href="([^"]*)" rel="next"', page)
        address = older[1] if older else ""
    assert seen == everything
    assert 'href="/?page=2" rel="prev"' in page
    for bad in ("0", "-1", "x", "4", "9999999", "1%0a", ""):
        assert client.get(f"/?page={bad}").status_code == 404, bad


def test_a_run_that_finished_since_and_is_not_published_is_marked(shown: Shown, copied: Path) -> None:
    mark, run = "not published</span>", copied / "runs" / shown.finished.run.id
    publication = copied / "published" / "nightly" / "00000001.json"
    with served(Store.open(str(copied))) as client:
        assert mark not in client.get("/").text, "it is published"
    edited(publication, run_id=shown.unfinished.run.id)
    with served(Store.open(str(copied))) as client:
        assert mark not in client.get("/").text, "what was published after it replaces it"
    why = {"warnings": ["too many <b>rejects</b>"], "why_not": "look at it first"}
    edited(run / "result.json", at="2999-01-01T00:00:00.000+00:00", published=False, **why)
    with served(Store.open(str(copied))) as client:
        assert [id for id, row in rows(client.get("/").text).items() if mark in row] == [shown.finished.run.id[:12]]
        assert "too many &lt;b&gt;rejects&lt;/b&gt;" in rows(client.get("/").text)[shown.finished.run.id[:12]], "and why"
        assert "look at it first" in rows(client.get("/").text)[shown.finished.run.id[:12]]
    edited(publication, run_id=shown.finished.run.id)
    with served(Store.open(str(copied))) as client:
        assert "too many" in client.get("/").text
        assert "look at it first" not in client.get("/").text, "somebody did, and published it"
    shutil.rmtree(copied / "published")
    with served(Store.open(str(copied))) as client:
        assert mark in rows(client.get("/").text)[shown.finished.run.id[:12]]


def test_a_store_that_is_new_is_empty(tmp_path: Path) -> None:
    with served(Store.open(str(tmp_path / "new"))) as client:
        assert "None yet" in client.get("/").text
        assert client.get("/metrics").status_code == 200
        assert client.get("/health").text == "ok\n"
    assert not (tmp_path / "new").exists()


# Reports


def test_addresses_lead_to_the_report(shown: Shown, client: TestClient) -> None:
    assert client.get("/published/nightly").headers["location"] == shown.report
    assert client.get(f"/runs/{shown.finished.run.id}").headers["location"] == shown.report
    assert client.get(f"/runs/{shown.assigned.run.id}").headers["location"] == shown.report
    page = client.get(shown.report)
    assert page.content == Path(index(shown.finished)).read_bytes()
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    head = client.head(shown.report)
    assert (head.content, head.headers["content-length"]) == (b"", page.headers["content-length"])
    assert client.get("/published/other").status_code == 404
    assert client.get("/published/nightly/").status_code == 404, "no redirect to where the request says that it was sent"


def test_a_page_that_the_browser_has_is_not_sent_again(shown: Shown, client: TestClient) -> None:
    tag = client.get(shown.report).headers["etag"]
    for given in (tag, f"W/{tag}", f'"other", {tag}'):
        again = client.get(shown.report, headers={"If-None-Match": given})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag)
    assert client.get(shown.report, headers={"If-None-Match": '"other"'}).status_code == 200


@pytest.mark.parametrize(
    "page",
    [
        "all.parquet",
        "../all.parquet",
        "..%2fall.parquet",
        "..%5call.parquet",
        "%2e%2e/%2e%2e/corpus.json",
        "clusters/00000.html",
        "clusters/..%2findex.html",
        "clusters/٠٠٠٠٠.html",
        "",
        "index.html/",
        "INDEX.HTML",
        "index.html%00",
        "/index.html",
    ],
)
def test_only_pages_of_the_report_are_served(shown: Shown, client: TestClient, page: str) -> None:
    (Path(index(shown.finished)).parent / "clusters").mkdir(exist_ok=True)
    (Path(index(shown.finished)).parent / "clusters" / "00000.html").write_text("not of the table")
    assert client.get(f"/runs/{shown.finished.run.id}/report/{page}").status_code == 404


@pytest.mark.parametrize("run", ["%2e%2e", "0" * 31, "0" * 33, "A" * 32, "..%2f..%2fetc", "0" * 31 + "%0a", "x" * 5000])
def test_what_cannot_be_a_run_is_not_looked_for(client: TestClient, run: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Remembered, "files", lambda self, directory: pytest.fail(f"{directory} was listed"))
    for route in (f"/runs/{run}", f"/runs/{run}/report/index.html", f"/runs/{'0' * 32}/report/..%2fx"):
        assert client.get(route).status_code == 404


def test_a_run_without_a_report_says_so(shown: Shown, client: TestClient) -> None:
    answer = client.get(f"/runs/{shown.unfinished.run.id}/report/index.html")
    assert (answer.status_code, "has no report yet" in answer.text) == (404, True)
    for other in (shown.counting.run.id, "0" * 32):
        assert client.get(f"/runs/{other}/report/index.html").status_code == 404


def test_a_damaged_page_is_not_served(shown: Shown, client: TestClient) -> None:
    path = Path(index(shown.finished))
    for damaged in (path, path.with_name("all.parquet")):
        good = damaged.read_bytes()
        try:
            for bad in (good[:-9] + b"<script src=//x></script>", None) if damaged == path else (good[:-9],):
                damaged.unlink() if bad is None else damaged.write_bytes(bad)
                answer = client.get(shown.report)
                assert (answer.status_code, "is damaged. gsec doctor --verify" in answer.text) == (500, True)
        finally:
            damaged.write_bytes(good)
    assert client.get(shown.report).status_code == 200


# Damage


@pytest.fixture
def copied(shown: Shown, tmp_path: Path) -> Path:
    """The store, to be damaged."""
    return Path(shutil.copytree(shown.folder, tmp_path / "store"))


def edited(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def damage(kind: str, run: Path) -> None:
    """One of the ways in which a run may be found."""
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
"""Requests that nobody can show."""


@pytest.mark.parametrize("which", ["finished", "unfinished"])
@pytest.mark.parametrize(
    "kind",
    ["half pruned", *UNREADABLE, "torn result", "odd result", "endless result", "nested result", "result without a time zone", "torn stage", "torn attempt"],
)
def test_a_damaged_run_takes_nothing_down(shown: Shown, copied: Path, kind: str, which: str) -> None:
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
def test_a_damaged_publication_takes_nothing_down(shown: Shown, copied: Path, bad: str) -> None:
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


def test_what_is_published_may_be_gone(shown: Shown, copied: Path) -> None:
    shutil.rmtree(copied / "runs" / shown.finished.run.id)
    with served(Store.open(str(copied))) as client:
        assert '<a href="/published/nightly">nightly</a>' in client.get("/").text
        assert client.get("/published/nightly", follow_redirects=True).status_code == 404
        assert client.get("/metrics").status_code == 200


# What is read


def test_what_never_changes_is_read_once_and_no_rows_ever(shown: Shown, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_what_is_new_is_seen(shown: Shown, copied: Path) -> None:
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
        assert "stopped" not in after, "the newest attempt did not fail"
        shutil.rmtree(copied / "runs" / shown.finished.run.id)
        assert shown.finished.run.id[:12] not in rows(client.get("/").text)
        shutil.rmtree(copied / "published")
        again, _ = pipeline.request(shown.finished.config.model_copy(update={"store": str(copied)}))
        assert again.id == shown.finished.run.id
        assert "not begun" in rows(client.get("/").text)[again.id[:12]], "what was remembered of the run before is forgotten"


def test_attempts_to_mend_a_finished_run_are_seen_after_a_while(copied: Path, shown: Shown, monkeypatch: pytest.MonkeyPatch) -> None:
    store, name = Store.open(str(copied)), ("gsec_attempts_failed", shown.finished.corpus.name, "align")
    with served(store) as client:
        assert figures(client).get(name, 0) == 0
        with pytest.raises(RuntimeError), Run(store.files, shown.finished.run.id).attempt({"stage": "align"}):
            raise RuntimeError("the disk again")
        assert figures(client).get(name, 0) == 0
        monkeypatch.setattr(known, "SETTLED_SECONDS", 0)
        assert figures(client)[name] == 1


def test_of_two_listings_at_once_the_newer_stays(shown: Shown, copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody has listed a run; before that is remembered, the run is finished, and somebody else has seen so."""
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


# Metrics


def test_metrics_are_what_the_store_says(shown: Shown, client: TestClient) -> None:
    found = figures(client)
    corpus, other = shown.finished.corpus.name, shown.assigned.corpus.name
    assert found["gsec_images", corpus, "nightly", "ok"] == 16
    assert found["gsec_images", corpus, "nightly", "rejected"] == 1
    assert found["gsec_images", corpus, "nightly", "missing"] == 0
    assert {key[2]: value for key, value in found.items() if key[:2] == ("gsec_runs", corpus)} == {
        "finished": 1,
        "failed": 1,
        "unfinished": 1,
        "not begun": 1,
    }
    assert found["gsec_runs", other, "finished"] == 1
    assert found["gsec_attempts_failed", corpus, "train"] == 1
    assert found["gsec_attempts_failed", corpus, "encode"] == 0
    attempts = [attempt for context in (shown.finished, shown.unfinished) for attempt in context.run.attempts()]
    made: Counter[str] = Counter()
    for attempt in attempts:
        made[attempt["start"]["stage"]] += attempt["end"]["sums"].get("shards", 0)
    assert found["gsec_images_encoded", corpus] == 16
    assert found["gsec_images_encoded", other] == 4
    assert found["gsec_images_rejected", corpus] == 1
    assert found["gsec_caption_requests", corpus] == 0
    for stage in shown.finished.run.request()["stages"]:
        assert found["gsec_stage_shards_made", corpus, stage] == made[stage] > 0
        assert found["gsec_stage_seconds", corpus, stage] > 0
    run = shown.unfinished.run
    assert ("gsec_stage_shards_done", corpus, shown.finished.run.id, "encode") not in found
    for stage in ("encode", "baseline"):
        assert (found["gsec_stage_shards_done", corpus, run.id, stage], found["gsec_stage_shards_planned", corpus, run.id, stage]) == run.shards_done(stage)
    assert ("gsec_stage_shards_planned", corpus, run.id, "train") not in found
    assert found["gsec_publications_total", corpus, "nightly"] == 1
    assert found["gsec_published_timestamp_seconds", corpus, "nightly"] > 1.7e9
    result = shown.finished.run.result()
    assert result
    assert found["gsec_last_finished_timestamp_seconds", corpus, "nightly"] == datetime.fromisoformat(result["at"]).timestamp()
    assert found["gsec_caption_reply_seconds", corpus] == 0
    assert found["gsec_unreadable_records",] == 0


def test_only_what_never_falls_is_a_counter(client: TestClient) -> None:
    """A prune lowers sums over the runs that are kept, which of a counter would be read as a beginning again."""
    kinds = {family.name: family.type for family in text_string_to_metric_families(client.get("/metrics").text)}
    assert [name for name, kind in kinds.items() if kind == "counter"] == ["gsec_publications"]
    assert set(kinds.values()) == {"counter", "gauge"}


def test_prometheus_may_ask_for_openmetrics(client: TestClient) -> None:
    answer = client.get("/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"})
    assert answer.headers["content-type"].startswith("application/openmetrics-text")
    assert answer.text.endswith("# EOF\n")


def test_of_many_unfinished_runs_the_newest_are_told(shown: Shown, monkeypatch: pytest.MonkeyPatch, client: TestClient) -> None:
    monkeypatch.setattr(metrics, "MOST_UNFINISHED", 1)
    assert not [key for key in figures(client) if key[0] == "gsec_stage_shards_done"], "the newest has not begun"


# Other stores


def test_two_stores_with_the_same_names(shown: Shown, copied: Path) -> None:
    """Of a copy every name and every run is the same; the same store twice is one."""
    other = Store.open(str(copied))
    with served(shown.store, other, shown.store) as client:
        page = client.get("/").text
        assert "10 runs</h1>" in page
        assert page.count(f">{copied}</span>") == 5 + 1
        assert page.count('href="/published/nightly"') == 1, "it leads to the first of them"
        assert page.partition('id="runs"')[0].count(f'href="{shown.report}"') == 1
        samples = [sample for family in text_string_to_metric_families(client.get("/metrics").text) for sample in family.samples]
        keys = [(sample.name, *sample.labels.items()) for sample in samples]
        assert len(set(keys)) == len(keys)
        assert {sample.labels["store"] for sample in samples} == {shown.store.url, other.url}
    shutil.rmtree(copied / "runs")
    with served(other, shown.store) as client:
        assert client.get(shown.report).status_code == 200


def test_a_store_on_s3(bucket: str, shown: Shown) -> None:
    """The same records and pages, copied there."""
    url = f"{bucket}/store"
    kept = [path for path in shown.folder.rglob("*") if path.is_file() and (path.suffix in (".json", ".html") or "report" in path.parts)]
    for path in kept:
        s3fs.S3FileSystem().pipe_file(f"{url}/{path.relative_to(shown.folder)}", path.read_bytes())
    with served(Store.open(url)) as client:
        assert client.get("/health").text == "ok\n"
        assert len(rows(client.get("/").text)) == 5
        assert "16 images in 2 clusters" in client.get("/published/nightly", follow_redirects=True).text
        assert figures(client)["gsec_publications_total", shown.finished.corpus.name, "nightly"] == 1


def test_a_store_that_does_not_answer(shown: Shown, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    s3fs.S3FileSystem.clear_instance_cache()  # else it is the server of other tests
    with served(shown.store, Store.open("s3://hidden-bucket/store"), token=SECRET) as client:
        health = client.get("/health")
        assert (health.status_code, health.text) == (503, "store 2 of 2 cannot be read\n")
        for route in ("/", "/metrics", "/published/other", f"/runs/{'0' * 32}"):
            assert client.get(route).status_code == 401
            answer = client.get(route, headers={"Authorization": f"Bearer {SECRET}"})
            assert (answer.status_code, "hidden-bucket" in answer.text) == (503, False), route
        assert client.get(shown.report, headers={"Authorization": f"Bearer {SECRET}"}).status_code == 200
    assert "hidden-bucket" in caplog.text
    assert SECRET not in caplog.text


def test_health_asks_the_stores_now_and_then(shown: Shown, client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(Known, "check", lambda self: asked.append(self.url))
    for _ in range(20):
        assert client.get("/health").text == "ok\n"
    assert asked == [shown.store.url]
    monkeypatch.setattr(app, "_HEALTH_SECONDS", -1)
    client.get("/health")
    assert len(asked) == 2


# The process


@pytest.mark.parametrize(
    ("host", "token", "said"),
    [
        ("0.0.0.0", None, "only with a token"),
        ("::", None, "only with a token"),
        ("", None, "only with a token"),
        ("example.org", None, "only with a token"),
        ("127.0.0.1.example.org", None, "only with a token"),
        ("127.0.0.1", "", "it is empty"),
        ("127.0.0.1", f"{SECRET}\n", "white space"),
        ("nobody.invalid", SECRET, "cannot listen there"),
    ],
)
def test_where_it_may_not_listen(host: str, token: str | None, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(TOKEN, raising=False)
    if token is not None:
        monkeypatch.setenv(TOKEN, token)
    with pytest.raises(Refused, match=said):
        server.serve([str(tmp_path)], host, 0)


def test_a_port_that_is_taken_or_none_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(TOKEN, raising=False)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        for port in (taken.getsockname()[1], 70_000, -1):
            with pytest.raises(Refused, match=f"--port {port}: it cannot listen there"):
                server.serve([str(tmp_path)], "127.0.0.1", port)


def test_the_process_serves_and_ends(shown: Shown, tmp_path: Path) -> None:
    log = tmp_path / "log"
    command = [*GSEC, "serve", "--store", shown.store.url, "--port", "0"]
    with log.open("w") as output, subprocess.Popen(command, stdout=output, stderr=output, env={**environment(tmp_path), TOKEN: SECRET}) as process:
        try:
            wait(lambda: "startup complete" in log.read_text(), 60, log, pause=0.2)
            url = re.findall(r"http://127\.0\.0\.1:\d+", log.read_text())[0]
            assert httpx.get(f"{url}/?private=1", headers={"Authorization": f"Bearer {SECRET}"}).is_success
            assert httpx.get(f"{url}/?private=1", headers={"Authorization": basic("me", SECRET)}).is_success
            assert httpx.get(f"{url}/?private=1", headers={"Authorization": f"Bearer {SECRET}x"}).status_code == 401
            assert httpx.get(f"{url}/line%0Aforged%1b%5B31m").status_code == 401
            assert httpx.get(f"{url}/{'x' * 5000}").status_code == 401
            assert "server" not in httpx.get(f"{url}/health").headers
            assert httpx.head(f"{url}/health").content == b""
            raw = asked_raw(url, b"GET /?\xff HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            assert raw.split()[1] in (b"400", b"401")
        finally:
            os.kill(process.pid, signal.SIGTERM)
        assert process.wait(20) in (0, -signal.SIGTERM)
    text = log.read_text()
    assert "GET / 200" in text
    assert "GET /line%0Aforged%1B%5B31m 401" in text
    assert SECRET not in text
    assert base64.b64encode(SECRET.encode()).decode()[:-4] not in text
    assert "private" not in text
    assert max(map(len, text.splitlines())) < 1000
    assert "Traceback" not in text


def asked_raw(url: str, request: bytes) -> bytes:
    """What comes back for bytes that no client library would send."""
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(request)
        return b"".join(iter(lambda: connection.recv(65536), b""))
