"""Lists of clusters and images, the map and the tree."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from gsec_core.errors import NotFound, Refused
from gsec_core.explore import Collection
from gsec_core.stages import hierarchy
from gsec_core.stages.canonical import usable
from gsec_core.store import Run
from gsec_core.tables import HIERARCHY, MAP_TABLE

from .examples import everything, placed
from .runs import Nights


def test_clusters_agree_with_their_images_and_are_sorted_by_size(second: Collection) -> None:
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
def test_pages_of_a_list_make_up_the_sorted_list(second: Collection, sort: str, descending: bool) -> None:
    times = dict(zip(second.context.live["uri"].to_pylist(), second.context.live["version"].to_pylist(), strict=True))
    value = {"confidence": lambda row: row.confidence, "outlier": lambda row: row.outlier, "name": lambda row: row.uri, "date": lambda row: times[row.uri]}[
        sort
    ]
    rows = everything(second, sort=sort, descending=descending)
    values = [value(row) for row in rows]
    assert values == sorted(values, reverse=descending)
    key = second.clusters()[0].key
    assert everything(second, key=key, sort=sort, descending=descending) == [row for row in rows if row.key == key]


@pytest.mark.parametrize("descending", [True, False])
def test_images_without_a_value_are_last_in_either_order(second: Collection, descending: bool) -> None:
    fresh = Collection(second.run)
    columns = fresh._columns()
    columns.outlier = np.where(np.arange(len(columns)) < 2, np.nan, columns.outlier).astype(np.float32)
    values = [row.outlier for row in everything(fresh, sort="outlier", descending=descending)]
    assert values[-2:] == [None, None]
    assert values[:-2] == sorted(filter(None, values), reverse=descending)


def test_a_list_by_date_says_which_date_it_uses(second: Collection, tmp_path: Path) -> None:
    assert second.images(sort="date").note == "Sorted by when the file was changed."


def test_images_within_a_polygon_of_the_map_are_found(second: Collection) -> None:
    points = np.frombuffer(second.map_points(), "<u2").reshape(-1, 3)
    corners = [(0.25, 0.2), (0.9, 0.3), (0.6, 0.55), (0.95, 0.9), (0.1, 0.8)]  # a polygon that is not convex
    inside = [_inside(x / 65535, y / 65535, corners) for x, y, _ in points]
    assert 0 < sum(inside) < len(inside)
    assert second.images(within=corners).total == sum(inside)
    assert second.images(within=[(-1, -1), (2, -1), (2, 2), (-1, 2)]).total == len(points)
    assert second.images(within=[(0, 0), (1, 0), (1, 1), (0, 1)]).total == len(points), "points on the edges of the map lie in the whole map"
    for polygon in ([(0, 0), (1, 1)], [(0, 0), (1, 0), (float("nan"), 1)], [(0, 0)] * 1001):
        with pytest.raises(Refused, match="corners"):
            second.images(within=polygon)


def _inside(x: float, y: float, corners: list[tuple[float, float]]) -> bool:
    """Whether a point is inside, by the sum of the angles of the edges; the library counts crossings instead."""
    at = np.array(corners) - (x, y)
    angles = np.unwrap([*np.arctan2(at[:, 1], at[:, 0]).tolist(), np.arctan2(at[0, 1], at[0, 0])])
    return abs(angles[-1] - angles[0]) > np.pi


def test_the_map_has_the_clusters_of_the_images_in_canonical_order(second: Collection) -> None:
    points = np.frombuffer(second.map_points(), "<u2").reshape(-1, 3)
    keys = {row.id: row.key for row in everything(second)}
    assert [second.clusters()[place].key for place in points[:, 2]] == [keys[id] for id in placed(second)]


@pytest.mark.parametrize(
    ("asked", "wrong"),
    [({"offset": -1}, "offset"), ({"limit": 0}, "limit"), ({"limit": 201}, "limit"), ({"sort": "size"}, "sort"), ({"key": 77}, "cluster 77")],
)
def test_wrong_arguments_of_a_list_are_refused(first: Collection, asked: dict[str, object], wrong: str) -> None:
    with pytest.raises(Refused, match=wrong):
        first.images(**asked)  # type: ignore[arg-type]


@pytest.mark.parametrize("id", ["", "x", "0" * 32, "0" * 31, "<script>"])
def test_an_unknown_id_is_not_found(first: Collection, id: str) -> None:
    for ask in (first.image, first.thumbnail, first.like):
        with pytest.raises(NotFound):
            ask(id)


def test_beyond_its_end_a_list_is_empty(first: Collection) -> None:
    assert first.images(offset=10**9).rows == ()
    assert first.like(everything(first)[0].id, offset=10**9).rows == ()


def with_table(found: Collection, name: str, rows: pa.Table) -> Collection:
    """The same run with this table, of one shard, in place of its own."""
    stage = next((stage for stage, record in found.run.stages().items() if name in record["tables"]), "publish")
    record = Path(found.run.files.url) / found.run.directory / f"stage-{stage}.json"
    told = json.loads(record.read_text())
    told["tables"][name] = ["all"]
    record.write_text(json.dumps(told))
    found.context.corpus.table(name, told["fingerprint"]).replace("all", rows, {})
    return Collection(Run(found.run.files, found.run.id), found.context.config)  # opened anew, as it has read the old record


def test_the_map_has_every_image_at_its_place_in_the_table(copied: Collection) -> None:
    ids = usable(copied.context).rows["image_id"]
    x, y = np.linspace(0.1, 0.9, len(ids), dtype=np.float32), np.full(len(ids), 0.5, np.float32)
    found = with_table(copied, MAP_TABLE, pa.table({"image_id": ids.take(pa.array(range(len(ids))[::-1])), "x": x[::-1], "y": y}))
    points = np.frombuffer(found.map_points(), "<u2").reshape(-1, 3)
    np.testing.assert_allclose(points[:, 0] / 65535, x, atol=1e-4)
    np.testing.assert_allclose(points[:, 1] / 65535, 0.5, atol=1e-4)
    half = found.images(within=[(0, 0), (0.5, 0), (0.5, 1), (0, 1)])
    assert {row.id for row in half.rows} == {id.hex() for id in ids.to_pylist()[: len(ids) // 2]}


def test_the_tree_and_its_cuts_agree_with_the_table(copied: Collection) -> None:
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


def test_without_a_tree_a_request_for_it_or_for_groups_is_not_found(copied: Collection, nights: Nights, monkeypatch: pytest.MonkeyPatch) -> None:
    """For too many clusters no tree is made, nor the large matrix for it, which would fill the memory."""
    monkeypatch.setattr("gsec_core.clustering.hierarchy.MOST_CLUSTERS", 1)
    monkeypatch.delattr("gsec_core.clustering.hierarchy.co_association")
    [made] = hierarchy.arrange(nights.first, ["all"], lambda units: None)
    assert made.tables[0].schema == HIERARCHY
    assert not made.tables[0].num_rows
    for groups in (None, 2):
        with pytest.raises(NotFound, match="no tree"):
            with_table(copied, "hierarchy", made.tables[0]).tree(groups)
