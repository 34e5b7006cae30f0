import asyncio
import io
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from benchmarks.explore import Maker
from flows.serve import api, operations
from flows.serve.app import HEADERS, application
from gsec_core.explore import Past
from gsec_core.explore.history import History
from gsec_core.store import Run, Store

from ...command import wait
from ...pictures import picture, settings, write_pictures
from ...report.contents import HOSTILE
from ...stages.steps import run_stages

SECRET = "a long random text"
JSON = {"Content-Type": "application/json"}


@dataclass
class Shown:
    """A finished run of 300 images, and one that has not begun."""

    store: Store
    run: str
    unfinished: str
    ids: list[str]

    def address(self, rest: str = "") -> str:
        return f"{api.ROOT}/runs/{self.run}{rest}"


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Shown:
    folder = tmp_path_factory.mktemp("api")
    made = Maker(folder, 300, 6)
    other = run_stages(settings(write_pictures(folder / "in", range(3)), folder / "store"))
    return Shown(Store.open(str(folder / "store")), made.run.id, other.run.id, [one.tobytes().hex() for one in made.ids[made.order]])


@contextmanager
def served(shown: Shown, token: str | None = None, curate: bool = False) -> Iterator[TestClient]:
    server = application([shown.store], token, curate=curate)
    with TestClient(server, base_url="http://127.0.0.1:4280", follow_redirects=False) as client:
        if token is not None:
            client.headers["Authorization"] = f"Bearer {token}"
        yield client


@pytest.fixture(scope="module")
def client(shown: Shown) -> Iterator[TestClient]:
    with served(shown) as client:
        yield client


@pytest.fixture
def curating(shown: Shown) -> Iterator[TestClient]:
    """A client of a server that accepts curation; acts of a test are removed after it."""
    with served(shown, SECRET, curate=True) as client:
        yield client
    for file in (Path(shown.store.url) / "curation").glob("*/*"):
        file.unlink()


def get(client: TestClient, address: str, status: int = 200) -> dict:
    answer = client.get(address)
    assert answer.status_code == status, (address, answer.text[:300])
    return answer.json()


def addresses(shown: Shown) -> list[str]:
    id = shown.ids[0]
    rest = ["", "/clusters", "/clusters/0", "/images", f"/images/{id}", f"/images/{id}/thumbnail", f"/search?like={id}", "/map", "/duplicates", "/curation"]
    return [f"{api.ROOT}/", f"{api.ROOT}/openapi.json", f"{api.ROOT}/runs", f"{api.ROOT}/published", *map(shown.address, rest)]


def error(client: TestClient, method: str, address: str, status: int, **sent: object) -> str:
    """The sentence of an error answer."""
    answer = client.request(method, address, **sent)  # type: ignore[arg-type]
    assert answer.status_code == status, (address, answer.status_code, answer.text[:300])
    assert answer.headers["content-type"] == "application/json"
    assert list(answer.json()) == ["error"]
    return str(answer.json()["error"])


# Answers


def test_every_address_of_the_openapi_description_answers(shown: Shown, client: TestClient) -> None:
    described = {operation.path for operation in operations.operations(get(client, f"{api.ROOT}/openapi.json"), api.ROOT) if operation.method == "GET"}
    asked = {"{run}": shown.run, "{key}": "0", "{id}": shown.ids[0]}
    for path in sorted(described - {f"{api.ROOT}/runs/{{run}}/tree"}):
        for name, value in asked.items():
            path = path.replace(name, value)
        answer = client.get(path + (f"?like={shown.ids[0]}" if path.endswith("search") else ""))
        assert answer.status_code == 200, path
    assert described >= {f"{api.ROOT}/runs", f"{api.ROOT}/runs/{{run}}/images/{{id}}", f"{api.ROOT}/runs/{{run}}/curation"}


def test_the_page_of_the_api_lists_every_operation_and_loads_nothing_from_the_network(client: TestClient) -> None:
    page = client.get(f"{api.ROOT}/")
    assert "`" not in page.text, "the page is HTML, not Markdown"
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    for operation in operations.operations(api.described(), api.ROOT):
        assert f"<code>{operation.method} {operation.path}</code>" in page.text
        assert operation.about
        assert all(parameter.meaning for parameter in operation.parameters), operation.path
    assert "src=" not in page.text
    assert "http" not in page.text
    for path in ("docs", "redoc"):
        assert client.get(f"{api.ROOT}/{path}").status_code == 404


def test_runs_are_listed_newest_first_and_in_parts(shown: Shown, client: TestClient) -> None:
    whole = get(client, f"{api.ROOT}/runs")
    assert [row["run"] for row in whole["rows"]] == [shown.unfinished, shown.run]
    assert [row["explorable"] for row in whole["rows"]] == [False, True]
    assert [row["published"] for row in whole["rows"]] == [False, True]
    assert whole["rows"][1] == get(client, shown.address())
    part = get(client, f"{api.ROOT}/runs?limit=1")
    assert part["rows"] + get(client, part["next"])["rows"] == whole["rows"]
    assert whole["next"] is None
    assert [(row["pipeline"], row["run"]) for row in get(client, f"{api.ROOT}/published")] == [("made-up", shown.run)]


def test_each_part_of_a_list_links_the_next_one(shown: Shown, client: TestClient) -> None:
    rows, address = [], shown.address("/images?sort=name&limit=70&cluster=2")
    while address:
        part = get(client, address)
        rows += part["rows"]
        address = part["next"]
    assert len(rows) == part["total"] == get(client, shown.address("/clusters/2"))["size"]
    assert [row["uri"] for row in rows] == sorted(row["uri"] for row in rows)
    assert {row["key"] for row in rows} == {2}


def test_clusters_thumbnails_map_and_duplicates_have_the_expected_content(shown: Shown, client: TestClient) -> None:
    clusters = get(client, shown.address("/clusters"))
    assert len(clusters) == 6
    assert sum(row["size"] for row in clusters) == 300
    thumbnail = client.get(shown.address(f"/images/{shown.ids[5]}/thumbnail"))
    assert thumbnail.headers["content-type"] == "image/jpeg"
    assert Image.open(io.BytesIO(thumbnail.content)).size == (64, 48)
    points = client.get(shown.address("/map"))
    assert points.headers["content-type"] == "application/octet-stream"
    places = np.frombuffer(points.content, "<u2").reshape(-1, 3)
    assert np.bincount(places[:, 2]).tolist() == [row["size"] for row in clusters]
    groups = get(client, shown.address("/duplicates?limit=3"))
    assert [len(group["images"]) for group in groups["groups"]] == [2, 2, 2]
    assert get(client, groups["next"])["offset"] == 3


def test_an_answer_with_pending_parts_is_not_cached(shown: Shown) -> None:
    with served(shown) as client:

        def has_all() -> bool:
            nonlocal answer
            answer = client.get(shown.address(f"/images/{shown.ids[1]}"))
            assert ("etag" in answer.headers) != answer.json()["pending"]
            return not answer.json()["pending"]

        answer: Any = None
        wait(has_all, 300, pause=0)
        tag = {"If-None-Match": answer.headers["etag"]}
        assert client.get(shown.address(f"/images/{shown.ids[1]}"), headers=tag).status_code == 304
        assert len(answer.json()["neighbors"]) == 12
        assert answer.json()["second"][0] != answer.json()["model_key"]


def test_a_cached_image_is_sent_again_after_its_history_has_grown(shown: Shown, client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    address = shown.address(f"/images/{shown.ids[2]}")
    for _ in range(100):
        before = client.get(address)
        if "etag" in before.headers:
            break
    monkeypatch.setattr(History, "of", lambda self, image_id: [Past(shown.run, "2026-01-01T00:00:00+00:00", 1, "discs")])
    after = client.get(address, headers={"If-None-Match": before.headers["etag"]})
    assert (after.status_code, after.json()["history"][0]["name"]) == (200, "discs")


def test_an_uploaded_image_is_searched_for_and_not_stored(shown: Shown, client: TestClient) -> None:
    buffer = io.BytesIO()
    picture(3).save(buffer, "PNG")
    before = sorted(Path(shown.store.url).rglob("*"))
    answer = client.post(shown.address("/search?limit=5"), content=buffer.getvalue(), headers={"Content-Type": "image/png"})
    assert answer.status_code == 200, answer.text
    assert len(answer.json()["rows"]) == 5
    assert sorted(Path(shown.store.url).rglob("*")) == before


# Caching


def test_a_cached_answer_is_sent_again_only_after_an_act_of_curation(shown: Shown, curating: TestClient) -> None:
    kept = {}
    for address in addresses(shown)[6:]:
        answer = curating.get(address)
        if "/images/" in address and not address.endswith("thumbnail"):
            continue
        kept[address] = answer.headers["etag"]
        for tag in (kept[address], f'W/{kept[address]}, "x"'):
            again = curating.get(address, headers={"If-None-Match": tag})
            assert (again.status_code, again.content) == (304, b""), address
            assert again.headers["etag"] == kept[address]
        assert curating.get(address, headers={"If-None-Match": '"x"'}).status_code == 200
    assert len(set(kept.values())) == len(kept)
    assert curating.post(shown.address("/curation"), json={"kind": "star", "who": "me", "key": 1}).status_code == 200
    for address, tag in kept.items():
        same = address.endswith("thumbnail")
        assert (curating.get(address, headers={"If-None-Match": tag}).status_code == 304) == same, address


# Errors


@pytest.mark.parametrize(
    ("rest", "status", "said"),
    [
        ("/clusters/77", 404, "cluster 77"),
        ("/clusters/x", 400, "key"),
        ("/clusters/-1", 400, "key"),
        (f"/clusters/{2**31}", 400, "key"),
        (f"/images/{'0' * 32}", 404, "no such image"),
        (f"/images/{'0' * 32}/thumbnail", 404, "no such image"),
        ("/images/x", 400, "id"),
        ("/images/%3Cscript%3E", 400, "id"),
        ("/images?offset=-1", 400, "offset"),
        ("/images?limit=0", 400, "limit"),
        ("/images?limit=201", 400, "limit"),
        ("/images?limit=many", 400, "limit"),
        ("/images?sort=size", 400, "sort"),
        ("/images?cluster=77", 404, "cluster 77"),
        ("/images?within=0,0,1,1", 400, "2 corners"),
        ("/images?within=0,0,1,1,0", 400, "within"),
        ("/images?within=0,0,1,nan,0,1", 400, "within"),
        ("/images?within=0,0,1,1,0,1e999", 400, "finite"),
        ("/images?within=;drop", 400, "within"),
        ("/search", 400, "one of q and like"),
        (f"/search?q=x&like={'0' * 32}", 400, "one of q and like"),
        (f"/search?like={'0' * 32}", 404, "no such image"),
        ("/search?like=x", 400, "like"),
        ("/search?q=%20", 400, "nothing to search for"),
        (f"/search?q={'x' * 600}", 400, "600 letters"),
        (f"/search?q={'x' * 30_000}", 400, "q"),
        ("/tree?groups=0", 400, "groups"),
        ("/nothing", 404, "no such address"),
    ],
)
def test_wrong_addresses_and_parameters_are_json_errors(shown: Shown, client: TestClient, rest: str, status: int, said: str) -> None:
    assert said in error(client, "GET", shown.address(rest), status)


def test_missing_and_unfinished_runs_are_json_errors(shown: Shown, client: TestClient) -> None:
    for rest in ("", "/clusters"):
        assert "no such run" in error(client, "GET", f"{api.ROOT}/runs/{'0' * 32}{rest}", 404)
        error(client, "GET", f"{api.ROOT}/runs/..%2f{rest}", 404)
    assert get(client, f"{api.ROOT}/runs/{shown.unfinished}")["state"] != "finished"
    assert "when it is finished" in error(client, "GET", f"{api.ROOT}/runs/{shown.unfinished}/clusters", 409)


def test_wrong_uploads_are_json_errors(shown: Shown, client: TestClient) -> None:
    address = shown.address("/search")
    assert "cannot be used" in error(client, "POST", address, 400, content=b"no image", headers={"Content-Type": "image/png"})
    assert "cannot be used" in error(client, "POST", address, 400, content=b"", headers={"Content-Type": "image/png"})
    huge = io.BytesIO()
    Image.new("1", (30_000, 30_000)).save(huge, "PNG")
    assert "megapixels" in error(client, "POST", address, 400, content=huge.getvalue(), headers={"Content-Type": "image/png"})
    too_long = b"x" * (api.MOST_UPLOAD_BYTES + 1)
    assert "MiB" in error(client, "POST", address, 413, content=too_long, headers={"Content-Type": "image/png"})
    assert "MiB" in error(client, "POST", address, 413, content=iter([too_long]), headers={"Content-Type": "image/png"})
    error(client, "POST", address, 415, content=b"x", headers={"Content-Type": "text/plain"})
    error(client, "POST", address, 415, content=b"x")
    error(client, "POST", address.replace(shown.run, "0" * 32), 404, content=b"x", headers={"Content-Type": "image/png"})


def test_an_upload_that_stalls_is_ended_after_a_time(shown: Shown, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "_UPLOAD_SECONDS", 0.2)

    async def stalling() -> AsyncIterator[bytes]:
        yield b"\x89PNG"
        await asyncio.Event().wait()

    async def send() -> httpx.Response:
        server = httpx.ASGITransport(application([shown.store]))
        async with httpx.AsyncClient(transport=server, base_url="http://127.0.0.1:4280") as client:
            return await client.post(shown.address("/search"), content=stalling(), headers={"Content-Type": "image/png"})

    answer = asyncio.run(asyncio.wait_for(send(), 30))
    assert (answer.status_code, answer.json()["error"]) == (408, "The image did not come within 0.2 s. Send it again.")


def test_other_http_methods_are_refused(shown: Shown, client: TestClient) -> None:
    for address in addresses(shown):
        for method in ("PUT", "PATCH", "DELETE", "TRACE", "PROPFIND"):
            assert client.request(method, address).status_code in (404, 405), (method, address)


# Access and curation


def test_the_api_has_the_same_access_rules_and_headers_as_the_server(shown: Shown, client: TestClient) -> None:
    with served(shown, token=SECRET) as guarded:
        for address in addresses(shown):
            for wrong in ("", "Bearer x", f"Basic {SECRET}"):
                answer = guarded.get(address, headers={"Authorization": wrong})
                assert answer.status_code == 401
                assert answer.headers["WWW-Authenticate"].startswith("Basic")
                assert list(answer.json()) == ["error"]
            assert guarded.get(address).status_code == 200, address
    answers = [client.get(address) for address in [*addresses(shown), shown.address("/clusters/77")]]
    assert error(client, "GET", f"{api.ROOT}/runs", 421, headers={"Host": "evil.example"})
    for answer in answers:
        for name, value in HEADERS.items():
            assert answer.headers.get(name) == value or name == "Cache-Control", answer.url
        assert answer.headers["Cache-Control"].startswith("private")
        assert "default-src 'none'" in answer.headers["Content-Security-Policy"]


def test_without_curate_acts_are_refused_and_curate_needs_a_token(shown: Shown, client: TestClient) -> None:
    said = {"kind": "star", "who": "me", "key": 0}
    assert "only reads" in error(client, "POST", shown.address("/curation"), 403, json=said)
    with served(shown, token=SECRET) as guarded:
        assert "only reads" in error(guarded, "POST", shown.address("/curation"), 403, json=said)
    with pytest.raises(ValueError, match="token"):
        application([shown.store], curate=True)
    assert get(client, shown.address("/curation"))["total"] == 0


def test_names_given_by_people_are_stored_and_returned_as_plain_text(shown: Shown, curating: TestClient) -> None:
    names = [name for name in HOSTILE if name.isprintable() and name.strip()]
    for number, name in enumerate(names):
        answer = curating.post(shown.address("/curation"), json={"kind": "rename", "who": name, "key": 1, "text": name, "why": name})
        assert answer.status_code == 200, (name, answer.text)
        assert (answer.json()["number"], answer.json()["text"]) == (number + 1, name.strip())
        row = curating.get(shown.address("/clusters/1"))
        assert row.headers["content-type"] == "application/json"
        assert (row.json()["name"], row.json()["curated"]) == (name.strip(), True)
    log = get(curating, shown.address("/curation?limit=2"))
    assert [row["text"] for row in log["rows"]] == [name.strip() for name in names[:-3:-1]]
    assert log["total"] == len(names)
    assert get(curating, log["next"])["rows"][0]["number"] == len(names) - 2


def test_invalid_acts_are_refused_and_not_logged(shown: Shown, curating: TestClient) -> None:
    for said, why in (
        ({"kind": "rename", "who": "me", "key": 77, "text": "x"}, "no cluster 77"),
        ({"kind": "rename", "who": "me", "key": 1}, "empty"),
        ({"kind": "rename", "who": "me", "key": 1, "text": "x" * 300}, "300 characters"),
        ({"kind": "rename", "who": "me", "key": 1, "text": "a\u202eb"}, "U+202E"),
        ({"kind": "paint", "who": "me"}, "kind"),
        ({"kind": "star", "key": 1}, "who"),
        ({"kind": "star", "who": "me", "key": "<b>"}, "key"),
        ({"kind": "move", "who": "me", "key": 1, "images": ["0" * 32]}, "this run has no such image"),
        ({"kind": "undo", "who": "me", "undoes": 9}, "no act 9"),
        ({"kind": "hide", "who": "me", "key": 1, "image": ["0" * 32]}, "image: Unexpected"),
        ([], "body"),
    ):
        assert why in error(curating, "POST", shown.address("/curation"), 400, json=said)
    assert get(curating, shown.address("/curation"))["total"] == 0


def test_acts_from_pages_of_other_servers_or_with_another_kind_of_body_are_refused(shown: Shown, curating: TestClient) -> None:
    said = json.dumps({"kind": "star", "who": "me", "key": 0})
    address = shown.address("/curation")
    for headers in ({"Origin": "http://evil.example"}, {"Origin": "null"}, {"Sec-Fetch-Site": "cross-site"}, {"Sec-Fetch-Site": "same-site"}):
        error(curating, "POST", address, 403, content=said, headers={**JSON, **headers})
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""):
        error(curating, "POST", address, 415, content=said, headers={"Content-Type": kind})
    assert "MiB" in error(curating, "POST", address, 413, content=b" " * (api.MOST_SAID_BYTES + 1), headers=JSON)
    assert "JSON" in error(curating, "POST", address, 400, content=b"{", headers=JSON)
    assert get(curating, address)["total"] == 0
    for headers in ({"Origin": "http://127.0.0.1:4280"}, {"Sec-Fetch-Site": "same-origin", "Origin": "http://127.0.0.1:4280"}):
        assert curating.post(address, content=said, headers={**JSON, **headers}).status_code == 200


# Damage


def test_the_error_of_a_damaged_log_does_not_advise_gsec_run(shown: Shown, curating: TestClient) -> None:
    assert curating.post(shown.address("/curation"), json={"kind": "star", "who": "me", "key": 1}).status_code == 200
    [path] = (Path(shown.store.url) / "curation").glob("*/*")
    path.write_text("{")
    with served(shown) as client:
        sentence = error(client, "GET", shown.address("/clusters"), 500)
    assert "gsec run" not in sentence
    assert "what to do" in sentence


def test_the_error_of_a_damaged_table_hides_its_path_which_only_the_servers_log_has(shown: Shown, caplog: pytest.LogCaptureFixture) -> None:
    run = Run(shown.store.files, shown.run)
    fingerprint = run.stages()["lineage"]["fingerprint"]
    path = Path(shown.store.url) / f"made-up/lineage/{fingerprint}/all.parquet"
    data = path.read_bytes()
    path.write_bytes(data[:50] + b"\xff" * 20 + data[70:])
    try:
        with served(shown) as client:
            assert "damaged" in error(client, "GET", shown.address("/clusters"), 500)
            assert str(path.parent) not in error(client, "GET", shown.address("/clusters"), 500)
        assert fingerprint in caplog.text
    finally:
        path.write_bytes(data)
