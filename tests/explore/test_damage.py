"""A collection with missing or damaged tables."""

import shutil
from pathlib import Path

import pytest

from gsec_core.errors import BadShard, Refused
from gsec_core.explore import Collection, collection
from gsec_core.tables import ASSIGNMENTS_TABLE, EMBEDDINGS_TABLE, HEAD_TABLE, THUMBNAILS_TABLE

from .examples import by_uri, shard_of


def test_a_damaged_thumbnail_shard_is_an_error_and_a_missing_one_gives_no_thumbnail(copied: Collection) -> None:
    id = by_uri(copied, "020.jpg")
    path = shard_of(copied, THUMBNAILS_TABLE, id)
    data = path.read_bytes()
    path.write_bytes(data[:100] + b"\xff" + data[101:])
    with pytest.raises(BadShard):
        copied.thumbnail(id)
    path.unlink()
    assert copied.thumbnail(id) is None


def test_missing_embeddings_are_reported_and_lists_still_work(copied: Collection) -> None:
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


def test_a_damaged_publication_is_named_and_hides_only_the_history(copied: Collection) -> None:
    (Path(copied.run.files.url) / "published" / "nightly" / "00000001.json").write_text("{")
    detail = copied.image(by_uri(copied, "020.jpg"), wait=60)
    assert "00000001.json" in str(detail.note)
    assert (detail.history, len(detail.neighbors), detail.pending) == ((), collection.NEIGHBORS, False)


def test_a_damaged_shard_of_embeddings_is_named(copied: Collection) -> None:
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
