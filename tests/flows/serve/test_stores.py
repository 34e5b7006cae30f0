"""A server for several stores, for a store on S3, and for a store that does not answer."""

import shutil
from pathlib import Path

import pytest
import s3fs
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from flows.serve import app
from flows.serve.known import Known
from gsec_core.store import Store

from .examples import SECRET, Shown, figures, rows, served


def test_two_stores_with_the_same_names_and_runs_are_both_shown(shown: Shown, copied: Path) -> None:
    """The second store is a copy with equal names and runs. A store that is given twice counts once."""
    other = Store.open(str(copied))
    with served(shown.store, other, shown.store) as client:
        page = client.get("/").text
        assert "10 runs</h1>" in page
        assert page.count(f">{copied}</span>") == 5 + 1
        assert page.count('href="/published/nightly"') == 1, "there is one link, which leads to the first store"
        assert page.partition('id="runs"')[0].count(f'href="{shown.report}"') == 1
        samples = [sample for family in text_string_to_metric_families(client.get("/metrics").text) for sample in family.samples]
        keys = [(sample.name, *sample.labels.items()) for sample in samples]
        assert len(set(keys)) == len(keys)
        assert {sample.labels["store"] for sample in samples} == {shown.store.url, other.url}
    shutil.rmtree(copied / "runs")
    with served(other, shown.store) as client:
        assert client.get(shown.report).status_code == 200


def test_a_store_on_s3_is_served(bucket: str, shown: Shown) -> None:
    """The store on S3 is a copy of the records and pages."""
    url = f"{bucket}/store"
    kept = [path for path in shown.folder.rglob("*") if path.is_file() and (path.suffix in (".json", ".html") or "report" in path.parts)]
    for path in kept:
        s3fs.S3FileSystem().pipe_file(f"{url}/{path.relative_to(shown.folder)}", path.read_bytes())
    with served(Store.open(url)) as client:
        assert client.get("/health").text == "ok\n"
        assert len(rows(client.get("/").text)) == 5
        assert "16 images in 2 clusters" in client.get("/published/nightly", follow_redirects=True).text
        assert figures(client)["gsec_publications_total", shown.finished.corpus.name, "nightly"] == 1


def test_a_store_that_does_not_answer_is_a_503_without_its_name_and_others_are_served(
    shown: Shown, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    s3fs.S3FileSystem.clear_instance_cache()  # a cached instance would talk to the server of other tests
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


def test_health_checks_the_stores_only_after_some_seconds(shown: Shown, client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(Known, "check", lambda self: asked.append(self.url))
    monkeypatch.setattr(app, "_HEALTH_SECONDS", 600)
    for _ in range(20):
        assert client.get("/health").text == "ok\n"
    assert asked == [shown.store.url]
    monkeypatch.setattr(app, "_HEALTH_SECONDS", -1)
    client.get("/health")
    assert len(asked) == 2
