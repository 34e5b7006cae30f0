"""The explorer's pages, thumbnails, map and search."""

import io
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from flows.serve import explorer
from flows.serve.app import application
from flows.serve.explorer import _steps
from flows.serve.known import UNPUBLISHED
from flows.serve.listing import Listing
from gsec_core.curation import add
from gsec_core.explore import collection
from gsec_core.explore.rows import Node, Tree
from gsec_core.report.collect import collect
from gsec_core.store import Store

from ...pictures import picture
from .examples import PER_PAGE, Shown, check, images_of, links, title


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
        assert 'method="post" action="' + shown.base + '/curation"' not in page, "without curation a page must not have its form"
        check(curator.get(shown.base + path))
    assert client.get("/explore/nightly").headers["location"] == f"{shown.base}/explore"
    unknown = client.get("/explore/other")
    assert (unknown.status_code, unknown.text) == (404, UNPUBLISHED)
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
    starred = client.get(f"{shown.base}/explore?show=starred").text
    assert "No cluster matches" in starred
    assert '<input type="hidden" name="show" value="starred">' in starred, "a filter by name must not show others again"


def test_a_gallery_has_every_image_once_and_an_images_page_links_its_neighbours(shown: Shown, client: TestClient) -> None:
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


def test_a_clusters_page_lists_its_images_whatever_is_searched_for_in_its_query(shown: Shown, client: TestClient) -> None:
    row = shown.collection().clusters()[-1]
    address = f"{shown.base}/clusters/{row.key}"
    assert images_of(client.get(f"{address}?like={row.examples[0]}").text) == images_of(client.get(address).text)


def test_wrong_addresses_are_not_found(shown: Shown, client: TestClient) -> None:
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
    for path in (f"/runs/{'0' * 32}/explore", "/runs/x/explore"):
        gone = client.get(path)
        assert (gone.status_code, "there is no such run here" in gone.text) == (404, True)
    for path in ("/static/x", "/static/overview.css", f"{shown.base}/images/{'0' * 32}/thumbnail.jpg"):
        assert client.get(path).status_code == 404


def test_thumbnails_and_static_files_can_be_cached_by_the_browser(shown: Shown, client: TestClient) -> None:
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
        "/static/view.js",
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
    assert page.count(f'href="{shown.base}/clusters/') == 3, "the page must have a text alternative of the map"
    told = client.get(f"{shown.base}/points/0").json()
    row = shown.collection().image(told["id"]).row
    assert [one.key for one in shown.collection().clusters()][points[0, 2]] == row.key


def test_search_works_by_image_by_upload_and_by_words_and_refuses_bad_uploads(shown: Shown, client: TestClient) -> None:
    row = shown.collection().images(limit=1).rows[0]
    like = check(client.get(f"{shown.base}/search?like={row.id}"))
    assert images_of(like)[1] != row.id
    buffer = io.BytesIO()
    picture(7).save(buffer, "PNG")
    found = check(client.post(f"{shown.base}/search", files={"file": ("mine.png", buffer.getvalue(), "image/png")}))
    assert title(found) == "Images like mine.png"
    assert shown.collection().image(images_of(found)[0]).row.uri == "007.jpg"
    for files in ({"file": ("x.png", b"no image", "image/png")}, {"other": ("x.png", b"x", "image/png")}):
        assert title(check(client.post(f"{shown.base}/search", files=files), 400)) == "Not done"
    assert client.post(f"{shown.base}/search", content=iter([b"x"]), headers={"Content-Type": "multipart/form-data; boundary=x"}).status_code == 411
    large = client.post(f"{shown.base}/search", headers={"Content-Length": str(10**9)})
    assert (large.status_code, "larger than 20 MiB" in large.text) == (413, True)
    assert client.post(f"{shown.base}/search", content=b"x", headers={"Transfer-Encoding": "chunked", "Content-Length": "1"}).status_code == 411
    words = check(client.get(f"{shown.base}/search?q=a+red+disc+%3Cscript%3E"))
    assert len(images_of(words)) == PER_PAGE
    assert "a red disc &lt;script&gt;" in words


def test_images_found_by_an_upload_can_be_moved_to_any_cluster(shown: Shown, curator: TestClient) -> None:
    buffer = io.BytesIO()
    picture(7).save(buffer, "PNG")
    found = curator.post(f"{shown.base}/search", files={"file": ("mine.png", buffer.getvalue(), "image/png")}).text
    for row in shown.collection().clusters():
        assert f'<option value="{row.key}">' in found


def test_a_large_group_of_duplicates_says_how_many_are_the_same_file_and_how_many_are_shown(
    shown: Shown, client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collection, "MOST_SHOWN", 1)
    pattern = r"<h2>(\d+) images <small>2 of them the same file, the first 1 are shown</small></h2>"
    assert re.search(pattern, client.get(f"{shown.base}/duplicates").text)


def test_hidden_images_are_in_no_group_of_duplicates_of_the_report(shown: Shown) -> None:
    def uris() -> set[str]:
        return {image.uri for group in collect(shown.context).duplicates or () for image in group.images}

    hidden = next(row for row in shown.collection().images(limit=100).rows if row.uri in uris())
    add(shown.context, "hide", who="ann", images=[hidden.id])
    assert hidden.uri not in uris()


def test_whether_a_run_is_published_is_decided_by_its_own_store(shown: Shown, tmp_path: Path) -> None:
    shutil.copytree(Path(shown.store.url) / "published", tmp_path / "published")
    other = Store.open(str(tmp_path))
    newest = other.publications.newest("nightly")
    assert newest
    other.publications.add(replace(newest, number=newest.number + 1, run_id="f" * 32))
    with TestClient(application([other, shown.store]), base_url="http://127.0.0.1:4280") as client:
        page = check(client.get(f"{shown.base}/explore"))
    assert "is another" not in page
    assert "not published" not in page


def test_a_listing_survives_its_conversion_to_a_query_and_back() -> None:
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


def test_a_very_deep_tree_is_shown_completely() -> None:
    """The tree is a chain of 500 clusters, each merged with all before it."""
    leaves = tuple((key, f"c{key}", 1) for key in range(500))
    nodes = tuple(Node(500 + row, 499 + row if row else 0, row + 1, float(row), row + 2, row + 2, "n") for row in range(499))
    steps = list(_steps(Tree(leaves, nodes, ())))
    assert sorted(step.key for step in steps if not step.opens and not step.closes) == list(range(500))
    assert sum(step.opens for step in steps) == sum(step.closes for step in steps) == explorer._DEEPEST
    assert [step.key for step in _steps(Tree(leaves[:1], (), ()))] == [0]
