"""Acts of curation that people send by the explorer's forms."""

import re
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from flows.serve import curating
from flows.serve.curating import in_words
from gsec_core.curation import Act, Image
from gsec_core.errors import BadShard
from gsec_core.explore import act_row
from gsec_core.store import Publications

from .examples import HOSTILE, PER_PAGE, Shown, check, images_of, sent, served, title


def test_a_page_that_told_of_an_act_tells_nothing_once_the_act_is_undone(shown: Shown, curator: TestClient) -> None:
    """The back button loads the page again."""
    told = sent(curator, shown, kind="rename", key=0, name="mine").headers["location"]
    assert "Renamed cluster 0" in curator.get(told).text
    undone = sent(curator, shown, kind="undo", number=1).headers["location"]
    assert "Undid act 1" in curator.get(undone).text
    assert "Renamed cluster 0" not in check(curator.get(told))


def test_every_kind_of_act_can_be_sent_by_its_form_and_shows_on_the_pages(shown: Shown, curator: TestClient) -> None:
    before = {row.key: row for row in shown.collection().clusters()}
    some = [row.id for row in shown.collection().images(key=0, limit=2).rows]

    def done(**fields: object) -> str:
        answer = sent(curator, shown, **fields)
        assert answer.status_code == 303, title(answer.text)
        return check(curator.get(answer.headers["location"]))

    assert "Renamed cluster 0 to “mine”" in done(kind="rename", key=0, name="mine", page="/clusters/0")
    assert title(curator.get(f"{shown.base}/clusters/0").text) == "mine"
    assert "as words" in done(kind="describe", key=0, description="as words")
    assert "as words" in curator.get(f"{shown.base}/clusters/0").text
    done(kind="describe", key=0, description="on two\r\nlines")
    assert "on two lines" in curator.get(f"{shown.base}/clusters/0").text
    assert "Moved 2 images to cluster 1" in done(kind="move", image=some, to=1)
    assert set(some) < set(images_of(curator.get(f"{shown.base}/clusters/1").text))
    assert "Hid 2 images" in done(kind="hide", image=some * 500), "a form may have many images, as large groups of duplicates do"
    assert not set(some) & set(images_of(curator.get(f"{shown.base}/clusters/1").text))
    address = f"{shown.base}/images/{some[0]}?key=0&at=1"
    assert f'href="{shown.base}/clusters/1"' in curator.get(address).text, "the image is in another cluster now"
    assert set(some) < set(images_of(curator.get(f"{shown.base}/clusters/1?hidden=1").text))
    done(kind="show", image=some)
    done(kind="star", image=some)
    assert "★" in curator.get(f"{shown.base}/images/{some[0]}").text
    done(kind="unstar", image=some)
    done(kind="hide", key=2)
    assert f'{shown.base}/clusters/2"' not in curator.get(f"{shown.base}/explore").text
    assert f'{shown.base}/clusters/2"' in curator.get(f"{shown.base}/explore?show=hidden").text
    assert f"{before[2].size} more images hidden" in curator.get(f"{shown.base}/explore").text
    page = curator.get(f"{shown.base}/clusters/2").text
    assert "On the map" not in page, "hidden images are not on the map"
    assert len(images_of(page)) == min(PER_PAGE, before[2].size), "the page of a hidden cluster shows its images"
    assert "leave out hidden images" not in page
    left = sum(row.size for row in shown.collection().clusters())
    assert title(curator.get(f"{shown.base}/explore").text) == f"{left} images in 2 clusters"
    assert not set(before[2].examples) & set(images_of(curator.get(f"{shown.base}/explore?view=tree").text))
    done(kind="show", key=2)
    done(kind="star", key=2)
    assert f'{shown.base}/clusters/2"' in curator.get(f"{shown.base}/explore?show=starred").text
    assert "1000000" in done(kind="split", key=0, parts=2, page="/clusters/0")
    page = done(kind="merge", key=1, to=2, page="/clusters/1")
    assert "Merged cluster 1 into cluster 2" in page
    assert title(page) == before[2].name, "the page must be that of the cluster it was merged into"
    assert title(check(curator.get(f"{shown.base}/images/{some[0]}?key=1&at=1"))), "the image's page must not need the gallery that led to it"
    merged = curator.get(f"{shown.base}/clusters/1")
    assert (merged.status_code, f'<a href="{shown.base}/clusters/2">Cluster 2</a>' in merged.text) == (404, True)
    tree = check(curator.get(f"{shown.base}/explore?view=tree"))
    assert f'{shown.base}/clusters/1"' not in tree, "the tree must link to the cluster it was merged into"
    assert tree.count(f'{shown.base}/clusters/2"') == 2
    number = shown.log.read()[-1].number
    assert f"Undid act {number}" in done(kind="undo", number=number, page="/curation")
    assert title(curator.get(f"{shown.base}/clusters/1").text) == before[1].name
    log = check(curator.get(f"{shown.base}/curation"))
    assert log.count('<span class="muted">') == len(shown.log.read())
    assert log.count('class="undone"') == 1
    assert {act.who for act in shown.log.read()} == {"ann"}


def test_a_whole_list_of_images_can_be_moved_up_to_a_limit(shown: Shown, curator: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    size = shown.collection().cluster(0).size
    assert sent(curator, shown, page="/clusters/0", kind="move", everything="key=0", to=1).headers["location"].endswith("/clusters/0?done=1")
    assert len(shown.log.read()[0].images) == size
    monkeypatch.setattr(curating, "MOST_AT_ONCE", 5)
    assert "at most 5" in check(sent(curator, shown, kind="move", everything="key=1", to=0), 400)


def test_after_all_images_of_the_last_page_are_hidden_the_previous_page_is_shown(shown: Shown, curator: TestClient) -> None:
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
        ({"kind": "rename", "key": "x", "name": "x"}, "not a number"),
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
def test_an_invalid_act_is_refused_with_a_reason_and_not_logged(shown: Shown, curator: TestClient, fields: dict[str, object], said: str) -> None:
    page = check(sent(curator, shown, page="/clusters/0", **fields), 400)
    assert said in page
    assert f'href="{shown.base}/clusters/0"' in page
    assert not shown.log.read()


@pytest.mark.parametrize("place", ["https://elsewhere.example/", "//elsewhere.example", "/", "/runs/x/explore", "", "\r\nX: y"])
def test_a_form_never_redirects_to_another_server(shown: Shown, curator: TestClient, place: str) -> None:
    answer = sent(curator, shown, kind="star", key=0, next=place)
    assert answer.headers["location"] == f"{shown.base}/explore?done=1"


def test_an_act_that_is_logged_succeeds_even_if_the_publication_cannot_be_rewritten(
    shown: Shown, curator: TestClient, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """If the request failed, the user would send the act a second time."""

    def fails(*_: object) -> None:
        raise BadShard("all.parquet", "damaged")

    with monkeypatch.context() as patched:
        patched.setattr(Publications, "point", fails)
        assert sent(curator, shown, kind="star", key=0).status_code == 303
        answer = curator.post(f"/api/v1{shown.base}/curation", json={"kind": "star", "who": "ann", "key": 1})
        assert (answer.status_code, answer.json()["number"]) == (200, 2)
    assert "It is in the log as act 1, but published/nightly.json could not be written again" in caplog.text
    assert [act.kind for act in shown.log.read()] == ["star", "star"]


def test_two_people_can_curate_at_once_and_the_later_name_counts(shown: Shown, curator: TestClient) -> None:
    with served(shown, curate=True, user="bob") as other:
        sent(curator, shown, kind="rename", key=0, name="hers")
        sent(other, shown, kind="rename", key=0, name="his")
        for client in (curator, other):
            assert title(client.get(f"{shown.base}/clusters/0").text) == "his"
            log = client.get(f"{shown.base}/curation").text
            assert "“hers”" in log
            assert "ann, " in log
            assert "bob, " in log


def test_a_damaged_log_is_an_error_of_the_explorer_but_reports_are_still_served(shown: Shown, curator: TestClient, caplog: pytest.LogCaptureFixture) -> None:
    sent(curator, shown, kind="rename", key=0, name="x")
    (Path(shown.store.url) / "curation" / "nightly" / "00000001.json").write_text("{")
    with served(shown) as client:
        answer = client.get(f"{shown.base}/explore")
        assert (answer.status_code, answer.text) == (500, "A record in the store is damaged; the server's log says which, and what to do.\n")
        assert "00000001.json" in caplog.text
        assert client.get("/").status_code == client.get(f"{shown.base}/report/index.html").status_code == 200


def test_hostile_texts_are_shown_escaped_on_every_page(shown: Shown, curator: TestClient) -> None:
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


def test_every_kind_of_act_is_described_in_words() -> None:
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
    assert said[:4] == ["Merged clusters 1, 2 into cluster 3 (cat)", "Split cluster 3 (cat), which added cluster 1000000", "Hid 1 image", "Hid cluster 4"]
    assert "newer" in said[4]
