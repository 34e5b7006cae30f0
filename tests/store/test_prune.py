"""What prune deletes, and what it never deletes."""

import os
import shutil
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pytest

from gsec_core import pipeline
from gsec_core.images.decode import content_hash
from gsec_core.results import status
from gsec_core.stages import encode, report
from gsec_core.stages.base import Context, run_stage
from gsec_core.stages.ingest import image_id
from gsec_core.store import Publication, Store, prune
from gsec_core.store.captions import CaptionsLog
from gsec_core.tables import EMBEDDINGS_TABLE, FREE, REPORT_TABLE, THUMBNAILS_TABLE

from ..pictures import cluster, labels, settings, write_pictures
from ..stages.steps import make_up, run_stages, table_of


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_pictures(tmp_path / "in", range(20))


def grow_old(tmp_path: Path) -> None:
    """Make every file of the store two days old."""
    for path in (tmp_path / "store").rglob("*"):
        stat = path.stat()
        os.utime(path, (stat.st_atime - 2 * 86400, stat.st_mtime - 2 * 86400))


def carry_out(tmp_path: Path, keep_runs: int) -> list[str]:
    """Prune the store and return the paths that were deleted."""
    return [deletion.path for deletion in prune.plan(Store.open(str(tmp_path / "store")), keep_runs) if deletion.carry_out()]


def two_runs(tmp_path: Path, source: Path) -> list[Context]:
    return [cluster(settings(source, tmp_path / "store", clusters=count))[0] for count in (2, 3)]


def test_the_pages_of_a_report_are_deleted_with_its_run(tmp_path: Path, source: Path) -> None:
    old, newest = two_runs(tmp_path, source)
    directory = old.shards(report.STAGE, REPORT_TABLE).directory
    old.run.files.create(f"{directory}/clusters/00000.html", b"as of many clusters")
    leftover = tmp_path / "store" / newest.shards(report.STAGE, REPORT_TABLE).directory / "clusters" / ".tmp-x"
    leftover.parent.mkdir()
    leftover.write_bytes(b"half a page")
    grow_old(tmp_path)
    carry_out(tmp_path, 1)
    assert not (tmp_path / "store" / directory).exists()
    assert not leftover.exists()
    assert Path(report.index(newest)).exists()


def test_nothing_younger_than_a_day_is_deleted(tmp_path: Path, source: Path) -> None:
    for clusters in (2, 3):
        make_up(settings(source, tmp_path / "store", clusters=clusters))
    assert prune.plan(Store.open(str(tmp_path / "store")), 1) == []


def test_old_runs_are_deleted_with_their_tables_and_the_newest_are_kept(tmp_path: Path, source: Path) -> None:
    old, newest = two_runs(tmp_path, source)
    before = labels(newest)
    grow_old(tmp_path)
    carry_out(tmp_path, 1)
    assert [run.id for run in Store.open(str(tmp_path / "store")).runs()] == [newest.run.id]
    assert len(newest.corpus.tables("baseline")) == 1
    assert labels(newest) == before
    assert carry_out(tmp_path, 1) == []
    again, _, made = cluster(settings(source, tmp_path / "store", clusters=2))
    assert again.run.id == old.run.id
    assert made["encode"] == {}, "embeddings of live images must be kept"


def test_deleted_images_lose_their_thumbnails_unless_a_live_one_has_the_same_bytes(tmp_path: Path, source: Path) -> None:
    (source / "twin.jpg").write_bytes((source / "001.jpg").read_bytes())
    config = settings(source, tmp_path / "store")
    cluster(config)
    for seed in (0, 1):
        (source / f"{seed:03d}.jpg").unlink()
    context, _, _ = cluster(config)
    grow_old(tmp_path)
    carry_out(tmp_path, 5)
    thumbnails = context.shards(encode.STAGE, THUMBNAILS_TABLE)
    uri_of = {row["image_id"]: row["uri"] for table in context.corpus.images.read_all(context.generation.shard_names) for row in table.to_pylist()}
    left = {uri_of[id_] for table in thumbnails.read_all(thumbnails.names(), ["image_id"]) for id_ in table["image_id"].to_pylist()}
    assert left == {path.name for path in source.iterdir()} | {"001.jpg"}


def test_thumbnails_of_deleted_images_go_also_where_new_images_have_none(tmp_path: Path, source: Path) -> None:
    config = settings(source, tmp_path / "store")
    former = run_stages(config, encode.STAGE)
    former.corpus.redo(encode.STAGE.name)
    (source / "000.jpg").unlink()
    write_pictures(source, [20])
    run_stages(config, encode.STAGE)
    grow_old(tmp_path)
    carry_out(tmp_path, 5)
    thumbnails = former.shards(encode.STAGE, THUMBNAILS_TABLE)
    ids = {id_ for table in thumbnails.read_all(thumbnails.names(), ["image_id"]) for id_ in table["image_id"].to_pylist()}
    assert ids == {image_id(f"{seed:03d}.jpg") for seed in range(1, 20)}


def test_damaged_embeddings_that_no_run_reads_do_not_prevent_a_prune(tmp_path: Path, source: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = settings(source, tmp_path / "store")
    before = run_stages(config, encode.STAGE)
    before.corpus.redo(encode.STAGE.name)
    (source / "000.jpg").unlink()
    after = run_stages(config, encode.STAGE)
    embeddings = before.shards(encode.STAGE, EMBEDDINGS_TABLE)
    Path(embeddings.location(max(embeddings.names()))).write_bytes(b"damaged")
    leftover = tmp_path / "store" / after.shards(encode.STAGE, THUMBNAILS_TABLE).directory / ".tmp-x"
    leftover.write_bytes(b"half a shard")
    grow_old(tmp_path)
    carry_out(tmp_path, 5)
    assert not leftover.exists()
    assert "this shard is damaged" in caplog.text


def test_unused_generations_and_leftover_temporary_files_are_deleted(tmp_path: Path, source: Path) -> None:
    config = settings(source, tmp_path / "store", ingest={"max_shrink": 1})
    cluster(config)
    old = {path.name for path in source.iterdir()}
    for name in old:
        (source / name).unlink()
    write_pictures(source, range(100, 110))
    context, _, _ = cluster(config)
    (tmp_path / "store" / context.corpus.name / "images" / ".tmp-killed").write_bytes(b"half")
    grow_old(tmp_path)
    deleted = carry_out(tmp_path, 1)
    assert f"{context.corpus.name}/generations/000001.json" in deleted
    assert f"{context.corpus.name}/images/.tmp-killed" in deleted
    assert set(labels(context)) == {path.name for path in source.iterdir()}
    assert cluster(config)[2]["encode"] == {}


def test_shards_that_were_set_aside_are_never_deleted(tmp_path: Path, source: Path) -> None:
    context = run_stages(settings(source, tmp_path / "store"), encode.STAGE)
    embeddings = context.shards(encode.STAGE, EMBEDDINGS_TABLE)
    name = context.generation.shard_names[0]
    Path(embeddings.location(name)).write_bytes(b"damaged")
    assert embeddings.set_aside(name)
    grow_old(tmp_path)
    carry_out(tmp_path, 1)
    assert name in embeddings.names_set_aside()


def describe_all(context: Context, source: Path) -> CaptionsLog:
    """Describe each image of the source, and one that was never in it, by its name; three rows per commit."""
    log = CaptionsLog(context.corpus.captions, "a model", "a request")
    texts = {content_hash(path.read_bytes()): path.name for path in sorted(source.iterdir())} | {b"of nothing there": "nothing"}
    found = [{"content_hash": key, "written_at": "2026", "text": text, "attributes": [], "status": FREE} for key, text in texts.items()]
    for start in range(0, len(found), 3):
        log.append(found[start : start + 3])
    return log


def described(log: CaptionsLog) -> set[str]:
    return {row["text"] for row in log.rows().values()}


def test_deleted_images_lose_their_descriptions_unless_a_live_one_has_the_same_bytes(tmp_path: Path, source: Path) -> None:
    config = settings(source, tmp_path / "store")
    log = describe_all(run_stages(config, encode.STAGE), source)
    (source / "twin.jpg").write_bytes((source / "001.jpg").read_bytes())
    for seed in (0, 1):
        (source / f"{seed:03d}.jpg").unlink()
    run_stages(config, encode.STAGE)
    grow_old(tmp_path)
    deleted = carry_out(tmp_path, 1)
    assert described(log) == {f"{seed:03d}.jpg" for seed in range(1, 20)}
    assert len([path for path in deleted if path.startswith(log.shards.directory)]) == 2, "commits without deleted images must stay as they are"
    grow_old(tmp_path)
    assert carry_out(tmp_path, 1) == []


def test_no_description_is_deleted_while_a_live_image_is_not_encoded(tmp_path: Path, source: Path) -> None:
    config = settings(source, tmp_path / "store")
    log = describe_all(run_stages(config, encode.STAGE), source)
    before = described(log)
    os.rename(source / "000.jpg", source / "renamed.jpg")
    run_stages(config)
    grow_old(tmp_path)
    carry_out(tmp_path, 1)
    assert described(log) == before


def test_a_live_image_that_cannot_be_read_keeps_its_description(tmp_path: Path, source: Path) -> None:
    config = settings(source, tmp_path / "store")
    log = describe_all(run_stages(config, encode.STAGE), source)
    os.utime(source / "000.jpg", (1, 1))
    context = run_stages(config)  # which lists 000.jpg as changed
    os.rename(source / "000.jpg", tmp_path / "away.jpg")
    assert run_stage(context, encode.STAGE)["missing"] == 1
    grow_old(tmp_path)
    carry_out(tmp_path, 1)
    assert described(log) == {path.name for path in source.iterdir()} | {"000.jpg"}


def test_an_image_that_only_an_earlier_encoding_could_read_keeps_its_description(tmp_path: Path, source: Path) -> None:
    config = settings(source, tmp_path / "store")
    log = describe_all(run_stages(config, encode.STAGE), source)
    write_pictures(source, [20])
    context = Context.of(pipeline.request(config, redo=("encode",))[0], config)
    os.rename(source / "000.jpg", tmp_path / "away.jpg")
    assert run_stage(context, encode.STAGE)["missing"] == 1
    grow_old(tmp_path)
    carry_out(tmp_path, 1)
    assert "000.jpg" in described(log)


def test_a_description_younger_than_a_day_is_kept(tmp_path: Path, source: Path) -> None:
    context = run_stages(settings(source, tmp_path / "store"), encode.STAGE)
    grow_old(tmp_path)
    log = describe_all(context, source)
    carry_out(tmp_path, 1)
    assert "nothing" in described(log)


def test_a_damaged_part_of_the_captions_log_is_kept_as_it_is(tmp_path: Path, source: Path) -> None:
    captions = describe_all(run_stages(settings(source, tmp_path / "store"), encode.STAGE), source).shards
    name = max(captions.names())
    Path(captions.location(name)).write_bytes(b"damaged")
    grow_old(tmp_path)
    carry_out(tmp_path, 1)
    assert Path(captions.location(name)).read_bytes() == b"damaged"


def test_many_small_parts_of_the_captions_log_are_merged_and_deleted_a_day_later(tmp_path: Path, source: Path) -> None:
    context = run_stages(settings(source, tmp_path / "store"), encode.STAGE)
    log = CaptionsLog(context.corpus.captions, "a model", "a request")
    for path in sorted(source.iterdir()):
        log.append([{"content_hash": content_hash(path.read_bytes()), "written_at": "2026", "text": path.name, "attributes": [], "status": FREE}])
    parts, before = log.shards.names(), described(log)
    assert len(parts) == 20
    assert carry_out(tmp_path, 1) == [], "parts younger than a day are not merged"
    grow_old(tmp_path)
    assert carry_out(tmp_path, 1) == [log.shards.directory]
    assert (len(log.shards.names()), described(log)) == (21, before)
    assert carry_out(tmp_path, 1) == [], "a process that has listed the parts may still read them"
    grow_old(tmp_path)
    assert carry_out(tmp_path, 1) == sorted(log.shards.path(part) for part in parts)
    assert (len(log.shards.names()), described(log)) == (1, before)
    grow_old(tmp_path)
    assert carry_out(tmp_path, 1) == []


def test_parts_that_were_merged_do_not_count_towards_the_limit_of_a_merge(tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prune, "MOST_MERGED", 40)  # room for the merged shard of 20 rows and 20 new parts, but not for the 20 merged parts too
    context = run_stages(settings(source, tmp_path / "store"), encode.STAGE)
    answer = {"written_at": "2026", "text": "a text", "attributes": [], "status": FREE}
    logs = [CaptionsLog(context.corpus.captions, "a model", request) for request in ("a request", "another")]
    for log in logs:
        for path in source.iterdir():
            log.append([{"content_hash": content_hash(path.read_bytes()), **answer}])
        grow_old(tmp_path)
        carry_out(tmp_path, 1)
    grow_old(tmp_path)
    carry_out(tmp_path, 1)
    assert len(context.corpus.captions.names()) == 1
    assert [len(log.rows()) for log in logs] == [20, 20]


def test_a_damaged_part_of_the_captions_log_does_not_prevent_the_merge_of_the_others(tmp_path: Path, source: Path) -> None:
    context = run_stages(settings(source, tmp_path / "store"), encode.STAGE)
    log = CaptionsLog(context.corpus.captions, "a model", "a request")
    for path in sorted(source.iterdir()):
        log.append([{"content_hash": content_hash(path.read_bytes()), "written_at": "2026", "text": path.name, "attributes": [], "status": FREE}])
    bad = max(log.shards.names())
    data = bytearray(Path(log.shards.location(bad)).read_bytes())
    data[30] ^= 1
    Path(log.shards.location(bad)).write_bytes(data)
    grow_old(tmp_path)
    carry_out(tmp_path, 1)
    grow_old(tmp_path)
    carry_out(tmp_path, 1)
    assert bad in log.shards.names()
    assert len(log.shards.names()) == 2


def test_parts_are_kept_if_their_merged_shard_is_damaged(tmp_path: Path, source: Path) -> None:
    context = run_stages(settings(source, tmp_path / "store"), encode.STAGE)
    log = CaptionsLog(context.corpus.captions, "a model", "a request")
    for path in sorted(source.iterdir()):
        log.append([{"content_hash": content_hash(path.read_bytes()), "written_at": "2026", "text": path.name, "attributes": [], "status": FREE}])
    parts = log.shards.names()
    grow_old(tmp_path)
    carry_out(tmp_path, 1)
    [merged] = log.shards.names() - parts
    data = bytearray(Path(log.shards.location(merged)).read_bytes())
    data[30] ^= 1
    Path(log.shards.location(merged)).write_bytes(data)
    grow_old(tmp_path)
    carry_out(tmp_path, 1)
    assert parts <= log.shards.names()


# Runs as a whole


def kept(tmp_path: Path) -> set[str]:
    return {run.id for run in Store.open(str(tmp_path / "store")).runs()}


def publish(context: Context, number: int, pipeline: str) -> None:
    """Record the run as published by the pipeline, without any check."""
    made = Publication(pipeline, number, context.run.id, context.corpus.name, context.generation.number, "a" * 32, 2, None, None, "2026-01-01")
    assert Store(context.run.files).publications.add(made)


@pytest.fixture
def two(tmp_path: Path, source: Path) -> tuple[Context, Context]:
    """An old run on generation 1 and the newest run on generation 2, in which one shard of the image list was lost and listed again."""
    old = make_up(settings(source, tmp_path / "store"))
    with old.run.attempt({}):
        pass
    lost = Path(old.corpus.images.location(old.generation.shard_names[0]))
    data = lost.read_bytes()
    lost.write_bytes(b"damaged")
    write_pictures(source, [20])
    newest = make_up(settings(source, tmp_path / "store"))
    lost.write_bytes(data)
    assert lost.stem not in newest.generation.shard_names
    grow_old(tmp_path)
    return old, newest


def files(tmp_path: Path) -> set[Path]:
    return {path for path in (tmp_path / "store").rglob("*") if path.is_file()}


def test_plan_itself_deletes_nothing(two: tuple[Context, Context], tmp_path: Path) -> None:
    before = files(tmp_path)
    assert prune.plan(Store.open(str(tmp_path / "store")), 1)
    assert files(tmp_path) == before


def test_an_unfinished_run_is_kept(two: tuple[Context, Context], tmp_path: Path) -> None:
    old, newest = two
    Path(table_of(old, "baseline").location("all")).unlink()
    carry_out(tmp_path, 1)
    assert kept(tmp_path) == {old.run.id, newest.run.id}


def test_an_old_run_that_was_worked_on_within_a_day_is_kept_completely(two: tuple[Context, Context], tmp_path: Path) -> None:
    old, newest = two
    old.run.finish({"clusters": 2})
    assert prune.plan(Store(old.run.files), 1) == []
    grow_old(tmp_path)
    assert carry_out(tmp_path, 1)
    assert kept(tmp_path) == {newest.run.id}
    assert carry_out(tmp_path, 1) == []
    assert [row["state"] for row in status.runs(Store(newest.run.files))] == ["finished"]


def test_a_run_whose_generation_is_missing_stops_neither_prune_nor_status(two: tuple[Context, Context], tmp_path: Path) -> None:
    """An older gsec could leave such a run behind."""
    old, newest = two
    old.run.files.remove(old.corpus.generation_path(1))
    old.run.files.remove(table_of(old, "report").path("all"))
    carry_out(tmp_path, 1)
    assert kept(tmp_path) == {old.run.id, newest.run.id}
    [before, after] = status.runs(Store(newest.run.files))
    assert (before["images"], after["images"]["listed"]) == ({}, 21)


def test_image_shards_of_a_lost_newest_generation_are_kept(two: tuple[Context, Context], tmp_path: Path, source: Path) -> None:
    """The next ingest lists the same images again in shards of the same names."""
    _, newest = two
    newest.run.files.remove(newest.corpus.generation_path(2))
    before = newest.corpus.images.names()
    carry_out(tmp_path, 5)
    assert newest.corpus.images.names() == before


def test_the_run_that_a_published_one_continues_is_kept(tmp_path: Path, source: Path) -> None:
    first = make_up(settings(source, tmp_path / "store", pipeline="nightly"))
    publish(first, 1, "nightly")
    write_pictures(source, [20])
    second = make_up(settings(source, tmp_path / "store", pipeline="nightly"))
    assert second.run.request()["previous"]["run_id"] == first.run.id
    publish(second, 2, "nightly")
    newest = make_up(settings(source, tmp_path / "store", pipeline="other", clusters=3))
    grow_old(tmp_path)
    assert prune.plan(Store(first.run.files), 1) == [], "the first run is needed to make a damaged lineage of the second again"
    publish(newest, 3, "nightly")
    carry_out(tmp_path, 1)
    assert kept(tmp_path) == {newest.run.id}


# What other processes do between plan and deletion


@pytest.mark.parametrize("meanwhile", ["published", "worked on", "assigned to"])
def test_a_run_that_becomes_needed_after_the_plan_is_kept_with_all_its_files(two: tuple[Context, Context], tmp_path: Path, meanwhile: str) -> None:
    old, newest = two
    deletions = prune.plan(Store.open(str(tmp_path / "store")), 1)
    planned = {deletion.path for deletion in deletions}
    lost = old.corpus.images.path(old.generation.shard_names[0])
    assert planned > {f"{old.run.directory}/request.json", table_of(old, "baseline").path("all"), old.corpus.generation_path(1), lost}
    match meanwhile:
        case "published":
            publish(old, 1, "nightly")
        case "worked on":
            with old.run.attempt({}):
                pass
        case "assigned to":
            Store(old.run.files).request_run(newest.config, newest.corpus, 2, {"assign": [1, {"run": old.run.id}]}, of_run=old.run.id)
    before = files(tmp_path)
    assert [deletion.path for deletion in deletions if deletion.carry_out()] == []
    assert files(tmp_path) == before


def test_a_run_that_a_newly_published_run_continues_is_kept(tmp_path: Path, source: Path) -> None:
    first = make_up(settings(source, tmp_path / "store", pipeline="nightly"))
    publish(first, 1, "nightly")
    second = make_up(settings(source, tmp_path / "store", pipeline="nightly", clusters=3))
    third = make_up(settings(source, tmp_path / "store", pipeline="nightly", clusters=4))
    publish(third, 2, "nightly")
    newest = make_up(settings(source, tmp_path / "store", pipeline="nightly", clusters=5))
    publish(newest, 3, "nightly")
    grow_old(tmp_path)
    deletions = prune.plan(Store.open(str(tmp_path / "store")), 1)
    publish(second, 4, "nightly")
    for deletion in deletions:
        deletion.carry_out()
    assert kept(tmp_path) == {first.run.id, second.run.id, third.run.id, newest.run.id}


@pytest.mark.parametrize("by", ["a run that is new", "a run that goes on"])
def test_a_table_that_another_run_names_after_the_plan_is_kept(two: tuple[Context, Context], tmp_path: Path, source: Path, by: str) -> None:
    old, newest = two
    other = settings(source, tmp_path / "store", clusters=3)
    if by == "a run that goes on":
        pipeline.request(other)
        grow_old(tmp_path)
    deletions = prune.plan(Store.open(str(tmp_path / "store")), 2 if by == "a run that goes on" else 1)
    run, _ = pipeline.request(other)
    table, record = table_of(old, "baseline"), old.run.stage("baseline")
    assert record is not None
    for deletion in deletions:
        if deletion.path == table.path("all"):  # the run names this table while the deletion of others is under way
            run.begin_stage("baseline", record["fingerprint"], record["tables"])
        assert deletion.carry_out() == (deletion.path != table.path("all"))
    assert kept(tmp_path) == {newest.run.id, run.id}
    assert run.is_complete("baseline")


def test_a_generation_that_a_new_run_reads_after_the_plan_is_kept(two: tuple[Context, Context], tmp_path: Path) -> None:
    old, _ = two
    deletions = prune.plan(Store.open(str(tmp_path / "store")), 1)
    Store(old.run.files).request_run(old.config, old.corpus, 1, {"encode": "another version"})
    stayed = {deletion.path for deletion in deletions if not deletion.carry_out()}
    assert stayed == {old.corpus.generation_path(1), old.corpus.images.path(old.generation.shard_names[0])}


def test_shards_left_by_a_killed_ingest_are_kept_if_the_next_ingest_names_them_after_the_plan(tmp_path: Path, source: Path) -> None:
    config = settings(source, tmp_path / "store")
    make_up(config)
    write_pictures(source, [20])
    killed = make_up(config)
    [left] = set(killed.generation.shard_names) - set(killed.corpus.generation(1).shard_names)
    embeddings = killed.corpus.table(EMBEDDINGS_TABLE, "f" * 32)
    embeddings.commit(left, killed.corpus.images.read(left))
    shutil.rmtree(tmp_path / "store" / killed.run.directory)
    killed.run.files.remove(killed.corpus.generation_path(2))
    grow_old(tmp_path)
    deletions = prune.plan(Store.open(str(tmp_path / "store")), 1)
    planned = {deletion.path for deletion in deletions}
    assert {killed.corpus.images.path(left), embeddings.path(left)} <= planned
    assert left in make_up(config).generation.shard_names
    for deletion in deletions:
        deletion.carry_out()
    assert left in killed.corpus.images.names() & embeddings.names()


def test_a_prune_killed_after_any_deletion_leaves_a_good_store(two: tuple[Context, Context], tmp_path: Path) -> None:
    old, newest = two
    store = Store(newest.run.files)
    deletions = prune.plan(store, 1)
    assert deletions[0].path == f"{old.run.directory}/request.json"
    for deletion in deletions:
        assert deletion.carry_out()
        assert [run.id for run in store.runs() if run.is_finished()] == [newest.run.id]
        assert prune.plan(store, 1) or deletion is deletions[-1], "the next prune must delete the rest"


def test_prune_reads_the_records_of_needed_files_once_per_directory(two: tuple[Context, Context], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old, newest = two
    for number in range(20):
        table_of(old, "baseline").commit(str(number), pa.table({"nothing": [0]}))
    grow_old(tmp_path)
    deletions = prune.plan(Store.open(str(tmp_path / "store")), 1)
    stages = list(newest.run.stages())
    kind, asked = type(old.run.files), Counter[str]()
    listing, reading = kind.directories, kind.read
    monkeypatch.setattr(kind, "directories", lambda self, path: asked.update([path]) or listing(self, path))
    monkeypatch.setattr(kind, "read", lambda self, path: asked.update([path]) or reading(self, path))
    assert all(deletion.carry_out() for deletion in deletions)
    assert asked["runs"] == 1 + len(stages), "once for the run, for its generation and for each of its tables except the embeddings, which both runs have"
    assert {asked[f"{newest.run.directory}/stage-{stage}.json"] for stage in stages} == {1}
