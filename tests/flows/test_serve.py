"""The report server: who gets what, and that it shows what the stores hold."""

import base64
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
import s3fs
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from flows.serve import overview, server
from flows.serve.app import HEADERS, application
from gsec_core import pipeline
from gsec_core.errors import Refused
from gsec_core.stages.base import Context, run_stage
from gsec_core.stages.report import index
from gsec_core.store import Store

from ..command import GSEC, environment
from ..pictures import cluster, settings, write_pictures
from ..stages.steps import run_stages
from .conftest import wait

TOKEN = "a long random text"


@dataclass
class Shown:
    """A store with a run of every kind."""

    store: Store
    finished: Context
    unfinished: Context
    failed: Context
    assigned: Context


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Shown:
    folder = tmp_path_factory.mktemp("serve")
    images = write_pictures(folder / "in", range(16))
    (images / "bad.jpg").write_text("no image")
    config = settings(images, folder / "store", pipeline="nightly", max_rejects=1)
    finished, _, _ = cluster(config)
    assert pipeline.finish(finished)["published"]
    unfinished = run_stages(config.model_copy(update={"clusters": 3}), *pipeline.STAGES[:2])
    failed = run_stages(config.model_copy(update={"clusters": 4}))
    with pytest.raises(OSError, match="No space"), failed.run.attempt({"stage": "train"}):
        raise OSError("No space left on <b>device</b>")
    new = pipeline.assignment_config(finished.run, settings(write_pictures(folder / "new", range(20, 24)), folder / "store"))
    run, _ = pipeline.request(new, of_run=finished.run.id)
    assigned = Context.of(run, new)
    for name in run.request()["stages"]:
        run_stage(assigned, pipeline.stage(name))
    return Shown(Store.open(config.store), finished, unfinished, failed, assigned)


@pytest.fixture
def client(shown: Shown) -> Iterator[TestClient]:
    with TestClient(application([shown.store]), follow_redirects=False) as client:
        yield client


def routes(shown: Shown) -> list[str]:
    run = shown.finished.run.id
    return ["/", "/metrics", "/published/nightly", f"/runs/{run}", f"/runs/{run}/report/index.html", "/nothing", "/runs/x"]


def basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


def test_with_a_token_nothing_is_served_without_it(shown: Shown) -> None:
    open_, guarded = TestClient(application([shown.store]), follow_redirects=False), TestClient(application([shown.store], TOKEN), follow_redirects=False)
    wrong = ["", "Bearer", "Bearer x", f"Bearer {TOKEN} ", basic("me", "x"), basic(TOKEN, ""), "Basic !", TOKEN, f"Digest {TOKEN}"]
    right = [f"Bearer {TOKEN}", f"bearer {TOKEN}", basic("", TOKEN), basic("anybody", TOKEN)]
    for route in routes(shown):
        for method in ("GET", "HEAD"):
            as_ever = open_.request(method, route)
            for authorization in wrong:
                answer = guarded.request(method, route, headers={"Authorization": authorization} if authorization else {})
                assert answer.status_code == 401, (route, authorization)
                assert answer.headers["WWW-Authenticate"].startswith("Basic ")
            for authorization in right:
                assert guarded.request(method, route, headers={"Authorization": authorization}).status_code == as_ever.status_code, route
    assert guarded.get("/health").text == "ok\n"


def test_every_answer_has_the_headers(shown: Shown, client: TestClient) -> None:
    answers = [client.get(route) for route in [*routes(shown), "/health"]]
    answers += [client.post("/"), TestClient(application([shown.store], TOKEN)).get("/")]
    assert {answer.status_code for answer in answers} >= {200, 302, 401, 404, 405}
    for answer in answers:
        assert {name: answer.headers.get(name) for name in HEADERS if name != "Cache-Control"} == {
            name: value for name, value in HEADERS.items() if name != "Cache-Control"
        }, answer.url
        assert "frame-ancestors 'none'" in answer.headers["Content-Security-Policy"]
        assert answer.headers["Cache-Control"].startswith("private")
        assert "server" not in answer.headers


def test_it_only_reads(shown: Shown, client: TestClient) -> None:
    for method in ("POST", "PUT", "PATCH", "DELETE"):
        for route in routes(shown)[:5]:
            assert client.request(method, route).status_code == 405


def test_the_front_page_shows_every_run(shown: Shown, client: TestClient) -> None:
    page = client.get("/").text
    rows = {re.findall(r"<code>(\w{12})</code>", row)[0]: row for row in page.partition('id="runs"')[2].split("<tr>") if re.search(r"<code>\w{12}</code>", row)}
    finished, unfinished, failed, assigned = (rows[context.run.id[:12]] for context in (shown.finished, shown.unfinished, shown.failed, shown.assigned))
    assert "published</span>" in finished
    assert "1 rejected" in finished
    assert f'href="/runs/{shown.finished.run.id}/report/index.html"' in finished
    assert re.search(r"encode \d/\d, baseline \d/\d", unfinished)
    assert "published</span>" not in unfinished
    assert 'class="state failed"' in failed
    assert "No space left on &lt;b&gt;device&lt;/b&gt;" in failed
    assert f'href="/runs/{shown.finished.run.id}/report/index.html"' in assigned
    assert "<b>device" not in page


def test_addresses_lead_to_the_report(shown: Shown, client: TestClient) -> None:
    report = f"/runs/{shown.finished.run.id}/report/index.html"
    assert client.get("/published/nightly").headers["location"] == report
    assert client.get(f"/runs/{shown.finished.run.id}").headers["location"] == report
    assert client.get(f"/runs/{shown.assigned.run.id}").headers["location"] == report
    page = client.get(report)
    assert page.content == Path(index(shown.finished)).read_bytes()
    assert client.get(report, headers={"If-None-Match": page.headers["etag"]}).status_code == 304
    assert client.head(report).content == b""
    assert client.get("/published/other").status_code == 404


@pytest.mark.parametrize(
    "page", ["all.parquet", "../all.parquet", "..%2fall.parquet", "%2e%2e/%2e%2e/corpus.json", "clusters/00000.html", "", "index.html/", "INDEX.HTML"]
)
def test_only_pages_of_the_report_are_served(shown: Shown, client: TestClient, page: str) -> None:
    assert client.get(f"/runs/{shown.finished.run.id}/report/{page}").status_code == 404


@pytest.mark.parametrize("run", ["%2e%2e", "0" * 32, "0" * 31, "A" * 32, "..%2f..%2fetc"])
def test_only_runs_are_looked_up(client: TestClient, run: str) -> None:
    for route in (f"/runs/{run}", f"/runs/{run}/report/index.html"):
        assert client.get(route).status_code == 404


def test_a_run_without_a_report_says_so(shown: Shown, client: TestClient) -> None:
    answer = client.get(f"/runs/{shown.unfinished.run.id}/report/index.html")
    assert (answer.status_code, "has no report yet" in answer.text) == (404, True)


def test_a_damaged_page_is_not_served(shown: Shown, client: TestClient) -> None:
    path = Path(index(shown.finished))
    good = path.read_bytes()
    try:
        for bad in (good.replace(b"</html>", b"<script src=//x></script></html>"), None):
            path.unlink() if bad is None else path.write_bytes(bad)
            answer = client.get(f"/runs/{shown.finished.run.id}/report/index.html")
            assert (answer.status_code, "is damaged" in answer.text) == (500, True)
    finally:
        path.write_bytes(good)


def test_half_of_a_run_takes_nothing_down(shown: Shown, client: TestClient) -> None:
    runs = Path(shown.store.url) / "runs"
    (runs / ("0" * 32)).mkdir()  # pruned by half: no request
    broken = runs / ("1" * 32)
    broken.mkdir()
    (broken / "request.json").write_bytes((runs / shown.failed.run.id / "request.json").read_bytes())
    (broken / "stage-encode.json").write_text("{")
    try:
        page, metrics = client.get("/"), client.get("/metrics")
        assert (page.status_code, metrics.status_code) == (200, 200)
        assert 'class="state damaged"' in page.text
    finally:
        for path in sorted(broken.iterdir()):
            path.unlink()
        broken.rmdir()
        (runs / ("0" * 32)).rmdir()


def test_metrics_are_what_the_store_says(shown: Shown, client: TestClient) -> None:
    families = text_string_to_metric_families(client.get("/metrics").text)
    found = {(sample.name, *sample.labels.values()): sample.value for family in families for sample in family.samples}
    corpus, other = shown.finished.corpus.name, shown.assigned.corpus.name
    assert found["gsec_images", corpus, "nightly", "ok"] == 16
    assert found["gsec_images", corpus, "nightly", "rejected"] == 1
    assert found["gsec_runs", corpus, "finished"] == 1
    assert found["gsec_runs", corpus, "failed"] == 1
    assert found["gsec_runs", other, "finished"] == 1
    assert found["gsec_attempts_failed_total", corpus, "train"] == 1
    run = shown.unfinished.run
    assert found["gsec_stage_shards_done", corpus, run.id, "encode"] == run.shards_done("encode")[0] > 0
    assert found["gsec_stage_shards_planned", corpus, run.id, "encode"] == run.shards_done("encode")[1]
    assert found["gsec_publications_total", corpus, "nightly"] == 1
    assert found["gsec_published_timestamp_seconds", corpus, "nightly"] > 1.7e9


def test_several_stores_and_one_that_is_new(shown: Shown, tmp_path: Path) -> None:
    config = settings(write_pictures(tmp_path / "in", range(12)), tmp_path / "store", pipeline="other")
    context, _, _ = cluster(config)
    pipeline.finish(context)
    client = TestClient(application([shown.store, Store.open(config.store), Store.open(str(tmp_path / "new"))]))
    page = client.get("/").text
    assert context.run.id[:12] in page
    assert shown.finished.run.id[:12] in page
    assert client.get(f"/runs/{context.run.id}").status_code == 200
    assert client.get("/published/other").status_code == 200
    assert TestClient(application([Store.open(str(tmp_path / "new"))])).get("/").status_code == 200


def test_a_store_on_s3(bucket: str, tmp_path: Path) -> None:
    config = settings(write_pictures(tmp_path / "in", range(12)), f"{bucket}/store", pipeline="remote")
    context, _, _ = cluster(config)
    pipeline.finish(context)
    client = TestClient(application([Store.open(config.store)]))
    assert client.get("/health").text == "ok\n"
    assert "12 images in 2 clusters" in client.get("/published/remote").text


def test_a_store_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    s3fs.S3FileSystem.clear_instance_cache()  # else it is the server of other tests
    client = TestClient(application([Store.open("s3://secret-bucket/store")], TOKEN))
    health = client.get("/health")
    assert (health.status_code, "secret-bucket" in health.text) == (503, False)
    for route in ("/", "/metrics"):
        assert client.get(route, headers={"Authorization": f"Bearer {TOKEN}"}).status_code == 503


def test_older_runs_are_counted_and_not_listed(shown: Shown, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overview, "MOST_RUNS", 1)
    assert "3 older runs are not shown" in TestClient(application([shown.store])).get("/").text


@pytest.mark.parametrize(
    ("host", "token", "said"), [("0.0.0.0", None, "only with a token"), ("example.org", None, "only with a token"), ("127.0.0.1", "", "it is empty")]
)
def test_where_it_may_not_listen(host: str, token: str | None, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(server.TOKEN, raising=False)
    if token is not None:
        monkeypatch.setenv(server.TOKEN, token)
    with pytest.raises(Refused, match=said):
        server.serve([str(tmp_path)], host, 0)


def test_the_process_serves_and_ends(shown: Shown, tmp_path: Path) -> None:
    log = tmp_path / "log"
    command = [*GSEC, "serve", "--store", shown.store.url, "--port", "0"]
    with log.open("w") as output, subprocess.Popen(command, stderr=output, env={**environment(tmp_path), server.TOKEN: TOKEN}) as process:
        try:
            wait(lambda: "startup complete" in log.read_text(), 60, log, pause=0.2)
            port = int(re.findall(r"http://127\.0\.0\.1:(\d+)", log.read_text())[0])
            url = f"http://127.0.0.1:{port}"
            assert httpx.get(f"{url}/?private=1", headers={"Authorization": f"Bearer {TOKEN}"}).is_success
            assert "server" not in httpx.get(f"{url}/health").headers
            taken = subprocess.run([*command[:-1], str(port)], capture_output=True, text=True, env=environment(tmp_path), check=False)
            assert (taken.returncode, "cannot listen there" in taken.stderr) == (2, True)
        finally:
            os.kill(process.pid, signal.SIGTERM)
        process.wait(20)
    text = log.read_text()
    assert "GET / 200" in text
    assert TOKEN not in text
    assert "private" not in text
