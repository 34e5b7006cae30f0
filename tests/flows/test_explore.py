"""The explorer: its pages, its forms, and whose forms are taken."""

import html.parser
import io
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.testclient import TestClient

from flows.serve import curating, explorer, server
from flows.serve.app import TOKEN, application
from flows.serve.curating import in_words
from flows.serve.explorer import _steps
from flows.serve.listing import Listing
from gsec_core import pipeline
from gsec_core.curation import Act, Image, Log
from gsec_core.errors import BadShard, Refused
from gsec_core.explore import Collection, act_row
from gsec_core.explore.rows import Node, Tree
from gsec_core.stages.base import Context
from gsec_core.store import Publications, Store

from ..pictures import cluster, picture, settings, write_pictures

SECRET = "a long random text"

HOSTILE = "<img src=x onerror=alert(1)>\u202e.jpg"

ELSEWHERE = "https://elsewhere.example"

PER_PAGE = 20

VOID = {"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr", "circle", "polygon"}


@dataclass
class Shown:
    """A store with a published run."""

    store: Store
    context: Context

    @property
    def base(self) -> str:
        return f"/runs/{self.context.run.id}"

    @property
    def log(self) -> Log:
        return Log(self.store.files, "nightly")

    def collection(self) -> Collection:
        return Collection(self.context.run)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Context:
    folder = tmp_path_factory.mktemp("explore")
    images = write_pictures(folder / "in", range(24))
    picture(99).save(images / HOSTILE)
    picture(3).save(images / "copy.jpg", quality=90)
    context, _, _ = cluster(settings(images, folder / "store", pipeline="nightly", clusters=3))
    assert pipeline.finish(context)["published"]
    return context


@pytest.fixture
def shown(made: Context) -> Iterator[Shown]:
    """Nobody has curated it."""
    store = Store.open(made.config.store)
    before = (Path(store.url) / "published" / "nightly.json").read_bytes()
    yield Shown(store, made)
    shutil.rmtree(Path(store.url) / "curation", ignore_errors=True)
    (Path(store.url) / "published" / "nightly.json").write_bytes(before)


@pytest.fixture(autouse=True)
def _small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(explorer, "PER_PAGE", PER_PAGE)


@contextmanager
def served(shown: Shown, curate: bool = False, by_link: bool = False, user: str | None = "ann") -> Iterator[TestClient]:
    token = SECRET if curate else None
    with TestClient(application([shown.store], token, curate=curate, by_link=by_link), base_url="http://127.0.0.1:4280", follow_redirects=False) as client:
        if curate and user is not None:
            client.auth = (user, SECRET)
        yield client


@pytest.fixture
def client(shown: Shown) -> Iterator[TestClient]:
    with served(shown) as client:
        yield client


@pytest.fixture
def curator(shown: Shown) -> Iterator[TestClient]:
    with served(shown, curate=True) as client:
        yield client


def sent(client: TestClient, shown: Shown, page: str = "/explore", headers: dict[str, str] | None = None, **fields: object) -> httpx.Response:
    """A form of a page, as a browser sends it."""
    found = re.search(r'name="token" value="(\w+)"', client.get(f"{shown.base}/clusters/0").text)
    assert found
    data = {"token": found[1], "next": shown.base + page, **fields}
    headers = {"Origin": "http://127.0.0.1:4280", "Sec-Fetch-Site": "same-origin", **(headers or {})}
    return client.post(f"{shown.base}/curation", data=data, headers=headers)


def title(page: str) -> str:
    found = re.search(r"<h1>(.*?)</h1>", page, re.DOTALL)
    assert found
    return re.sub(r"<[^>]*>", "", found[1]).strip()


def links(page: str, rel: str) -> list[str]:
    return [found.replace("&amp;", "&") for found in re.findall(rf'<a rel="{rel}" href="([^"]*)"', page)]


def images_of(page: str) -> list[str]:
    """Ids of a page's thumbnails, in order."""
    return re.findall(r"/images/(\w{32})/thumbnail\.jpg", page)


class WellFormed(html.parser.HTMLParser):
    """Fails for an element that is not closed, and for what a policy forbids."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = dict(attrs)
        assert not [name for name in names if name.startswith("on") or name == "style"], attrs
        self.ids += [str(names["id"])] if "id" in names else []
        if tag == "img":
            assert {"alt", "width", "height"} <= names.keys()
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        if self.open[-1] == "p" and tag != "p":
            self.open.pop()
        assert self.open.pop() == tag


def check(answer: httpx.Response, status: int = 200) -> str:
    """A page, well-formed and under a strict policy."""
    assert answer.status_code == status, answer.text[:500]
    parser = WellFormed()
    parser.feed(answer.text)
    assert not parser.open
    assert len(set(parser.ids)) == len(parser.ids)
    policy = answer.headers["content-security-policy"]
    assert "script-src 'self'" in policy
    assert "unsafe" not in policy
    assert "default-src 'none'" in policy
    return answer.text


# Pages


def test_every_page_answers_and_is_well_formed(shown: Shown, client: TestClient, curator: TestClient) -> None:
    row = shown.collection().images(limit=1).rows[0]
    paths = ["/explore", "/explore?sort=name&show=starred", "/explore?find=0", "/clusters/0", "/clusters/1?sort=outlier&order=descending", "/images"]
    paths += [
        "/images?page=2&sort=name",
        f"/images/{row.id}",
        f"/images/{row.id}?at=1",
        "/search",
        f"/search?like={row.id}",
        "/map",
        "/duplicates",
        "/curation",
    ]
    paths += ["/images?within=0,0,1,0,1,1,0,1"]
    for path in paths:
        page = check(client.get(shown.base + path))
        assert 'method="post" action="' + shown.base + '/curation"' not in page, "nobody may write"
        check(curator.get(shown.base + path))
    assert client.get("/explore/nightly").headers["location"] == f"{shown.base}/explore"
    assert client.get("/explore/other").status_code == 404
    front = client.get("/").text
    assert 'href="/explore/nightly"' in front
    assert f'href="{shown.base}/explore"' in front


def test_clusters_are_shown_sorted_and_filtered(shown: Shown, client: TestClient) -> None:
    rows = shown.collection().clusters()
    page = client.get(f"{shown.base}/explore").text
    assert title(page) == f"{len(shown.collection())} images in 3 clusters"
    assert re.findall(r"/clusters/(\d+)\"", page) == [str(row.key) for row in rows]
    by_name = client.get(f"{shown.base}/explore?sort=name").text
    assert re.findall(r"/clusters/(\d+)\"", by_name) == [str(row.key) for row in sorted(rows, key=lambda row: row.name.casefold())]
    assert re.findall(r"/clusters/(\d+)\"", client.get(f"{shown.base}/explore?find=%231").text) == ["1"]
    assert "No cluster matches" in client.get(f"{shown.base}/explore?show=starred").text


def test_a_gallery_has_every_image_once_and_its_images_lead_on(shown: Shown, client: TestClient) -> None:
    address, seen = f"{shown.base}/images?sort=name&order=ascending", []
    first = client.get(address).text
    while address:
        page = client.get(address).text
        seen += images_of(page)
        address = next(iter(links(page, "next")), "")
    everything = shown.collection().images(sort="name", limit=200)
    assert seen == [row.id for row in everything.rows]
    assert len(images_of(first)) == PER_PAGE
    for place in (1, PER_PAGE, PER_PAGE + 1, len(seen)):
        page = check(client.get(f"{shown.base}/images/{seen[place - 1]}?sort=name&order=ascending&at={place}"))
        assert f"{place} of {len(seen)}" in page
        before, after = links(page, "prev"), links(page, "next")
        assert [seen[place - 2]] * bool(before) == [re.findall(r"\w{32}", link)[1] for link in before]
        assert len(before) == (place > 1)
        assert len(after) == (place < len(seen))
        if after:
            assert images_of(client.get(after[0]).text)[0] == seen[place]


def test_what_is_not_there_is_not_found(shown: Shown, client: TestClient) -> None:
    id = shown.collection().images(limit=1).rows[0].id
    for path in (
        "/images?page=0",
        "/images?page=3",
        "/images?page=x",
        "/images?page=99999999999",
        "/explore?page=2",
        "/clusters/77",
        "/clusters/x",
        "/clusters/-1",
    ):
        check(client.get(shown.base + path), 404)
    for path in (
        f"/images/{'0' * 32}",
        "/images/x",
        f"/images/{id}?sort=x",
        "/images?sort=x",
        "/images?order=x",
        "/images?within=0,0",
        "/images?within=x",
        "/points/x",
    ):
        check(client.get(shown.base + path), 404)
    for path in ("/explore?sort=x", "/explore?view=x", "/explore?show=x", "/points/99999", "/curation?page=2", "/duplicates?page=99", "/search?like=x"):
        check(client.get(shown.base + path), 404)
    for path in (f"/runs/{'0' * 32}/explore", "/runs/x/explore", "/static/x", "/static/overview.css", f"{shown.base}/images/{'0' * 32}/thumbnail.jpg"):
        assert client.get(path).status_code == 404


def test_thumbnails_and_static_files_are_kept(shown: Shown, client: TestClient) -> None:
    id = shown.collection().images(limit=1).rows[0].id
    thumbnail = client.get(f"{shown.base}/images/{id}/thumbnail.jpg")
    assert thumbnail.headers["content-type"] == "image/jpeg"
    assert thumbnail.content[:2] == b"\xff\xd8"
    assert thumbnail.headers["cache-control"].startswith("private, max-age=")
    for path in (
        f"{shown.base}/images/{id}/thumbnail.jpg",
        "/static/explore.css",
        "/static/report.css",
        "/static/explore.js",
        "/static/map.js",
        f"{shown.base}/map.bin",
    ):
        answer = client.get(path)
        assert answer.status_code == 200
        again = client.get(path, headers={"If-None-Match": answer.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")


def test_the_map_has_every_image(shown: Shown, client: TestClient) -> None:
    import numpy as np

    points = np.frombuffer(client.get(f"{shown.base}/map.bin").content, "<u2").reshape(-1, 3)
    assert len(points) >= 25
    page = client.get(f"{shown.base}/map").text
    assert page.count(f'href="{shown.base}/clusters/') == 3, "the text alternative"
    told = client.get(f"{shown.base}/points/0").json()
    row = shown.collection().image(told["id"]).row
    assert [one.key for one in shown.collection().clusters()][points[0, 2]] == row.key


def test_search(shown: Shown, client: TestClient) -> None:
    row = shown.collection().images(limit=1).rows[0]
    like = check(client.get(f"{shown.base}/search?like={row.id}"))
    assert images_of(like)[1] != row.id
    buffer = io.BytesIO()
    picture(7).save(buffer, "PNG")
    found = check(client.post(f"{shown.base}/search", files={"file": ("mine.png", buffer.getvalue(), "image/png")}))
    assert title(found) == "Images like mine.png"
    assert shown.collection().image(images_of(found)[0]).row.uri == "007.jpg"
    for files in ({"file": ("x.png", b"no image", "image/png")}, {"other": ("x.png", b"x", "image/png")}):
        check(client.post(f"{shown.base}/search", files=files), 404)
    assert client.post(f"{shown.base}/search", content=iter([b"x"]), headers={"Content-Type": "multipart/form-data; boundary=x"}).status_code == 411
    assert client.post(f"{shown.base}/search", headers={"Content-Length": str(10**9)}).status_code == 413
    assert client.post(f"{shown.base}/search", content=b"x", headers={"Transfer-Encoding": "chunked", "Content-Length": "1"}).status_code == 411
    words = check(client.get(f"{shown.base}/search?q=a+red+disc+%3Cscript%3E"))
    assert len(images_of(words)) == PER_PAGE
    assert "a red disc &lt;script&gt;" in words


def test_what_is_published_is_told_by_the_runs_own_store(shown: Shown, tmp_path: Path) -> None:
    shutil.copytree(Path(shown.store.url) / "published", tmp_path / "published")
    other = Store.open(str(tmp_path))
    newest = other.publications.newest("nightly")
    assert newest
    other.publications.add(replace(newest, number=newest.number + 1, run_id="f" * 32))
    with TestClient(application([other, shown.store]), base_url="http://127.0.0.1:4280") as client:
        page = check(client.get(f"{shown.base}/explore"))
    assert "is another" not in page
    assert "not published" not in page


# Whose forms are taken


def test_without_curate_nothing_is_written(shown: Shown, client: TestClient) -> None:
    assert client.post(f"{shown.base}/curation", data={"kind": "rename", "key": 0, "name": "x"}).status_code == 405
    assert not shown.log.read()
    with pytest.raises(ValueError, match="token"):
        application([shown.store], curate=True)


def test_forms_of_other_pages_are_refused(shown: Shown, curator: TestClient) -> None:
    rename = {"kind": "rename", "key": 0, "name": "x"}
    for headers in (
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Sec-Fetch-Site": "none"},
        {"Sec-Fetch-Site": "", "Origin": ELSEWHERE},
    ):
        assert sent(curator, shown, headers=headers, **rename).status_code == 403
    for origin in (ELSEWHERE, "null", "http://127.0.0.1:4281", "http://localhost:4280"):
        answer = curator.post(f"{shown.base}/curation", data=rename, headers={"Origin": origin})
        assert answer.status_code == 403
        assert "a page of another server" in answer.text
    for token in ("", "0" * 64, "é"):
        check(sent(curator, shown, token=token, **rename), 403)
    with served(shown, curate=True, user="bob") as other:
        token = re.search(r'name="token" value="(\w+)"', other.get(f"{shown.base}/clusters/0").text)
        assert token
        check(sent(curator, shown, token=token[1], **rename), 403)
    assert not shown.log.read()


def test_a_form_is_taken_of_a_browser_that_says_its_origin_alone(shown: Shown, curator: TestClient) -> None:
    """As over plain HTTP to another machine. Under `no-referrer` it would say `null`."""
    page = curator.get(f"{shown.base}/clusters/0")
    assert page.headers["referrer-policy"] == "same-origin"
    token = re.search(r'name="token" value="(\w+)"', page.text)
    assert token
    form = {"token": token[1], "kind": "star", "key": 0}
    assert curator.post(f"{shown.base}/curation", data=form, headers={"Origin": "http://127.0.0.1:4280"}).status_code == 303


def test_without_the_token_nothing_is_served(shown: Shown) -> None:
    with served(shown, curate=True, user=None) as client:
        for path in ("/explore", "/clusters/0", "/images", "/map.bin"):
            assert client.get(shown.base + path).status_code == 401
        assert client.get("/static/explore.js").status_code == 401
        assert client.post(f"{shown.base}/curation", data={"kind": "rename"}).status_code == 401
        assert client.get(f"/?token={SECRET}").status_code == 401, "only where the server itself has made the token"


def test_a_link_with_the_token_logs_in(shown: Shown) -> None:
    with served(shown, curate=True, by_link=True, user=None) as client:
        assert client.get("/?token=x").status_code == 401
        assert client.get(f"//elsewhere.example/?token={SECRET}").headers["location"] == "/"
        client.cookies.clear()
        answer = client.get(f"{shown.base}/explore?token={SECRET}")
        assert (answer.status_code, answer.headers["location"]) == (303, f"{shown.base}/explore")
        cookie = answer.headers["set-cookie"]
        assert "HttpOnly" in cookie
        assert "SameSite=strict" in cookie
        assert SECRET not in cookie
        assert client.get(f"{shown.base}/explore").status_code == 200
        assert sent(client, shown, kind="star", key=0).status_code == 303
        assert shown.log.read()[0].who == curating.NOBODY
        client.cookies.clear()
        client.cookies.set(cookie.partition("=")[0], "x")
        assert client.get(f"{shown.base}/explore").status_code == 401


@pytest.mark.parametrize("curate", [False, True])
def test_the_process_makes_a_token_on_this_machine_alone(
    curate: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv(TOKEN, raising=False)
    started: list[Any] = []
    monkeypatch.setattr(
        server.uvicorn, "Server", lambda config: started.append(config) or type("Ended", (), {"run": lambda self, sockets: sockets[0].close()})()
    )
    with pytest.raises(Refused, match="only with a token"):
        server.serve([str(tmp_path)], "0.0.0.0", 0, curate)
    server.serve([str(tmp_path)], "127.0.0.1", 0, curate)
    link = re.search(r"http://127\.0\.0\.1:(\d+)/\?token=(\S{20,})", capfd.readouterr().err)
    assert (link is not None) == curate
    with TestClient(started[0].app, base_url="http://127.0.0.1", follow_redirects=False) as client:
        assert client.get("/").status_code == (401 if curate else 200)
        if link:
            assert client.get(f"/?token={link[2]}").status_code == 303
            assert client.get("/").status_code == 200


# Acts


def test_every_act_from_its_form(shown: Shown, curator: TestClient) -> None:
    before = {row.key: row for row in shown.collection().clusters()}
    some = [row.id for row in shown.collection().images(key=0, limit=2).rows]

    def done(**fields: object) -> str:
        answer = sent(curator, shown, **fields)
        assert answer.status_code == 303, title(answer.text)
        return check(curator.get(answer.headers["location"]))

    assert "Called cluster 0 “mine”" in done(kind="rename", key=0, name="mine", page="/clusters/0")
    assert title(curator.get(f"{shown.base}/clusters/0").text) == "mine"
    assert "as words" in done(kind="describe", key=0, description="as words")
    assert "as words" in curator.get(f"{shown.base}/clusters/0").text
    assert "Moved 2 images to cluster 1" in done(kind="move", image=some, to=1)
    assert set(some) < set(images_of(curator.get(f"{shown.base}/clusters/1").text))
    assert "Hid 2 images" in done(kind="hide", image=some * 500), "groups of duplicates have many"
    assert not set(some) & set(images_of(curator.get(f"{shown.base}/clusters/1").text))
    assert set(some) < set(images_of(curator.get(f"{shown.base}/clusters/1?hidden=1").text))
    done(kind="show", image=some)
    done(kind="star", image=some)
    assert "★" in curator.get(f"{shown.base}/images/{some[0]}").text
    done(kind="unstar", image=some)
    done(kind="hide", key=2)
    assert f'{shown.base}/clusters/2"' not in curator.get(f"{shown.base}/explore").text
    assert f'{shown.base}/clusters/2"' in curator.get(f"{shown.base}/explore?show=hidden").text
    done(kind="show", key=2)
    done(kind="star", key=2)
    assert f'{shown.base}/clusters/2"' in curator.get(f"{shown.base}/explore?show=starred").text
    assert "1000000" in done(kind="split", key=0, parts=2, page="/clusters/0")
    page = done(kind="merge", key=1, to=2, page="/clusters/1")
    assert "Merged cluster 1 into cluster 2" in page
    assert title(page) == before[2].name, "the cluster that it went into"
    assert curator.get(f"{shown.base}/clusters/1").status_code == 404
    tree = check(curator.get(f"{shown.base}/explore?view=tree"))
    assert f'{shown.base}/clusters/1"' not in tree, "it leads to the cluster that it went into"
    assert tree.count(f'{shown.base}/clusters/2"') == 2
    number = shown.log.read()[-1].number
    assert f"Undid act {number}" in done(kind="undo", number=number, page="/curation")
    assert title(curator.get(f"{shown.base}/clusters/1").text) == before[1].name
    log = check(curator.get(f"{shown.base}/curation"))
    assert log.count('<span class="muted">') == len(shown.log.read())
    assert log.count('class="undone"') == 1
    assert {act.who for act in shown.log.read()} == {"ann"}


def test_a_list_as_a_whole_is_moved(shown: Shown, curator: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    size = shown.collection().cluster(0).size
    assert sent(curator, shown, page="/clusters/0", kind="move", everything="key=0", to=1).headers["location"].endswith("/clusters/0?done=1")
    assert len(shown.log.read()[0].images) == size
    monkeypatch.setattr(curating, "MOST_AT_ONCE", 5)
    assert "at most 5" in check(sent(curator, shown, kind="move", everything="key=1", to=0), 400)


def test_after_all_of_the_last_page_is_moved_the_page_before_it_is_shown(shown: Shown, curator: TestClient) -> None:
    last = re.findall(r'name="image" value="(\w+)"', curator.get(f"{shown.base}/images?page=2").text)
    answer = sent(curator, shown, page="/images?page=2", kind="hide", image=last)
    page = curator.get(answer.headers["location"])
    assert len(images_of(check(page))) == PER_PAGE
    assert curator.get(f"{shown.base}/images?page=2").status_code == 404


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"kind": "rename", "key": 0, "name": " "}, "empty"),
        ({"kind": "rename", "key": 77, "name": "x"}, "no cluster 77"),
        ({"kind": "rename", "key": "x", "name": "x"}, "no number"),
        ({"kind": "merge", "key": 0, "to": ""}, "No cluster is chosen"),
        ({"kind": "merge", "key": 0, "to": 0}, "merge"),
        ({"kind": "split", "key": 0, "parts": 5000}, "parts"),
        ({"kind": "move", "to": 1}, "No image is selected"),
        ({"kind": "move", "to": 1, "image": "0" * 32}, "this run has no such image"),
        ({"kind": "undo", "number": 5}, "no act 5"),
        ({"kind": "<b>"}, "&lt;b&gt;"),
        ({}, "there is no such act"),
    ],
)
def test_what_cannot_be_done_is_said_and_not_written(shown: Shown, curator: TestClient, fields: dict[str, object], said: str) -> None:
    page = check(sent(curator, shown, page="/clusters/0", **fields), 400)
    assert said in page
    assert f'href="{shown.base}/clusters/0"' in page
    assert not shown.log.read()


@pytest.mark.parametrize("place", ["https://elsewhere.example/", "//elsewhere.example", "/", "/runs/x/explore", "", "\r\nX: y"])
def test_a_form_leads_nowhere_else(shown: Shown, curator: TestClient, place: str) -> None:
    answer = sent(curator, shown, kind="star", key=0, next=place)
    assert answer.headers["location"] == f"{shown.base}/explore?done=1"


def test_what_is_in_the_log_is_not_said_to_have_failed(
    shown: Shown, curator: TestClient, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Else it would be said twice."""

    def fails(*_: object) -> None:
        raise BadShard("all.parquet", "damaged")

    with monkeypatch.context() as patched:
        patched.setattr(Publications, "point", fails)
        assert sent(curator, shown, kind="star", key=0).status_code == 303
        answer = curator.post(f"/api/v1{shown.base}/curation", json={"kind": "star", "who": "ann", "key": 1})
        assert (answer.status_code, answer.json()["number"]) == (200, 2)
    assert "It is in the log as act 1, but published/nightly.json could not be written again" in caplog.text
    assert [act.kind for act in shown.log.read()] == ["star", "star"]


def test_two_people_at_once(shown: Shown, curator: TestClient) -> None:
    with served(shown, curate=True, user="bob") as other:
        sent(curator, shown, kind="rename", key=0, name="hers")
        sent(other, shown, kind="rename", key=0, name="his")
        for client in (curator, other):
            assert title(client.get(f"{shown.base}/clusters/0").text) == "his"
            log = client.get(f"{shown.base}/curation").text
            assert "“hers”" in log
            assert "ann, " in log
            assert "bob, " in log


def test_a_damaged_log_is_told_and_hides_the_reports_not(shown: Shown, curator: TestClient, caplog: pytest.LogCaptureFixture) -> None:
    sent(curator, shown, kind="rename", key=0, name="x")
    (Path(shown.store.url) / "curation" / "nightly" / "00000001.json").write_text("{")
    with served(shown) as client:
        answer = client.get(f"{shown.base}/explore")
        assert (answer.status_code, answer.text) == (500, "A table or record of this run is damaged; the server's log says which.\n")
        assert "00000001.json" in caplog.text
        assert client.get("/").status_code == client.get(f"{shown.base}/report/index.html").status_code == 200


def test_foreign_text_stays_text(shown: Shown, curator: TestClient) -> None:
    script = "<script>alert(1)</script>"
    assert sent(curator, shown, kind="rename", key=0, name=script).status_code == 303
    assert sent(curator, shown, kind="describe", key=0, description=f'"><b onclick={script}').status_code == 303
    id = next(row.id for row in shown.collection().images(limit=200).rows if row.uri.endswith(HOSTILE[-5:]) and "img" in row.uri)
    for path in (
        "/explore",
        "/clusters/0",
        "/curation",
        "/map",
        "/images?sort=name&order=ascending",
        f"/images/{id}",
        f"/search?like={id}",
        "/explore?find=%3Cscript%3E",
    ):
        page = check(curator.get(shown.base + path))
        for bad in (script, "<b onclick", "<img src=x", "\u202e"):
            assert bad not in page, path
    assert "\\u003cscript" in curator.get(f"{shown.base}/map").text
    assert r"\u202e" in curator.get(f"{shown.base}/images/{id}").text


# Parts


def test_a_listing_is_found_again_in_its_query() -> None:
    for listing in (
        Listing(),
        Listing(key=3, sort="name", descending=False, hidden=True),
        Listing(sort="confidence", descending=False),
        Listing(within=((0, 0.25), (1, 0), (0.5, 1))),
        Listing(words="a & b=c"),
        Listing(like="0" * 32),
    ):
        assert Listing.parse(listing.query) == listing
    assert Listing.parse("sort=name") == Listing(sort="name", descending=False)


def test_an_act_in_words() -> None:
    names = {3: "cat"}
    images = (Image("0" * 32, "1" * 32),)
    said = [
        in_words(act_row(Act(who="x", at="", **fields)), names)  # type: ignore[arg-type]
        for fields in (
            {"kind": "merge", "key": 3, "keys": (1, 2)},
            {"kind": "split", "key": 3, "keys": (1_000_000,)},
            {"kind": "hide", "images": images},
            {"kind": "hide", "key": 4},
            {"kind": "later", "unknown": ("kind",)},
        )
    ]
    assert said[:4] == ["Merged clusters 1, 2 into cluster 3 (cat)", "Split cluster 3 (cat); cluster 1000000 came of it", "Hid 1 image", "Hid cluster 4"]
    assert "newer" in said[4]


def test_the_tree_is_shown_whole_however_deep() -> None:
    """A chain of 500 clusters, each merged with all before it."""
    leaves = tuple((key, f"c{key}", 1) for key in range(500))
    nodes = tuple(Node(500 + row, 499 + row if row else 0, row + 1, float(row), row + 2, row + 2, "n") for row in range(499))
    steps = list(_steps(Tree(leaves, nodes, ())))
    assert sorted(step.key for step in steps if not step.opens and not step.closes) == list(range(500))
    assert sum(step.opens for step in steps) == sum(step.closes for step in steps) == explorer._DEEPEST
    assert [step.key for step in _steps(Tree(leaves[:1], (), ()))] == [0]
