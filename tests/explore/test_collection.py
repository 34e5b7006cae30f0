import io
import json
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from gsec_core import curation
from gsec_core.config import PipelineConfig
from gsec_core.errors import BadShard, NotFound, Refused
from gsec_core.explore import Collection, ImageRow, collection, vectors
from gsec_core.stages import align, encode, hierarchy, vocabulary
from gsec_core.stages.base import Context
from gsec_core.stages.canonical import load_embeddings, load_joint, usable
from gsec_core.store import Run, Store
from gsec_core.tables import ASSIGNMENTS_TABLE, DUPLICATES_TABLE, EMBEDDINGS_TABLE, HEAD_TABLE, HIERARCHY, MAP_TABLE, THUMBNAILS_TABLE

from .runs import Nights, two_nights


@pytest.fixture(scope="module")
def nights(tmp_path_factory: pytest.TempPathFactory) -> Nights:
    return two_nights(tmp_path_factory.mktemp("explore"))


@pytest.fixture(scope="module")
def first(nights: Nights) -> Collection:
    return Collection(nights.first.run, nights.config)


@pytest.fixture(scope="module")
def second(nights: Nights) -> Collection:
    """Of the run that keeps the model of the first."""
    return Collection(nights.second.run, nights.config)


@pytest.fixture
def copied(nights: Nights, tmp_path: Path) -> Collection:
    """The second run in a store of its own, to be damaged or curated."""
    shutil.copytree(nights.store, tmp_path / "store")
    return Collection(Run(Store.open(str(tmp_path / "store")).files, nights.second.run.id), nights.config)


def everything(found: Collection, **asked: object) -> list[ImageRow]:
    rows: list[ImageRow] = []
    while True:
        page = found.images(offset=len(rows), limit=7, **asked)  # type: ignore[arg-type]
        rows += page.rows
        if len(rows) >= page.total:
            assert len(rows) == page.total
            return rows


def embeddings(context: Context) -> dict[str, np.ndarray]:
    return dict(zip(usable(context).rows["uri"].to_pylist(), load_embeddings(context).astype(np.float32), strict=True))


def by_uri(found: Collection, uri: str) -> str:
    return next(row.id for row in everything(found) if row.uri == uri)


def placed(found: Collection) -> list[str]:
    """Ids of the images that have a place on the map, in canonical order."""
    shards, names = found.run.table(MAP_TABLE)
    ids = {id.hex() for table in shards.read_all(names, ["image_id"]) for id in table["image_id"].to_pylist()}
    return [id.hex() for id in usable(found.context).rows["image_id"].to_pylist() if id.hex() in ids]


def shard_of(found: Collection, table: str, id: str) -> Path:
    """The file of a table of the encoder that holds an image."""
    fingerprint = found.run.stages()[encode.STAGE.name]["fingerprint"]
    shards = found.context.corpus.table(table, fingerprint)
    [name] = {row["shard"] for row in found.context.live.to_pylist() if row["image_id"].hex() == id}
    return Path(found.run.files.url) / shards.path(name)


# Clusters and lists


def test_clusters_are_those_of_the_tables_the_largest_first(second: Collection) -> None:
    rows = second.clusters()
    assert [row.size for row in rows] == sorted((row.size for row in rows), reverse=True)
    images = everything(second)
    for row in rows:
        own = [image for image in images if image.key == row.key]
        assert len(own) == row.size
        assert row.confidence == pytest.approx(np.mean([image.confidence for image in own]))
        assert list(row.examples) == [image.id for image in sorted(own, key=lambda image: -image.confidence)[:4]]
        assert row == second.cluster(row.key)
    [table] = {len(second), sum(row.size for row in rows), second.context.live.num_rows}
    assert table == 26


@pytest.mark.parametrize("sort", ["confidence", "outlier", "date", "name"])
@pytest.mark.parametrize("descending", [True, False])
def test_pages_of_a_list_are_the_list_in_order(second: Collection, sort: str, descending: bool) -> None:
    times = dict(zip(second.context.live["uri"].to_pylist(), second.context.live["version"].to_pylist(), strict=True))
    value = {"confidence": lambda row: row.confidence, "outlier": lambda row: row.outlier, "name": lambda row: row.uri, "date": lambda row: times[row.uri]}[
        sort
    ]
    rows = everything(second, sort=sort, descending=descending)
    values = [value(row) for row in rows]
    assert values == sorted(values, reverse=descending)
    key = second.clusters()[0].key
    assert everything(second, key=key, sort=sort, descending=descending) == [row for row in rows if row.key == key]


def test_a_list_by_date_says_which_date(second: Collection, tmp_path: Path) -> None:
    assert second.images(sort="date").note == "Sorted by when the file was changed."


def test_images_of_a_part_of_the_map(second: Collection) -> None:
    points = np.frombuffer(second.map_points(), "<u2").reshape(-1, 3)
    corners = [(0.25, 0.2), (0.9, 0.3), (0.6, 0.55), (0.95, 0.9), (0.1, 0.8)]  # with a bay
    inside = [_inside(x / 65535, y / 65535, corners) for x, y, _ in points]
    assert 0 < sum(inside) < len(inside)
    assert second.images(within=corners).total == sum(inside)
    assert second.images(within=[(-1, -1), (2, -1), (2, 2), (-1, 2)]).total == len(points)
    for polygon in ([(0, 0), (1, 1)], [(0, 0), (1, 0), (float("nan"), 1)], [(0, 0)] * 1001):
        with pytest.raises(Refused, match="corners"):
            second.images(within=polygon)


def _inside(x: float, y: float, corners: list[tuple[float, float]]) -> bool:
    """By the angles under which the edges are seen, and not by crossings as the library does."""
    at = np.array(corners) - (x, y)
    angles = np.unwrap([*np.arctan2(at[:, 1], at[:, 0]).tolist(), np.arctan2(at[0, 1], at[0, 0])])
    return abs(angles[-1] - angles[0]) > np.pi


def test_the_map_has_the_clusters_places_in_canonical_order(second: Collection) -> None:
    points = np.frombuffer(second.map_points(), "<u2").reshape(-1, 3)
    keys = {row.id: row.key for row in everything(second)}
    assert [second.clusters()[place].key for place in points[:, 2]] == [keys[id] for id in placed(second)]


@pytest.mark.parametrize(
    ("asked", "wrong"),
    [({"offset": -1}, "offset"), ({"limit": 0}, "limit"), ({"limit": 201}, "limit"), ({"sort": "size"}, "sort"), ({"key": 77}, "cluster 77")],
)
def test_what_cannot_be_is_refused(first: Collection, asked: dict[str, object], wrong: str) -> None:
    with pytest.raises(Refused, match=wrong):
        first.images(**asked)  # type: ignore[arg-type]


@pytest.mark.parametrize("id", ["", "x", "0" * 32, "0" * 31, "<script>"])
def test_an_id_that_is_not_there_is_not_found(first: Collection, id: str) -> None:
    for ask in (first.image, first.thumbnail, first.like):
        with pytest.raises(NotFound):
            ask(id)


def test_beyond_the_end_there_is_nothing(first: Collection) -> None:
    assert first.images(offset=10**9).rows == ()
    assert first.like(everything(first)[0].id, offset=10**9).rows == ()


def with_table(found: Collection, name: str, rows: pa.Table) -> Collection:
    """The same run as if it had this table, of one shard."""
    stage = next((stage for stage, record in found.run.stages().items() if name in record["tables"]), "publish")
    record = Path(found.run.files.url) / found.run.directory / f"stage-{stage}.json"
    told = json.loads(record.read_text())
    told["tables"][name] = ["all"]
    record.write_text(json.dumps(told))
    found.context.corpus.table(name, told["fingerprint"]).replace("all", rows, {})
    return Collection(found.run, found.context.config)


def test_a_run_with_a_map_has_every_image_on_it(copied: Collection) -> None:
    ids = usable(copied.context).rows["image_id"]
    x, y = np.linspace(0.1, 0.9, len(ids), dtype=np.float32), np.full(len(ids), 0.5, np.float32)
    found = with_table(copied, MAP_TABLE, pa.table({"image_id": ids.take(pa.array(range(len(ids))[::-1])), "x": x[::-1], "y": y}))
    points = np.frombuffer(found.map_points(), "<u2").reshape(-1, 3)
    np.testing.assert_allclose(points[:, 0] / 65535, x, atol=1e-4)
    np.testing.assert_allclose(points[:, 1] / 65535, 0.5, atol=1e-4)
    half = found.images(within=[(0, 0), (0.5, 0), (0.5, 1), (0, 1)])
    assert {row.id for row in half.rows} == {id.hex() for id in ids.to_pylist()[: len(ids) // 2]}


def test_clusters_as_a_tree_and_its_cuts(copied: Collection) -> None:
    (a, b), keys = [row.size for row in sorted(copied.clusters(), key=lambda row: row.key)], [0, 1]
    node = {"node": 2, "left": 0, "right": 1, "height": 0.5, "clusters": 2, "size": a + b, "name": "things"}
    found = with_table(copied, "hierarchy", pa.Table.from_pylist([node]))
    tree = found.tree()
    assert [(key, size) for key, _, size in tree.leaves] == [(0, a), (1, b)]
    assert (tree.nodes[0].name, tree.nodes[0].size, tree.groups) == ("things", a + b, ())
    [whole] = found.tree(1).groups
    assert (whole.name, whole.size, sorted(whole.keys)) == ("things", a + b, keys)
    assert [group.size for group in found.tree(2).groups] == sorted((a, b), reverse=True)
    for groups in (0, 3):
        with pytest.raises(Refused, match="groups"):
            found.tree(groups)


def test_without_a_tree_there_are_no_groups(copied: Collection, nights: Nights, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of too many clusters none is made, nor what would fill the memory."""
    monkeypatch.setattr("gsec_core.clustering.hierarchy.MOST_CLUSTERS", 1)
    monkeypatch.delattr("gsec_core.clustering.hierarchy.co_association")
    [made] = hierarchy.arrange(nights.first, ["all"], lambda units: None)
    assert made.tables[0].schema == HIERARCHY
    assert not made.tables[0].num_rows
    for groups in (None, 2):
        with pytest.raises(NotFound, match="no tree"):
            with_table(copied, "hierarchy", made.tables[0]).tree(groups)


# One image


def test_neighbors_are_the_nearest_by_cosine(second: Collection) -> None:
    vectors = embeddings(second.context)
    detail = second.image(by_uri(second, "021.jpg"), wait=60)
    assert not detail.pending
    cosines = {uri: float(vector @ vectors["021.jpg"]) for uri, vector in vectors.items() if uri != "021.jpg"}
    assert [row.uri for row in detail.neighbors] == sorted(cosines, key=lambda uri: -cosines[uri])[: collection.NEIGHBORS]
    for row in detail.neighbors:
        assert row.cosine == pytest.approx(cosines[row.uri], abs=2e-3)
    assert (detail.width, detail.height) == (64, 48)


def test_the_second_choice_is_what_the_head_says(nights: Nights, second: Collection) -> None:
    """As `assign` finds it, for every image of a run that keeps its model, and so has made no counterparts."""
    predicted = align.predicted(nights.first, nights.second, np.arange(len(second)))
    assert set(predicted[0].tolist()) == {0, 1}
    keys = [row.key for row in sorted(second.clusters(), key=lambda row: row.key)]
    for uri in ("000.jpg", "020.jpg"):
        detail = second.image(by_uri(second, uri), wait=60)
        assert detail.second is not None
        assert detail.second[0] == next(key for key in keys if key != detail.model_key)
    row = usable(second.context).rows["uri"].to_pylist().index("020.jpg")
    one = second._embeddings[encode.STAGE.name]().of(row)
    posteriors = second._load_model().posteriors(one["embedding"], one["joint"], None)
    assert posteriors.max() == pytest.approx(predicted[1][row], abs=1e-3)


def test_without_waiting_an_image_is_told_without_neighbors(nights: Nights) -> None:
    fresh = Collection(nights.second.run, nights.config)
    detail = fresh.image(by_uri(fresh, "003.jpg"), wait=0)
    assert detail.pending
    assert not detail.neighbors
    assert detail.row.uri == "003.jpg"
    assert fresh.image(detail.row.id, wait=60).neighbors


def test_an_image_is_told_with_its_caption_duplicates_and_history(nights: Nights, second: Collection) -> None:
    captioned = [detail for row in everything(second) if (detail := second.image(row.id, wait=60)).caption]
    assert captioned
    assert all("image" in str(detail.caption).lower() for detail in captioned)
    detail = second.image(by_uri(second, "003.jpg"), wait=60)
    assert {row.uri for row in detail.duplicates} >= {"copy of 003.jpg", "nearly 003.jpg"}
    assert detail.row.id not in [row.id for row in detail.duplicates]
    assert [past.run_id for past in detail.history] == [nights.second.run.id, nights.first.run.id]
    assert {past.key for past in detail.history} == {detail.model_key}
    assert [past.run_id for past in second.image(by_uri(second, "020.jpg"), wait=60).history] == [nights.second.run.id]


def test_groups_of_duplicates_are_those_of_the_table(second: Collection) -> None:
    shards, names = second.run.table(DUPLICATES_TABLE)
    wanted: dict[int, list[tuple[str, bool, bool]]] = {}
    for row in shards.read(names[0]).to_pylist():
        wanted.setdefault(row["group"], []).append((row["uri"], row["exact"], row["keep"]))
    found = second.duplicates()
    assert {group.number: [(one.row.uri, one.exact, one.keep) for one in group.images] for group in found.groups} == wanted
    assert (found.total, found.images, found.note) == (len(wanted), sum(map(len, wanted.values())), None)
    assert all(group.size == len(group.images) for group in found.groups)
    assert second.duplicates(offset=1, limit=1).groups == found.groups[1:2]


def test_without_a_table_those_of_the_same_bytes_are_duplicates(copied: Collection) -> None:
    fingerprint = copied.run.stages()["duplicates"]["fingerprint"]
    shutil.rmtree(Path(copied.run.files.url) / copied.context.corpus.name / DUPLICATES_TABLE / fingerprint)
    found = copied.duplicates()
    assert [[(one.row.uri, one.keep) for one in group.images] for group in found.groups] in (
        [[("003.jpg", True), ("copy of 003.jpg", False)], [("007.jpg", True), ("copy of 007.jpg", False)]],
        [[("007.jpg", True), ("copy of 007.jpg", False)], [("003.jpg", True), ("copy of 003.jpg", False)]],
    )
    assert "same bytes" in str(found.note)
    [twin] = copied.image(by_uri(copied, "007.jpg"), wait=0).duplicates
    assert (twin.uri, twin.cosine) == ("copy of 007.jpg", 1)


def test_thumbnails(second: Collection) -> None:
    for row in everything(second)[:5]:
        data = second.thumbnail(row.id)
        assert data is not None
        with Image.open(io.BytesIO(data)) as image:
            assert image.size == (64, 48)


# Search


def test_images_like_one_of_the_collection(second: Collection) -> None:
    vectors = embeddings(second.context)
    id = by_uri(second, "011.jpg")
    page = second.like(id, offset=2, limit=9)
    ranked = sorted((uri for uri in vectors if uri != "011.jpg"), key=lambda uri: -float(vectors[uri] @ vectors["011.jpg"]))
    assert [row.uri for row in page.rows] == ranked[2:11]
    assert page.total == len(second) - 1


def test_images_like_an_upload_begin_with_itself(nights: Nights, second: Collection) -> None:
    page = second.like_upload((nights.source / "012.jpg").read_bytes(), limit=5)
    assert page.rows[0].uri == "012.jpg"
    assert page.rows[0].cosine == pytest.approx(1, abs=2e-3)
    again = second.like(page.rows[0].id, limit=4)
    assert [row.uri for row in again.rows] == [row.uri for row in page.rows[1:]]


@pytest.mark.parametrize("data", [b"", b"no image", b"\x89PNG\r\n\x1a\n", b"<svg xmlns='http://www.w3.org/2000/svg'/>"])
def test_an_upload_that_is_no_image_is_refused(first: Collection, data: bytes) -> None:
    with pytest.raises(Refused, match="cannot be used"):
        first.like_upload(data)


def test_an_upload_of_too_many_pixels_is_refused_by_its_header(first: Collection) -> None:
    image = Image.new("1", (30_000, 30_000))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    with pytest.raises(Refused, match="larger than"):
        first.like_upload(buffer.getvalue())


def test_words_are_found_by_the_encoders_text_side(second: Collection) -> None:
    encoder = encode.loaded_encoder(second.context.config)
    [vector] = vocabulary.embedded(encoder, [["a photo of a ping-pong ball"]])
    rows = usable(second.context).rows["uri"].to_pylist()
    cosines = load_joint(second.context).astype(np.float32) @ vector
    page = second.by_words("  ping-pong   ball ", limit=10)
    assert [row.uri for row in page.rows] == [rows[place] for place in np.argsort(-cosines, kind="stable")[:10]]
    assert page.note is not None
    assert "ImageNet" in page.note
    assert "may show anything" not in page.note
    assert "may show anything" in str(second.by_words("the smell of rain on a Tuesday").note)


@pytest.mark.parametrize("text", ["", "   ", "word " * 200])
def test_words_that_cannot_be_looked_for(first: Collection, text: str) -> None:
    with pytest.raises(Refused, match="search"):
        first.by_words(text)


def test_many_that_search_at_once_make_one_index(nights: Nights, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []

    class Counted(vectors.Vectors):
        def __init__(self, table: vectors.Embeddings, column: str, n: int, config: PipelineConfig) -> None:
            made.append(column)
            super().__init__(table, column, n, config)

    monkeypatch.setattr(collection, "Vectors", Counted)
    fresh = Collection(nights.second.run, nights.config)
    id = by_uri(fresh, "001.jpg")
    found: list[tuple[ImageRow, ...]] = []
    threads = [threading.Thread(target=lambda: found.append(fresh.like(id).rows)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert made == ["embedding"]
    assert len(found) == 8
    assert len(set(found)) == 1


def test_an_index_of_bytes_finds_nearly_what_is_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    X = random.standard_normal((5000, 64)).astype(np.float32)
    X = (X / np.linalg.norm(X, axis=1, keepdims=True)).astype(np.float16)

    class Table(vectors.Embeddings):
        def __init__(self) -> None:
            pass

        def vectors(self, column: str) -> object:  # type: ignore[override]
            return ((np.arange(start, start + 500), X[start : start + 500]) for start in range(0, 5000, 500))

    monkeypatch.setattr(vectors, "_EXACT_BYTES", 0)
    monkeypatch.setattr(vectors, "_SEGMENT_ROWS", 1500)
    index = vectors.Vectors(Table(), "embedding", len(X), PipelineConfig(threads=2))
    cosines = X.astype(np.float32) @ X[7].astype(np.float32)
    out = np.zeros(len(X), bool)
    out[np.argsort(-cosines)[1:4]] = True
    found = index.search(X[7:8], 100, out)
    wanted = np.argsort(-np.where(out, -2, cosines))[:100]
    assert found.rows[0] == 7
    assert not out[found.rows].any()
    assert len(set(found.rows) & set(wanted)) >= 95
    np.testing.assert_allclose(found.cosines, cosines[found.rows], atol=4e-3)


# Curation


def test_what_people_say_is_seen_by_the_next_question(copied: Collection) -> None:
    large, small = copied.clusters()
    version = copied.version
    curation.add(copied.context, "rename", who="me", key=large.key, text="<b>discs</b>")
    assert copied.version != version
    assert copied.cluster(large.key).name == "<b>discs</b>"
    assert copied.cluster(large.key).curated
    assert copied.cluster(large.key).cohesion == large.cohesion
    images = [row.id for row in copied.images(small.key).rows[:2]]
    curation.add(copied.context, "move", who="me", key=large.key, images=images)
    moved = copied.image(images[0], wait=0)
    assert (moved.row.key, moved.model_key) == (large.key, small.key)
    assert copied.cluster(large.key).size == large.size + 2
    assert copied.cluster(large.key).cohesion is None
    curation.add(copied.context, "hide", who="me", images=images[:1])
    assert copied.cluster(large.key).size == large.size + 1
    assert images[0] not in [row.id for row in everything(copied)]
    assert images[0] in [row.id for row in everything(copied, hidden=True)]
    assert images[0] not in [row.id for row in copied.like(images[1], limit=100).rows]
    curation.add(copied.context, "hide", who="me", key=small.key)
    assert [row.key for row in copied.clusters()] == [large.key]
    assert {row.key for row in copied.clusters(hidden=True)} == {large.key, small.key}
    points = np.frombuffer(copied.map_points(), "<u2").reshape(-1, 3)
    hidden = {row.id for row in everything(copied, hidden=True) if row.hidden}
    assert len(hidden) == 1 + small.size - 2
    assert [place == collection.NOWHERE for place in points[:, 2]] == [id in hidden for id in placed(copied)]
    log = copied.curation()
    assert [(row.number, row.kind) for row in log.rows] == [(4, "hide"), (3, "hide"), (2, "move"), (1, "rename")]


def test_the_second_choice_is_a_cluster_that_there_is(copied: Collection) -> None:
    id = by_uri(copied, "000.jpg")
    before = copied.image(id, wait=60)
    assert before.second
    curation.add(copied.context, "rename", who="me", key=before.second[0], text="others")
    assert copied.image(id, wait=60).second == (before.second[0], "others")
    part = curation.add(copied.context, "split", who="me", key=before.row.key, parts=2).keys[0]
    other = part if copied.image(id, wait=60).row.key == before.row.key else before.row.key
    curation.add(copied.context, "merge", who="me", key=other, keys=[before.second[0]])
    assert copied.image(id, wait=60).second == (other, copied.cluster(other).name)
    curation.add(copied.context, "merge", who="me", key=copied.image(id, wait=60).row.key, keys=[other])
    assert copied.image(id, wait=60).second is None


def test_a_map_is_of_one_state_of_the_log(copied: Collection, monkeypatch: pytest.MonkeyPatch) -> None:
    large, small = copied.clusters()
    points = copied._points()

    def meanwhile() -> object:
        curation.add(copied.context, "merge", who="me", key=small.key, keys=[large.key])
        return points

    with monkeypatch.context() as patched:
        patched.setattr(copied, "_points", meanwhile)
        places = np.frombuffer(copied.map_points(), "<u2").reshape(-1, 3)[:, 2]
    assert set(places.tolist()) == {0, 1}
    assert set(np.frombuffer(copied.map_points(), "<u2").reshape(-1, 3)[:, 2].tolist()) == {0}


def test_a_split_and_a_merge(copied: Collection) -> None:
    large, small = copied.clusters()
    act = curation.add(copied.context, "split", who="me", key=large.key, parts=2)
    parts = [row for row in copied.clusters() if row.key in (large.key, *act.keys)]
    assert sum(row.size for row in parts) == large.size
    assert all(row.terms == () for row in parts if row.key in act.keys)
    curation.add(copied.context, "merge", who="me", key=act.keys[0], keys=[small.key])
    assert copied.cluster(act.keys[0]).merged == (small.key,)
    with pytest.raises(NotFound, match=f"cluster {small.key} is part of cluster {act.keys[0]} now"):
        copied.cluster(small.key)
    assert sum(row.size for row in copied.clusters()) == len(copied)


# What is gone or damaged


def test_thumbnails_that_are_gone_or_damaged(copied: Collection) -> None:
    id = by_uri(copied, "020.jpg")
    path = shard_of(copied, THUMBNAILS_TABLE, id)
    data = path.read_bytes()
    path.write_bytes(data[:100] + b"\xff" + data[101:])
    with pytest.raises(BadShard):
        copied.thumbnail(id)
    path.unlink()
    assert copied.thumbnail(id) is None


def test_embeddings_that_are_gone_are_said(copied: Collection) -> None:
    gone, there = by_uri(copied, "020.jpg"), by_uri(copied, "000.jpg")
    shard_of(copied, EMBEDDINGS_TABLE, gone).unlink()
    for ask in (lambda: copied.like(gone), lambda: copied.like(there), lambda: copied.by_words("ball")):
        with pytest.raises(Refused, match="shards of embeddings are gone"):
            ask()
    detail = copied.image(gone, wait=60)
    assert (detail.neighbors, detail.second, detail.width, detail.pending) == ((), None, None, False)
    assert "gone" in str(detail.note)
    assert detail.history
    detail = copied.image(there, wait=60)
    assert detail.second
    assert "gone" in str(detail.note)
    assert copied.images().total == 26


def test_a_damaged_publication_is_named_and_hides_the_history_alone(copied: Collection) -> None:
    (Path(copied.run.files.url) / "published" / "nightly" / "00000001.json").write_text("{")
    detail = copied.image(by_uri(copied, "020.jpg"), wait=60)
    assert "00000001.json" in str(detail.note)
    assert (detail.history, len(detail.neighbors), detail.pending) == ((), collection.NEIGHBORS, False)


def test_a_damaged_shard_is_named(copied: Collection) -> None:
    id = by_uri(copied, "020.jpg")
    path = shard_of(copied, EMBEDDINGS_TABLE, id)
    data = path.read_bytes()
    path.write_bytes(data[:100] + b"\xff" * 50 + data[150:])
    with pytest.raises(BadShard, match=path.name):
        copied.like(by_uri(copied, "000.jpg"))
    assert path.stem in str(copied.image(id, wait=60).note)


def test_a_run_without_assignments_is_refused(copied: Collection) -> None:
    fingerprint = copied.run.stages()["align"]["fingerprint"]
    shutil.rmtree(Path(copied.run.files.url) / copied.context.corpus.name / ASSIGNMENTS_TABLE / fingerprint)
    with pytest.raises(Refused, match=f"no complete table {ASSIGNMENTS_TABLE}"):
        copied.clusters()


def test_without_a_head_there_is_no_second_choice(copied: Collection) -> None:
    fingerprint = copied.run.stages()["align"]["fingerprint"]
    directory = Path(copied.run.files.url) / copied.context.corpus.name / HEAD_TABLE / fingerprint
    data = (directory / "all.parquet").read_bytes()
    (directory / "all.parquet").write_bytes(data[:60] + b"\xff" * 9 + data[69:])
    detail = copied.image(by_uri(copied, "000.jpg"), wait=60)
    assert detail.second is None
    assert detail.note
    assert detail.neighbors


def test_torch_is_not_imported_before_somebody_searches(nights: Nights) -> None:
    code = f"""
import sys
from gsec_core.explore import Collection
from gsec_core.store import Store
found = Collection(Store.open({str(nights.store)!r}).run({nights.second.run.id!r}))
rows = found.images(found.clusters()[0].key, within=[(0, 0), (1, 0), (1, 1)]).rows
assert found.thumbnail(found.images().rows[0].id)
found.duplicates(), found.map_points(), found.curation()
loaded = {{"torch", "faiss", "open_clip", "sentence_transformers"}} & set(sys.modules)
assert not loaded, loaded
"""
    subprocess.run([sys.executable, "-c", code], check=True)
