"""A corpus that changes between runs: exactly the new images are encoded, and each live image has exactly one row."""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import polars as pl
import pyarrow as pa
import pytest

from gsec_core import pipeline
from gsec_core.errors import GsecError, Refused
from gsec_core.results import finishing
from gsec_core.stages import encode
from gsec_core.stages.base import Context, begin, missing, work
from gsec_core.store import Shards, Store
from gsec_core.tables import EMBEDDINGS_TABLE, THUMBNAILS_TABLE

from ..pictures import cluster, encoded, labels, picture, settings, write_pictures
from .steps import STAGES


def test_a_second_run_without_changes_does_nothing(tmp_path: Path) -> None:
    config = settings(write_pictures(tmp_path / "in", range(20)), tmp_path / "store")
    context, _, _ = cluster(config)
    assert pipeline.nothing_to_do(config) is not None
    again, changes, made = cluster(config)
    assert again.run.id == context.run.id
    assert changes.none
    assert made == {stage.name: {} for stage in STAGES}


def test_after_a_change_of_the_source_only_new_and_changed_images_are_encoded(tmp_path: Path) -> None:
    source = write_pictures(tmp_path / "in", range(20))
    config = settings(source, tmp_path / "store")
    encoded(config)
    write_pictures(source, [20, 21])
    picture(99).save(source / "003.jpg")
    (source / "007.jpg").unlink()
    context, changes, made = cluster(config)
    assert (changes.added, changes.changed, changes.deleted) == (2, 1, 1)
    assert made["encode"]["encoded"] == 3
    assert set(labels(context)) == {f"{seed:03d}.jpg" for seed in range(22) if seed != 7}


def test_a_renamed_or_touched_image_is_copied_in_the_store_and_not_encoded_again(tmp_path: Path) -> None:
    source = write_pictures(tmp_path / "in", range(20))
    config = settings(source, tmp_path / "store")
    before, _, _ = cluster(config)
    os.rename(source / "000.jpg", source / "renamed.jpg")
    os.utime(source / "001.jpg", (1, 1))
    after, _, made = cluster(config)
    assert (made["encode"]["encoded"], made["encode"]["copied"]) == (0, 2)
    assert labels(after)["renamed.jpg"] == labels(before)["000.jpg"]


def test_images_that_are_listed_in_another_order_are_copied_with_one_read_of_each_old_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_pictures(tmp_path / "in", range(20))
    (source / "bad.jpg").write_text("not an image")
    before, _, _ = encoded(settings(source, tmp_path / "store"))
    for number in range(20):
        os.rename(source / f"{number:03d}.jpg", source / f"{7 * number % 20:03d}-{number:03d}.jpg")
    os.rename(source / "bad.jpg", source / "000-bad.jpg")
    read, whole = Shards.read, []

    def counted(shards: Shards, name: str, columns: Sequence[str] | None = None) -> pa.Table:
        whole.extend([name] if columns is None and shards.directory == before.shards(encode.STAGE, EMBEDDINGS_TABLE).directory else [])
        return read(shards, name, columns)

    monkeypatch.setattr(Shards, "read", counted)
    after, _, made = encoded(settings(source, tmp_path / "store", ingest={"max_shrink": 1}))
    assert (made["encoded"], made["copied"]) == (0, 21)
    assert sorted(whole) == sorted(before.generation.shard_names)
    monkeypatch.undo()
    name_of = {row["image_id"]: row["uri"][-7:] for row in [*before.live.to_pylist(), *after.live.to_pylist()]}
    names = {run: set(run.generation.shard_names) for run in (before, after)}
    for table in (EMBEDDINGS_TABLE, THUMBNAILS_TABLE):
        old, new = (
            pl.DataFrame(pa.concat_tables(run.shards(encode.STAGE, table).read_all(shards)))
            .with_columns(pl.col("image_id").replace_strict(name_of, return_dtype=pl.String))
            .sort("image_id")
            for run, shards in ((before, names[before]), (after, names[after] - names[before]))
        )
        assert new.equals(old)


def test_clusters_keep_their_keys_if_all_images_are_renamed(tmp_path: Path) -> None:
    source = write_pictures(tmp_path / "in", range(20))
    context, _, _ = cluster(settings(source, tmp_path / "store"))
    finishing.finish(context)
    for path in sorted(source.iterdir()):
        path.rename(source / f"new-{path.name}")
    _, _, made = cluster(settings(source, tmp_path / "store", ingest={"max_shrink": 1}))
    assert made["lineage"]["common"] == 20


def test_a_run_works_if_the_first_shard_of_the_image_list_has_only_deletions(tmp_path: Path) -> None:
    source = write_pictures(tmp_path / "in", range(20))
    config = settings(source, tmp_path / "store", ingest={"shard_rows": 2048})
    encoded(config)
    (source / "000.jpg").unlink()
    context, _, _ = encoded(config)
    Path(context.corpus.images.location(context.generation.shard_names[0])).write_bytes(b"damaged")
    context, _, _ = cluster(config, ("train",))  # lists the lost images again, in a later shard
    first = context.corpus.images.read(context.generation.shard_names[0])
    assert set(first["uri"].to_pylist()) == {"000.jpg"}
    assert len(labels(context)) == 19


def test_a_run_killed_in_encode_before_more_changes_of_the_source_is_followed_by_a_correct_run(tmp_path: Path) -> None:
    source = write_pictures(tmp_path / "in", range(24))
    config = settings(source, tmp_path / "store")
    run, _ = pipeline.request(config)
    context = Context.of(run, config)
    begin(context, encode.STAGE)
    [step] = encode.STAGE.steps
    work(context, encode.STAGE, step, missing(context, encode.STAGE, step)[:1])  # one shard of three, then killed
    picture(98).save(source / "001.jpg")
    picture(99).save(source / "020.jpg")
    (source / "010.jpg").unlink()
    write_pictures(source, [30])
    context, _, made = cluster(config)
    assert set(labels(context)) == {path.name for path in source.iterdir()}
    # The 8 images of the first shard were done; 020 has changed and 010 is gone, so their old rows are not encoded; 001, 020 and 030 are new.
    assert made["encode"]["encoded"] == 24 - 8 - 2 + 3


@pytest.mark.parametrize("unmount", [lambda folder: [path.unlink() for path in folder.iterdir()], shutil.rmtree])
def test_an_emptied_or_vanished_source_is_refused_and_no_image_counts_as_deleted(tmp_path: Path, unmount: object) -> None:
    source = write_pictures(tmp_path / "in", range(10))
    config = settings(source, tmp_path / "store")
    context, _, _ = encoded(config)
    assert callable(unmount)
    unmount(source)
    with pytest.raises(Refused):
        pipeline.request(config)
    assert context.corpus.generation().number == 1


def test_a_source_that_lost_too_many_images_is_refused_until_max_shrink_allows_it(tmp_path: Path) -> None:
    source = write_pictures(tmp_path / "in", range(10))
    encoded(settings(source, tmp_path / "store"))
    for seed in range(3):
        (source / f"{seed:03d}.jpg").unlink()
    with pytest.raises(Refused, match=r"3 of its 10 images have vanished.*ingest.max_shrink"):
        pipeline.request(settings(source, tmp_path / "store"))
    _, changes = pipeline.request(settings(source, tmp_path / "store", ingest={"max_shrink": 1}))
    assert changes.deleted == 3


def test_an_image_that_could_not_be_read_is_tried_again_by_the_next_run(tmp_path: Path) -> None:
    source = write_pictures(tmp_path / "in", range(10))
    config = settings(source, tmp_path / "store")
    run, _ = pipeline.request(config)
    os.rename(source / "004.jpg", tmp_path / "elsewhere.jpg")  # between ingest and encode
    context = Context.of(run, config)
    begin(context, encode.STAGE)
    [step] = encode.STAGE.steps
    assert work(context, encode.STAGE, step, step.plan(context))["missing"] == 1
    os.rename(tmp_path / "elsewhere.jpg", source / "004.jpg")  # as it was: same time, same size
    context, changes, _ = cluster(config)
    assert (changes.added, changes.changed, changes.deleted) == (0, 1, 0)
    assert "004.jpg" in labels(context)


def test_a_damaged_image_list_is_written_again(tmp_path: Path) -> None:
    config = settings(write_pictures(tmp_path / "in", range(20)), tmp_path / "store")
    before, _, _ = cluster(config)
    finishing.finish(before)
    lost = before.corpus.images.location(before.generation.shard_names[0])
    Path(lost).write_bytes(b"not a shard")
    assert getattr(pipeline.nothing_to_do(config), "id", None) == before.run.id, "without changes of the source, the image list is not read"
    with pytest.raises(GsecError, match="image list is damaged"):
        before.corpus.live_rows(before.generation)
    after, changes, made = cluster(config)
    assert (changes.damaged, changes.added) == (1, 8)
    assert made["encode"]["encoded"] == 0, "equal bytes must not be encoded twice"
    assert labels(after) == labels(before)


def test_a_corpus_name_cannot_be_used_for_another_source(tmp_path: Path) -> None:
    pipeline.request(settings(write_pictures(tmp_path / "in", range(4)), tmp_path / "store", corpus="mine"))
    with pytest.raises(Refused, match="corpus mine belongs to"):
        pipeline.request(settings(write_pictures(tmp_path / "other", range(4)), tmp_path / "store", corpus="mine"))


def test_runs_of_two_corpora_can_be_in_one_store(tmp_path: Path) -> None:
    for name in ("one", "two"):
        encoded(settings(write_pictures(tmp_path / name, range(4)), tmp_path / "store"))
    store = Store.open(str(tmp_path / "store"))
    assert [corpus.name.rpartition("-")[0] for corpus in store.corpora()] == ["one", "two"]
    assert len(store.runs()) == 2


def test_a_shard_whose_second_table_is_missing_is_encoded_again(tmp_path: Path) -> None:
    source = write_pictures(tmp_path / "in", range(10))
    config = settings(source, tmp_path / "store")
    encoded(config)
    write_pictures(source, range(10, 14))
    context, _, _ = encoded(config)
    Path(context.shards(encode.STAGE, THUMBNAILS_TABLE).location(context.generation.shard_names[-1])).unlink()
    again, _, made = cluster(config)
    assert made["encode"]["encoded"] == 4
    assert set(labels(again)) == {path.name for path in source.iterdir()}


def test_a_deleted_image_that_returns_after_its_thumbnail_was_pruned_gets_a_new_thumbnail(tmp_path: Path) -> None:
    source = write_pictures(tmp_path / "in", range(10))
    config = settings(source, tmp_path / "store")
    context, _, _ = encoded(config)
    thumbnails = context.shards(encode.STAGE, THUMBNAILS_TABLE)
    os.rename(source / "003.jpg", tmp_path / "away.jpg")
    encoded(config)
    name = context.generation.shard_names[0]
    thumbnails.replace(name, thumbnails.read(name).slice(0, 0), thumbnails.facts(name))  # as prune does, but for all thumbnails
    os.rename(tmp_path / "away.jpg", source / "003.jpg")
    again, _, made = encoded(config)
    assert made["encoded"] == 1
    assert thumbnails.read(again.generation.shard_names[-1]).num_rows == 1
