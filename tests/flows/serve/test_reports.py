"""The pages of reports that are served, and the paths that are not."""

from pathlib import Path

import pytest
from starlette.testclient import TestClient

from flows.serve.known import Remembered
from gsec_core.stages.report import index

from .examples import Shown


def test_addresses_of_runs_and_publications_redirect_to_the_report(shown: Shown, client: TestClient) -> None:
    assert client.get("/published/nightly").headers["location"] == shown.report
    assert client.get(f"/runs/{shown.finished.run.id}").headers["location"] == shown.report
    assert client.get(f"/runs/{shown.assigned.run.id}").headers["location"] == shown.report
    page = client.get(shown.report)
    assert page.content == Path(index(shown.finished)).read_bytes()
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    head = client.head(shown.report)
    assert (head.content, head.headers["content-length"]) == (b"", page.headers["content-length"])
    assert client.get("/published/other").status_code == 404
    assert client.get("/published/nightly/").status_code == 404, "there must be no redirect to the host that the request names"


def test_a_page_that_the_browser_has_cached_is_not_sent_again(shown: Shown, client: TestClient) -> None:
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
def test_an_invalid_run_id_is_not_found_without_reading_the_store(client: TestClient, run: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Remembered, "files", lambda self, directory: pytest.fail(f"{directory} was listed"))
    for route in (f"/runs/{run}", f"/runs/{run}/report/index.html", f"/runs/{'0' * 32}/report/..%2fx"):
        assert client.get(route).status_code == 404


def test_the_report_of_a_run_without_one_is_not_found(shown: Shown, client: TestClient) -> None:
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
