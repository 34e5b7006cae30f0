"""What a nightly run does with the published model: keep it, continue its training, renew it or fit a fresh one; and the reason it gives."""

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gsec_core import pipeline
from gsec_core.clustering import drift
from gsec_core.config import PipelineConfig
from gsec_core.errors import BadShard, Refused, Unreachable
from gsec_core.report import layout
from gsec_core.results import export, finishing, publishing, status
from gsec_core.stages import align, base, before, describe, encode, prepare, publish, refit, train
from gsec_core.stages.base import Context, Stage, run_stage
from gsec_core.store import Run, Store, prune
from gsec_core.tables import (
    ASSIGNMENTS_TABLE,
    CLUSTER_COUNTS,
    CLUSTER_COUNTS_TABLE,
    CONTINUED,
    EMBEDDINGS_TABLE,
    FRESH,
    HIERARCHY_TABLE,
    KEPT,
    LAYOUT_TABLE,
    MAP_TABLE,
    MEMBERS_TABLE,
    RENEWED,
    REPRESENTATIVE_CAPTIONS_TABLE,
)

from ..captioners.server import Server, reply
from ..pictures import assign_images, cluster, encoded, labels, picture, settings

KINDS = 3


def write_kinds(folder: Path, numbers: range, kinds: range = range(KINDS)) -> Path:
    """Write ``KIND-NUMBER.jpg``: pictures of kinds so different that any clustering tells them apart."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        for kind in kinds:
            picture(kind + 1, noise=1 + number).save(folder / f"{kind}-{number:03d}.jpg", quality=90)
    return folder


def night(place: Path, redo: tuple[str, ...] = (), **more: Any) -> tuple[Context, dict[str, Any], list[str]]:
    """Do a whole run on ``place / "in"``. Returns its context, its result, and the stages that did something."""
    train = {"refit": "auto", **more.pop("train", {})}
    config = settings(place / "in", place / "store", clusters=more.pop("clusters", KINDS), train=train, **more)
    context, _, made = cluster(config, redo)
    return context, finishing.finish(context), [name for name, sums in made.items() if sums]


def keys(context: Context, said: dict[str, Any]) -> dict[str, int]:
    """URI -> the key of its cluster, which stays the same from run to run."""
    key_of = {row["cluster"]: row["key"] for row in said["cluster_rows"]}
    return {uri: key_of[label] for uri, label in labels(context).items()}


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A place with a published clustering of 36 pictures, 12 of each kind, and a copy of it."""
    place = tmp_path_factory.mktemp("published")
    write_kinds(place / "in", range(12))
    context, said, _ = night(place)
    assert (context.decision["decision"], said["decision"], said["published"]) == (FRESH, None, True)
    assert len({keys(context, said)[f"{kind}-000.jpg"] for kind in range(KINDS)}) == KINDS, "each kind must be a cluster, or the tests here would prove nothing"
    copy = tmp_path_factory.mktemp("copy") / "place"
    shutil.copytree(place, copy)
    return place, copy


@pytest.fixture
def place(published: tuple[Path, Path]) -> Path:
    """The published place, reset. It keeps its path, since a corpus belongs to the path of its source."""
    place, copy = published
    shutil.rmtree(place)
    shutil.copytree(copy, place)
    return place


def test_a_model_that_fits_is_kept_and_labels_the_new_images(place: Path) -> None:
    first, before_, _ = night(place)
    write_kinds(place / "in", range(12, 14))
    twin = place / "in" / "another-name.jpg"
    twin.write_bytes((place / "in" / "1-003.jpg").read_bytes())
    context, said, made = night(place)
    assert made == ["encode", "refit", "duplicates", "align", "publish", "hierarchy", "map", "lineage", "report"] == context.run.stage_names()
    assert context.run.is_finished()
    assert said["decision"] == "The published model is kept: 6 new images fit as well as the old ones."
    assert (said["published"], said["moved"], said["warnings"]) == (True, 0.0, ())
    old, new = keys(first, before_), keys(context, said)
    assert {uri: new[uri] for uri in old} == old
    assert all(new[f"{kind}-{number:03d}.jpg"] == old[f"{kind}-000.jpg"] for kind in range(KINDS) for number in (12, 13))
    assert new[twin.name] == old["1-003.jpg"]
    rows, were = (pl.DataFrame(pa.concat_tables(c.shards(align.STAGE, ASSIGNMENTS_TABLE).read_all(["part-00000"]))) for c in (context, first))
    assert rows.filter(pl.col("image_id").is_in(were["image_id"].to_list())).drop("is_duplicate").sort("uri").equals(were.drop("is_duplicate").sort("uri"))
    assert [row["size"] for row in said["cluster_rows"]] == np.bincount(list(labels(context).values())).tolist()
    assert [row["name"] for row in said["cluster_rows"]] == [row["name"] for row in before_["cluster_rows"]]
    tree, old_tree = ([(row["left"], row["name"], row["size"]) for row in c.run.table(HIERARCHY_TABLE)[0].read("all").to_pylist()] for c in (context, first))
    assert [row[:2] for row in tree] == [row[:2] for row in old_tree]
    assert tree[-1][2] == old_tree[-1][2] + 7
    mapped, was = ({row["image_id"]: (row["x"], row["y"]) for row in c.run.table(MAP_TABLE)[0].read("part-00000").to_pylist()} for c in (context, first))
    assert {image: mapped[image] for image in was} == was
    assert len(mapped) == len(was) + 7, "the six new images and the twin"
    assert status.runs(Store.open(str(place / "store")))[-1]["decision"] == "kept: 6 new images fit as well as the old ones"
    page = Path(said["report"]).read_text()
    assert "The published model is kept: 6 new images fit as well as the old ones." in page
    assert "new since the model was fitted" in page, "new images must have a gallery"
    assert "beside plain k-means" not in page, "this run computes no k-means"
    assert "beside plain k-means" in Path(before_["report"]).read_text()


def test_the_number_of_images_in_the_layout_does_not_grow_from_night_to_night(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "MOST", 38)
    for number in (12, 13):
        write_kinds(place / "in", range(number, number + 1))
        context, _, _ = night(place)
        shown = pl.DataFrame(context.read(publish.STAGE, LAYOUT_TABLE))
        assert len(shown) == 38
        assert shown["image_id"].n_unique() == 38
        assert 2 <= (shown["role"] == layout.NEW).sum() <= 5


def test_several_nights_keep_the_same_model_and_a_night_without_changes_has_nothing_to_do(place: Path) -> None:
    first, _, _ = night(place)
    found = []
    for number in (12, 13):
        write_kinds(place / "in", range(number, number + 1))
        context, said, _ = night(place)
        assert context.model.run.id == first.run.id
        found.append(said["run_id"])
    assert context.previous == Run(context.run.files, found[0])
    again = pipeline.nothing_to_do(context.config)
    assert again is not None
    assert again.id == found[1]


def test_a_run_that_kept_its_model_can_assign_and_export_and_prune_keeps_its_model(place: Path, tmp_path: Path) -> None:
    first, _, _ = night(place)
    write_kinds(place / "in", range(12, 13))
    context, _, _ = night(place)
    fresh = write_kinds(tmp_path / "new", range(30, 32))
    assigning = assign_images(context, settings(fresh, place / "store"))
    rows = assigning.run.table("assigned")[0].read("part-00000")
    assert {uri[0]: label for uri, label in zip(rows["uri"].to_pylist(), rows["cluster"].to_pylist(), strict=True)} == {
        uri[0]: label for uri, label in labels(context).items()
    }
    export.export(context, tmp_path / "out", None, False)
    for deletion in prune.plan(Store.open(str(place / "store")), keep_runs=1):
        assert first.run.directory not in deletion.path, "the model of a published run must not be pruned"


@pytest.mark.parametrize(
    ("more", "redo", "why"),
    [
        ({}, ("train",), "it was requested: --redo train"),
        ({"clusters": 2}, (), "the settings differ from those of run .*clusters is 2, and was 3"),
        ({"gsec": {"ensemble_size": 2}}, (), "gsec.ensemble_size is 2, and was 4"),
        ({"train": {"refit": "always"}}, (), "train.refit = always"),
    ],
)
def test_a_redo_or_a_changed_setting_fits_a_fresh_model_and_the_reason_is_given(place: Path, more: dict[str, Any], redo: tuple[str, ...], why: str) -> None:
    write_kinds(place / "in", range(12, 13))
    context, said, made = night(place, redo, **more)
    assert context.decision["decision"] == FRESH
    assert "train" in made
    assert pytest.approx(0) == said["moved"] or "clusters" in more
    assert re.search(why, said["decision"]), said["decision"]


def test_a_changed_baseline_setting_is_no_reason_for_another_model(place: Path) -> None:
    write_kinds(place / "in", range(12, 13))
    context, _, _ = night(place, baseline={"n_init": 3})
    assert context.keeps


def test_refit_never_keeps_a_model_that_auto_would_renew_and_says_so(place: Path) -> None:
    write_kinds(place / "in", range(12, 40))
    context, said, _ = night(place, train={"refit": "never"})
    assert context.keeps
    assert "train.refit = never; by `auto` it would be renewed, as the collection grew by 233%" in said["decision"]


def test_a_collection_that_grows_or_shrinks_a_lot_gets_new_members_and_old_images_keep_their_keys(place: Path) -> None:
    first, was, _ = night(place)
    write_kinds(place / "in", range(12, 19))
    context, said, made = night(place)
    assert (context.decision["decision"], "train" in made, said["moved"]) == (RENEWED, True, 0.0)
    assert {uri: key for uri, key in keys(context, said).items() if uri in keys(first, was)} == keys(first, was)
    for number in range(12):
        for kind in range(KINDS):
            (place / "in" / f"{kind}-{number:03d}.jpg").unlink()
    context, said, _ = night(place, ingest={"max_shrink": 1})
    assert context.decision["decision"] == RENEWED
    assert context.decision["gone"] == 36
    assert said["moved"] == 0.0


def test_if_images_were_only_deleted_the_model_is_kept(place: Path) -> None:
    first, was, _ = night(place)
    for kind in range(KINDS):
        (place / "in" / f"{kind}-000.jpg").unlink()
    context, said, _ = night(place)
    assert (context.decision["decision"], context.decision["gone"], said["moved"]) == (KEPT, 3, 0.0)
    assert said["decision"] == "The published model is kept: no image is new."
    old = keys(first, was)
    assert keys(context, said) == {uri: key for uri, key in old.items() if not uri.endswith("-000.jpg")}


def test_a_changed_image_is_clustered_by_its_new_content(place: Path) -> None:
    picture(3, noise=99).save(place / "in" / "0-000.jpg", quality=90)
    context, said, _ = night(place)
    assert context.keeps
    found = keys(context, said)
    assert found["0-000.jpg"] == found["2-000.jpg"], "the image now shows another kind"


def worse(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every new image count as one that does not fit the model."""
    monkeypatch.setattr(drift, "MORE_OUTLIERS", 1e-9)
    monkeypatch.setattr(drift, "SURE", -1e9)
    monkeypatch.setattr(drift, "_measure", lambda name, old, new, bound: drift.Measure(name, float(old.mean()), float(new.mean()), name == "outliers"))


def test_a_model_that_does_not_fit_the_new_images_is_trained_further(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, was, _ = night(place)
    write_kinds(place / "in", range(12, 14))
    worse(monkeypatch)
    context, said, made = night(place)
    assert context.decision["decision"] == CONTINUED
    assert "of 6 new images" in said["decision"]
    assert "baseline" in made
    assert {uri: key for uri, key in keys(context, said).items() if uri in keys(first, was)} == keys(first, was)
    for ours, theirs in zip(train.load_members(context)[0], train.load_members(first)[0], strict=True):
        assert 0 < np.abs(ours.parameters["weights"] - theirs.parameters["weights"]).max() < 0.5
    assert all(np.array_equal(a.scale, b.scale) for a, b in zip(prepare.load_halves(context), prepare.load_halves(first), strict=True))


@pytest.mark.parametrize("decision", [KEPT, CONTINUED, RENEWED])
@pytest.mark.parametrize("cut", ["refit", "align"])
def test_a_nightly_run_that_was_interrupted_goes_on_and_makes_equal_parts(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, decision: str, cut: str
) -> None:
    write_kinds(place / "in", range(12, 14))
    if decision == CONTINUED:
        worse(monkeypatch)
    if decision == RENEWED:
        monkeypatch.setattr(drift, "MOST_GROWTH", 0.01)
    config = settings(place / "in", place / "store", clusters=KINDS, train={"refit": "auto"})
    run, _ = pipeline.request(config)
    done: list[str] = []
    while cut not in done:
        name = next(name for name in run.stage_names() if name not in done)
        stage = pipeline.stage(name)
        if name != cut or name == "refit":
            run_stage(Context.of(run, config), stage)
        else:  # the first step of align is committed before the process ends
            context = Context.of(run, config)
            base.begin(context, stage)
            base.work(context, stage, stage.steps[0], ["all"])
        done.append(name)
    ended, said, _ = night(place)
    assert (ended.run.id, ended.decision["decision"]) == (run.id, decision)
    shards = ended.shards(align.STAGE, ASSIGNMENTS_TABLE)
    was = shards.read("part-00000")
    shards.set_aside("part-00000")
    night(place)
    assert shards.read("part-00000").equals(was), "a part that is made again alone must be equal"
    assert said["published"]


def test_a_damaged_model_is_named_in_a_warning_and_a_fresh_model_is_fitted(place: Path) -> None:
    first, _, _ = night(place)
    members = first.shards(train.STAGE, MEMBERS_TABLE)
    path = Path(members.location("block-0000"))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 255
    path.write_bytes(bytes(data))
    write_kinds(place / "in", range(12, 13))
    context, said, _ = night(place)
    assert context.decision["decision"] == FRESH
    assert any("block-0000" in warning and "from scratch" in warning for warning in said["warnings"])
    assert said["published"], "it is only a warning"


def test_a_damaged_shard_of_the_images_themselves_is_made_again_and_says_nothing_about_the_model(place: Path) -> None:
    write_kinds(place / "in", range(12, 14))
    config = settings(place / "in", place / "store", clusters=KINDS, train={"refit": "auto"})
    new, _, _ = encoded(config)
    embeddings, name = new.shards(encode.STAGE, EMBEDDINGS_TABLE), new.generation.shard_names[-1]
    path = Path(embeddings.location(name))
    places = pq.read_metadata(path).row_group(0)
    [joint] = [places.column(number) for number in range(places.num_columns) if places.column(number).path_in_schema.startswith("joint")]
    data = bytearray(path.read_bytes())
    data[joint.data_page_offset + joint.total_compressed_size // 2] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(BadShard, match=name):
        night(place)
    embeddings.set_aside(name)
    context, _, _ = night(place)
    assert (context.run.id, context.decision["decision"]) == (new.run.id, KEPT)


def test_a_store_that_does_not_answer_leaves_the_decision_open(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def load_members(context: Context) -> None:
        raise Unreachable("the store does not answer")

    write_kinds(place / "in", range(12, 14))
    with monkeypatch.context() as patched:
        patched.setattr(train, "load_members", load_members)
        with pytest.raises(Unreachable):
            night(place)
    context, _, _ = night(place)
    assert context.decision["decision"] == KEPT


@pytest.mark.parametrize(("stage", "table"), [(align.STAGE, ASSIGNMENTS_TABLE), (publish.STAGE, LAYOUT_TABLE), (describe.STAGE, REPRESENTATIVE_CAPTIONS_TABLE)])
def test_a_lost_shard_of_the_published_run_can_be_made_again_by_the_command_that_the_error_names(place: Path, stage: Stage, table: str) -> None:
    first, _, _ = night(place)
    shards, [name] = first.run.table(table)
    was = shards.read(name)
    write_kinds(place / "in", range(12, 14))
    Path(shards.location(name)).write_bytes(b"damaged")
    shards.set_aside(name)
    with pytest.raises(Refused, match=f"has no complete table {table}.*gsec stage {stage.name} --run {first.run.id}"):
        night(place)
    run, _ = pipeline.run_for_stage(stage.name, first.config, first.run.id)
    run_stage(Context.of(run, first.config), stage)
    assert shards.read(name).equals(was)
    assert night(place)[1]["published"]


@pytest.mark.parametrize(("numbers", "kinds", "decision"), [(range(12, 14), range(KINDS), KEPT), (range(12), range(KINDS, KINDS + 1), RENEWED)])
def test_a_model_whose_list_of_images_was_damaged_and_replaced_is_still_used(place: Path, numbers: range, kinds: range, decision: str) -> None:
    first, was, _ = night(place)
    Path(first.corpus.images.location(first.generation.shard_names[0])).write_bytes(b"damaged")
    write_kinds(place / "in", numbers, kinds)
    context, said, _ = night(place)
    assert context.decision["decision"] == decision
    if decision == KEPT:
        old, new = keys(first, was), keys(context, said)
        assert {uri: new[uri] for uri in old} == old
    assert all(len(group["like"]) == refit.LIKE for group in before.emerging(context).to_pylist())


def test_a_group_of_new_images_unlike_the_old_is_reported_in_a_warning(place: Path) -> None:
    write_kinds(place / "in", range(12), range(KINDS, KINDS + 1))
    context, said, _ = night(place)
    [group] = before.emerging(context).to_pylist()
    assert group["size"] == 12
    uri_of = dict(zip(context.live["image_id"].to_pylist(), context.live["uri"].to_pylist(), strict=True))
    assert {uri_of[image][0] for image in group["images"]} == {"3"}
    *_, warning = said["warnings"]
    assert warning.startswith("12 new images form a group where there are no old images. Is this something new?")
    assert said["clusters"] == KINDS
    assert context.decision["decision"] == RENEWED


def test_with_grow_a_new_group_becomes_a_cluster_with_a_new_key(place: Path) -> None:
    first, was, _ = night(place)
    write_kinds(place / "in", range(12), range(KINDS, KINDS + 1))
    context, said, _ = night(place, train={"grow": True})
    assert (said["clusters"], len(said["cluster_rows"])) == (KINDS + 1, KINDS + 1)
    found, old = keys(context, said), keys(first, was)
    assert {uri: found[uri] for uri in old} == old
    assert {found[f"3-{number:03d}.jpg"] for number in range(12)} == {KINDS}
    again = Context.of(context.run, context.run.config())
    for name in again.run.stage_names():
        base.begin(again, pipeline.stage(name))  # a rerun after a kill begins all stages again, refit with the clusters it has decided on
    assert again.run.asked().clusters == KINDS
    write_kinds(place / "in", range(12, 13), range(KINDS + 1))
    after, said, _ = night(place, train={"grow": True})
    assert after.keeps
    assert said["clusters"] == KINDS + 1, "the new cluster must not be forgotten by the next run"
    assert keys(after, said)["3-012.jpg"] == KINDS
    assert not publishing._asked_for_another(after), "the settings are the same, so publish.max_moved holds"


def test_an_edited_vocabulary_is_another_model(place: Path) -> None:
    words = place / "words.txt"
    words.write_text("red disc\ngreen disc\nblue sky\n")
    asked: dict[str, Any] = {"method": "zero-shot", "text": {"vocabulary": f"file:{words}"}}
    night(place, **asked)
    write_kinds(place / "in", range(12, 13))
    context, _, _ = night(place, **asked)
    assert context.keeps
    words.write_text("apple\npear\nyellow submarine\n")
    context, said, _ = night(place, **asked)
    assert "files that the settings name, or gsec itself, changed since run" in said["decision"]
    assert {row["name"] for row in said["cluster_rows"]} == {"apple", "pear", "yellow submarine"}


def test_rows_added_to_a_table_of_descriptions_do_not_change_the_model(place: Path) -> None:
    def write() -> None:
        lines = [f"{path.name},This image contains a lamp characterised by colour." for path in sorted((place / "in").iterdir())]
        (place / "said.csv").write_text("\n".join(["uri,text", *lines]))

    write()
    asked = {"describe": {"captioner": f"table:{place / 'said.csv'}:text"}}
    night(place, **asked)
    write_kinds(place / "in", range(12, 13))
    write()
    context, _, _ = night(place, **asked)
    assert context.keeps


def test_another_namer_or_redo_publish_names_the_clusters_of_a_kept_model_again(place: Path) -> None:
    with Server() as server:
        server.answer = lambda request: reply(json.dumps({"name": "things", "description": "Things."}))
        asked: dict[str, Any] = {"publish": {"namer": "openai:tiny"}, "describe": {"url": server.url}}
        context, said, _ = night(place, **asked)
        assert context.keeps
        assert all(row["name"].startswith("things") for row in said["cluster_rows"])
        server.answer = lambda request: reply(json.dumps({"name": "stuff", "description": "Stuff."}))
        write_kinds(place / "in", range(12, 13))
        _, said, _ = night(place, **asked)
        assert all(row["name"].startswith("things") for row in said["cluster_rows"]), "names do not change from night to night"
        context, said, _ = night(place, ("publish",), **asked)
    assert context.keeps
    assert all(row["name"].startswith("stuff") for row in said["cluster_rows"])
    shards, names = context.run.table(HIERARCHY_TABLE)
    assert all(name.startswith("stuff") for name in shards.read(names[0])["name"].to_pylist())


def test_prune_keeps_the_model_of_a_run_to_which_images_were_assigned(place: Path) -> None:
    """The run R keeps the model of the first; images were assigned to R; then another clustering was published."""
    write_kinds(place / "in", range(12, 13))
    context, _, _ = night(place)
    assert context.keeps
    new = settings(write_kinds(place / "new", range(30, 32)), place / "store")
    assign_images(context, new)
    _, said, _ = night(place, ("train",))
    assert said["published"]
    for path in (place / "store").rglob("*"):
        os.utime(path, (path.stat().st_atime - 2 * 86400, path.stat().st_mtime - 2 * 86400))
    store = Store.open(str(place / "store"))
    for deletion in prune.plan(store, keep_runs=1):
        deletion.carry_out()
    pipeline.assignment_config(context.run, new)  # refused if the run, its model or their tables are gone


@pytest.mark.parametrize("name", ["report", "lineage", "publish"])
def test_a_stage_of_the_published_run_can_be_redone(place: Path, name: str) -> None:
    config = settings(place / "in", place / "store", clusters=KINDS, train={"refit": "auto"})
    [before] = Store.open(str(place / "store")).runs()
    found, _ = pipeline.run_for_stage(name, config, before.id, redo=True)
    assert found.id != before.id
    assert found.config().clusters == KINDS


def test_with_clusters_auto_a_nightly_run_keeps_the_number_that_was_found(place: Path) -> None:
    auto = settings(place / "in", place / "store", clusters="auto", train={"refit": "auto"})
    assert pipeline.numbered_before(auto, []) is None, "the published run was given its number of clusters"
    counting, _ = pipeline.request(settings(place / "in", place / "store", clusters="auto"))
    found = settings(place / "in", place / "store", clusters=KINDS, pipeline="auto", train={"refit": "auto", "grow": True})
    run_stage(Context.of(counting, auto), pipeline.stage("encode"))
    base.begin(Context.of(counting, auto), pipeline.stage("count"))
    curve = pa.Table.from_pylist([{"clusters": KINDS, "purity": 1.0, "low": 1.0, "suggested": True}], CLUSTER_COUNTS)
    Context.of(counting, auto).shards(pipeline.stage("count"), CLUSTER_COUNTS_TABLE).commit("all", curve)
    context, _, _ = cluster(found, counting=counting.id)
    assert finishing.finish(context)["published"]
    mine = auto.model_copy(update={"pipeline": "auto"})
    config, by = pipeline.numbered_before(mine, []) or pytest.fail("it is known")
    assert (config.clusters, config.train.grow, by) == (KINDS, True, counting.id)
    alone, _ = pipeline.run_for_stage("train", mine, None)
    assert alone.id == context.run.id, "a stage alone is done in the run with this number"
    assert pipeline.run_for_stage("count", mine, None)[0].id == counting.id
    counts = Context.of(counting, auto).shards(pipeline.stage("count"), CLUSTER_COUNTS_TABLE)
    Path(counts.location("all")).write_bytes(b"damaged")
    assert pipeline.numbered_before(mine, []) is None, "the number is found again"
    assert counts.set_aside("all")
    assert pipeline.numbered_before(mine, []) is None, "also by a run after one that was killed here"
    counts.commit("all", curve)
    assert pipeline.numbered_before(mine, ["count"]) is None
    assert pipeline.numbered_before(mine.model_copy(update={"train": mine.train.model_copy(update={"refit": "always"})}), []) is None
    assert pipeline.numbered_before(mine.model_copy(update={"gsec": mine.gsec.model_copy(update={"max_steps": 9})}), []) is None


def test_the_settings_refit_and_grow_are_no_parameters_of_the_members() -> None:
    config = PipelineConfig()
    assert not {"refit", "grow"} & set(prepare.of_members(config))
    assert refit.STAGE.settings(config) == {}, "by default a run keeps the identity it had before this stage existed"
