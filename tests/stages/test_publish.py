"""Stage publish and after it: names, hierarchy, map and report of a run."""

import io
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from gsec_core import pipeline
from gsec_core.errors import Refused
from gsec_core.report.collect import collect
from gsec_core.results import finishing
from gsec_core.results.status import verify
from gsec_core.stages import base, publish, report
from gsec_core.stages.base import Context
from gsec_core.store import Store
from gsec_core.tables import CLUSTER_NAMES_TABLE, CLUSTERS_TABLE, HIERARCHY_TABLE, LAYOUT_TABLE, MAP_TABLE, REPORT_TABLE

from ..captioners.server import Server, reply
from ..pictures import cluster, picture, settings, write_pictures
from .steps import STAGES

Rows = list[dict[str, object]]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """30 pictures, a copy of one and a file that is no image, clustered once."""
    top = tmp_path_factory.mktemp("publish")
    folder = write_pictures(top / "in", range(30))
    (folder / "copy.jpg").write_bytes((folder / "000.jpg").read_bytes())
    (folder / "bad.jpg").write_text("no image")
    cluster(settings(folder, top / "store", clusters=3))
    return top


def run(place: Path, redo: tuple[str, ...] = (), **more: object) -> tuple[Context, dict[str, dict[str, float]]]:
    context, _, made = cluster(settings(place / "in", place / "store", **{"clusters": 3, **more}), redo)
    return context, made


def rows(context: Context, table: str) -> Rows:
    found: Rows = context.run.table(table)[0].read("all").to_pylist()
    return found


def test_every_cluster_has_a_name_of_its_own_and_a_description(place: Path) -> None:
    names = rows(run(place)[0], CLUSTER_NAMES_TABLE)
    assert [row["cluster"] for row in names] == [0, 1, 2]
    assert len({str(row["name"]).casefold() for row in names}) == 3
    assert not [row for row in names if str(row["name"]).startswith("cluster ")], "all clusters have descriptions, so none may be named by its number"
    assert all(str(row["description"]).startswith("Mostly ") and row["namer"] == "terms" for row in names)


def test_the_hierarchy_joins_all_clusters_and_images_below_its_root(place: Path) -> None:
    context, _ = run(place)
    tree = rows(context, HIERARCHY_TABLE)
    assert [(row["node"], row["clusters"]) for row in tree] == [(3, 2), (4, 3)]
    assert {tree[0]["left"], tree[0]["right"], tree[1]["left"], tree[1]["right"]} == {0, 1, 2, 3}
    assert tree[1]["size"] == sum(row["size"] for row in rows(context, CLUSTERS_TABLE)) == 31
    assert len({str(row["name"]).casefold() for row in tree}) == 2


def test_nodes_of_the_hierarchy_are_named_by_the_same_nouns_as_the_clusters(place: Path) -> None:
    (place / "words.txt").write_text("\n".join(["red disc", "green field", "dark room", "bright sky", "small dog", "large tree"]))
    context, _ = run(place, method="tac", tac={"max_steps": 20}, text={"vocabulary": f"file:{place / 'words.txt'}"})
    words = {word for row in rows(context, CLUSTER_NAMES_TABLE) for word in (str(row["name"]), *row["terms"])}  # type: ignore[misc]
    assert {str(row["name"]).partition(",")[0] for row in rows(context, HIERARCHY_TABLE)} <= words


def test_a_redone_publish_stage_gives_equal_names_hierarchy_and_layout(place: Path) -> None:
    before, after = run(place)[0], run(place, redo=("publish",))[0]
    assert before.shards(publish.STAGE, LAYOUT_TABLE) != after.shards(publish.STAGE, LAYOUT_TABLE)
    for table in (CLUSTER_NAMES_TABLE, HIERARCHY_TABLE, LAYOUT_TABLE):
        assert rows(before, table) == rows(after, table)


def test_the_layout_shows_copies_of_an_image_only_once(place: Path) -> None:
    shown = rows(run(place)[0], LAYOUT_TABLE)
    assert len({row["image_id"] for row in shown}) == len(shown) == 30, "the copy is not shown again"
    assert all(0 <= row[axis] <= 1 for row in shown for axis in ("x", "y"))  # type: ignore[operator]


def test_every_image_is_on_the_map_with_the_place_it_has_in_the_layout(place: Path) -> None:
    context, _ = run(place)
    on_map = {row["image_id"]: (row["x"], row["y"]) for row in context.run.table(MAP_TABLE)[0].read("part-00000").to_pylist()}
    assert len(on_map) == 31, "the copy must be on the map too"
    assert {row["image_id"]: (row["x"], row["y"]) for row in rows(context, LAYOUT_TABLE)}.items() <= on_map.items()
    assert len(set(on_map.values())) == 31


def test_a_cluster_without_descriptions_of_its_own_is_named_by_those_its_images_resemble(place: Path) -> None:
    context, _ = run(place, prototypes={"count": 1, "representatives": 1})
    said, own = publish.descriptions(context)
    assert sorted(own) == [0, 0, 1]
    assert all(said), "each cluster must have descriptions nevertheless"
    assert [row["described"] for row in rows(context, CLUSTER_NAMES_TABLE)] == own


def test_naming_by_a_language_model_redoes_only_publish_and_the_stages_after_it(place: Path) -> None:
    run(place)
    with Server() as server:
        server.answer = lambda request: reply(json.dumps({"name": "things", "description": "Things on a ground."}))
        context, made = run(place, publish={"namer": "openai:tiny"}, describe={"url": server.url})
    assert {name for name, sums in made.items() if sums} == {"publish", "hierarchy", "map", "report"}
    names = rows(context, CLUSTER_NAMES_TABLE)
    assert names[0]["name"] == "things"
    assert {row["namer"] for row in names} == {"tiny"}
    assert {row["description"] for row in names} == {"Things on a ground."}


def test_a_run_whose_naming_server_does_not_answer_is_refused_before_it_encodes(tmp_path: Path) -> None:
    config = settings(
        write_pictures(tmp_path / "in", range(9)), tmp_path / "store", publish={"namer": "openai:tiny"}, describe={"url": "http://127.0.0.1:9/v1"}
    )
    context = Context.of(pipeline.request(config)[0], config)
    with pytest.raises(Refused, match="Start the server"):
        pipeline.check_servers(context)


def test_the_report_shows_the_names_the_rejected_image_and_the_duplicate_of_the_tables(place: Path) -> None:
    context, _ = run(place)
    index = Path(finishing.summary(context)["report"])
    text = index.read_text()
    assert [row["page"] for row in rows(context, REPORT_TABLE)] == ["index.html"]
    for name in (str(row["name"]) for row in rows(context, CLUSTER_NAMES_TABLE)):
        assert name in text
    assert "bad.jpg" in text
    assert "not an image in a known format" in text
    assert "copy.jpg" in text, "the duplicate must be listed"


def test_thumbnails_come_from_the_store_when_the_source_is_gone(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "in", range(12))
    context, _, _ = cluster(settings(folder, tmp_path / "store"))
    for path in folder.iterdir():
        path.unlink()
    assert all(shown.thumbnail and shown.thumbnail.startswith(b"\xff\xd8") for shown in collect(context).shown)


def test_a_report_killed_half_way_is_finished_with_the_page_already_drawn(tmp_path: Path) -> None:
    config = settings(write_pictures(tmp_path / "in", range(12)), tmp_path / "store")
    context = Context.of(pipeline.request(config)[0], config)
    for stage in STAGES[:-1]:
        base.run_stage(context, stage)
    base.begin(context, report.STAGE)
    shards = context.shards(report.STAGE, REPORT_TABLE)
    context.run.files.create(f"{shards.directory}/index.html", b"drawn before the kill")
    base.run_stage(context, report.STAGE)
    assert Path(report.index(context)).read_bytes() == b"drawn before the kill"
    assert verify(Store.open(str(tmp_path / "store"))) == []


def test_the_report_shows_the_new_picture_of_a_changed_image(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "in", range(12))
    config = settings(folder, tmp_path / "store")
    cluster(config)
    for seed in range(6):
        picture(seed + 50).save(folder / f"{seed:03d}.jpg", quality=90)
    thumbnails = {shown.uri: shown.thumbnail for shown in collect(cluster(config)[0]).shown}
    for seed in range(6):
        with Image.open(folder / f"{seed:03d}.jpg") as image, Image.open(io.BytesIO(thumbnails[f"{seed:03d}.jpg"] or b"")) as shown:
            assert np.abs(np.asarray(shown, float) - np.asarray(image, float)).mean() < 8, "the difference of a picture compressed twice as JPEG at most"


def test_the_report_has_timings_of_all_stages_in_their_order(place: Path) -> None:
    timings = collect(run(place)[0]).timings
    assert [row["stage"] for row in timings] == [stage.name for stage in STAGES if stage is not report.STAGE]
    assert all(row["shards"] > 0 for row in timings)


def test_a_damaged_page_is_found_and_drawn_again(place: Path) -> None:
    context, _ = run(place)
    index = Path(report.index(context))
    whole = index.read_bytes()
    index.write_bytes(whole[:-1])
    store = Store.open(str(place / "store"))
    assert verify(store) == [f"{index.relative_to(place / 'store')}: the page changed after it was drawn"]
    assert not context.run.is_finished()
    run(place)
    assert len(index.read_bytes()) == len(whole)
    assert verify(store) == []


def test_pages_are_drawn_again_if_their_table_is_damaged(place: Path) -> None:
    context, _ = run(place)
    index = Path(report.index(context))
    table, whole = index.with_name("all.parquet"), index.read_bytes()
    table.write_bytes(table.read_bytes()[:-30])
    index.write_bytes(whole[:1000])
    assert len(verify(Store.open(str(place / "store")))) == 1
    run(place)
    assert len(index.read_bytes()) == len(whole)


def test_the_reports_table_can_be_read_by_any_parquet_reader(place: Path) -> None:
    context, _ = run(place)
    path = Path(report.index(context)).with_name("all.parquet")
    assert pq.read_table(path)["size_bytes"].to_pylist() == [Path(report.index(context)).stat().st_size]
