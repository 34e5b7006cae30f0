"""A shard reads as what was written or counts as bad, and never reads as anything else."""

import errno
import io
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gsec_core.errors import BadShard
from gsec_core.store import Shards
from gsec_core.store.files import Files, LocalFiles, open_files
from gsec_core.tables import ASSIGNMENTS, THUMBNAILS

from .examples import embeddings, images, reproducible

TABLE = embeddings(first=0)


def shards_in(files: Files) -> Shards:
    return Shards(files, "corpus/embeddings/fingerprint")


@pytest.fixture
def any_shards(any_files: Files) -> Shards:
    """An empty table of shards for each kind of filesystem."""
    return shards_in(any_files)


@pytest.fixture
def shards() -> Shards:
    return shards_in(open_files(f"memory://{uuid4().hex}"))


def overwrite(shards: Shards, name: str, change: Callable[[bytes], bytes]) -> None:
    """Damage a shard by changing its bytes."""
    shards.files.replace(shards.path(name), change(shards.files.read(shards.path(name))))


def cut(data: bytes) -> bytes:
    return data[:-1]


# Rows and facts


def test_a_shard_reads_back_as_it_was_written(any_shards: Shards) -> None:
    any_shards.commit("00000", TABLE)
    assert any_shards.read("00000").equals(TABLE)


def test_a_shard_is_read_by_the_thread_that_asks_for_it(any_shards: Shards, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread of Arrow that still holds a Python file when the interpreter exits aborts the process."""
    any_shards.commit("00000", TABLE)
    readers: set[int] = set()
    opened = any_shards.files.open

    def watched(path: str) -> Any:
        file = opened(path)
        read = file.read

        class Watched:
            def read(self, *size: int) -> bytes:
                readers.add(threading.get_ident())
                return bytes(read(*size))

            def __getattr__(self, name: str) -> Any:
                return getattr(file, name)

            def __enter__(self) -> "Watched":
                return self

            def __exit__(self, *error: object) -> None:
                file.close()

        return Watched()

    monkeypatch.setattr(any_shards.files, "open", watched)
    assert any_shards.read("00000").equals(TABLE)
    assert readers == {threading.get_ident()}


@pytest.mark.parametrize(
    "table",
    [
        pytest.param(embeddings(0, 3000), id="many rows"),
        pytest.param(embeddings(2, 1), id="no vector"),
        pytest.param(embeddings(0, 0), id="no rows"),
        pytest.param(THUMBNAILS.empty_table(), id="no thumbnails"),
        pytest.param(ASSIGNMENTS.empty_table(), id="no assignments"),
        pytest.param(images({"a.jpg": "1", "b.jpg": None}), id="images"),
    ],
)
def test_columns_types_and_schema_metadata_are_kept(shards: Shards, table: pa.Table) -> None:
    shards.commit("00000", table)
    assert shards.read("00000").equals(table)
    assert shards.read("00000").schema.equals(table.schema, check_metadata=True)


def test_a_null_vector_is_null_and_the_others_keep_every_bit(shards: Shards) -> None:
    shards.commit("00000", TABLE)
    vectors = shards.read("00000")["embedding"].to_pylist()
    assert [vector is None for vector in vectors] == [False, False, True]
    assert np.array_equal(np.array(vectors[:2], np.float16), np.array(TABLE["embedding"].to_pylist()[:2], np.float16))


def test_single_columns_can_be_read(shards: Shards) -> None:
    shards.commit("00000", TABLE)
    assert shards.read("00000", ["image_id", "status"]).equals(TABLE.select(["image_id", "status"]))


def test_reading_a_missing_shard_is_a_file_not_found_error(any_shards: Shards) -> None:
    with pytest.raises(FileNotFoundError):
        any_shards.read("00000")
    with pytest.raises(FileNotFoundError):
        any_shards.facts("00000")


def test_facts_are_those_the_writer_added_and_the_number_of_rows(any_shards: Shards) -> None:
    any_shards.commit("00000", TABLE.select(["image_id", "width"]), {"rejected": 1, "seconds": {"decode": 0.5}})
    assert any_shards.facts("00000") == {
        "rows": 3,
        "rejected": 1,
        "seconds": {"decode": 0.5},
    }


def test_names_are_those_of_committed_shards(any_shards: Shards) -> None:
    assert any_shards.names() == set()
    any_shards.commit("00000", TABLE)
    any_shards.commit("00001", TABLE)
    any_shards.files.create(f"{any_shards.directory}/notes.txt", b"")
    assert any_shards.names() == {"00000", "00001"}


def test_the_first_commit_of_a_shard_wins(any_shards: Shards) -> None:
    assert any_shards.commit("00000", TABLE)
    assert not any_shards.commit("00000", embeddings(first=50))
    assert any_shards.read("00000").equals(TABLE)


def test_replace_writes_over_a_shard(any_shards: Shards) -> None:
    any_shards.commit("00000", TABLE)
    any_shards.replace("00000", TABLE.slice(1), {"pruned": 1})
    assert any_shards.read("00000").equals(TABLE.slice(1))
    assert any_shards.facts("00000")["pruned"] == 1


def test_several_shards_are_read_in_the_order_asked_for(shards: Shards) -> None:
    tables = {"b": embeddings(first=10), "a": TABLE}
    for name, table in tables.items():
        shards.commit(name, table)
    assert [table["image_id"] for table in shards.read_all(["b", "a"], ["image_id"])] == [tables["b"]["image_id"], tables["a"]["image_id"]]


# Damage


def damaged_reads_as(shards: Shards, data: bytes) -> pa.Table | None:
    """The table that a shard with these bytes reads as; None if it counts as bad."""
    shards.files.replace(shards.path("00000"), data)
    try:
        return shards.read("00000")
    except BadShard:
        return None


def test_every_single_flipped_bit_is_noticed_or_changes_no_row(shards: Shards) -> None:
    """Tries every bit of a small shard: pages, page headers and footer."""
    table = TABLE.select(["image_id", "embedding"])
    shards.commit("00000", table)
    data = shards.files.read(shards.path("00000"))
    for position in range(len(data)):
        for bit in range(8):
            flipped = data[:position] + bytes([data[position] ^ (1 << bit)]) + data[position + 1 :]
            read = damaged_reads_as(shards, flipped)
            assert read is None or read.equals(table), f"bit {bit} of byte {position}"


@reproducible(300)
@given(st.data())
def test_damage_anywhere_is_noticed_or_changes_no_row(data: st.DataObject) -> None:
    shards = shards_in(open_files("memory://damage-anywhere"))
    shards.replace("00000", TABLE, {"seconds": 1.0})
    damaged = bytearray(shards.files.read(shards.path("00000")))
    start = data.draw(st.integers(0, len(damaged) - 1))
    damaged[start : start + 8] = data.draw(st.binary(min_size=1, max_size=8))
    read = damaged_reads_as(shards, bytes(damaged))
    assert read is None or read.equals(TABLE)


def test_every_changed_byte_of_a_vector_is_noticed(shards: Shards) -> None:
    """Vectors are stored plain, so only the checksum of their page can reveal a change."""
    shards.commit("00000", TABLE)
    data = shards.files.read(shards.path("00000"))
    vector = np.array(TABLE["embedding"][0].as_py(), np.float16).tobytes()
    start = data.index(vector)
    for position in range(start, start + len(vector)):
        assert damaged_reads_as(shards, data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :]) is None


def test_a_footer_that_leads_to_another_columns_pages_is_bad(shards: Shards) -> None:
    """Those pages have valid checksums of their own. One flipped bit of an offset can lead there."""
    vectors = TABLE["embedding"].combine_chunks()
    table = pa.table({"a": vectors, "b": vectors.take([1, 2, 0]), "c": vectors.take([2, 0, 1])})
    shards.commit("00000", table)
    data = shards.files.read(shards.path("00000"))
    footer = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    columns = pq.ParquetFile(io.BytesIO(data)).metadata.row_group(0)
    b, c = (varint(columns.column(number).data_page_offset) for number in (1, 2))
    assert damaged_reads_as(shards, data[:footer] + data[footer:].replace(b, c)) is None


def varint(number: int) -> bytes:
    """Thrift's encoding of a number of two bytes."""
    zigzag = 2 * number
    return bytes([zigzag & 0x7F | 0x80, zigzag >> 7])


def test_a_shard_cut_at_any_length_is_bad(shards: Shards) -> None:
    shards.commit("00000", TABLE)
    data = shards.files.read(shards.path("00000"))
    for length in range(len(data)):
        assert damaged_reads_as(shards, data[:length]) is None, length


def test_zeros_of_the_right_length_are_bad(any_shards: Shards) -> None:
    """Some filesystems leave a file of zeros after a power loss."""
    any_shards.commit("00000", TABLE)
    overwrite(any_shards, "00000", lambda data: bytes(len(data)))
    with pytest.raises(BadShard, match="corpus/embeddings/fingerprint/00000"):
        any_shards.read("00000")


def test_a_parquet_file_that_is_no_shard_is_bad(shards: Shards) -> None:
    foreign = io.BytesIO()
    pq.write_table(TABLE, foreign)
    assert damaged_reads_as(shards, foreign.getvalue()) is None


def test_reading_the_facts_of_a_cut_shard_is_an_error(shards: Shards) -> None:
    shards.commit("00000", TABLE)
    overwrite(shards, "00000", cut)
    with pytest.raises(BadShard):
        shards.facts("00000")


def test_reading_several_shards_names_all_bad_ones_in_one_error(any_shards: Shards) -> None:
    for number in range(4):
        any_shards.commit(str(number), TABLE)
    overwrite(any_shards, "1", cut)
    overwrite(any_shards, "3", cut)
    with pytest.raises(BadShard, match="2 bad shards in all") as raised:
        any_shards.read_all(["0", "1", "2", "3"])
    assert raised.value.paths == (any_shards.path("1"), any_shards.path("3"))


# A disk with read errors


class Unreadable(io.BytesIO):
    """An open file whose disk answers with an input/output error."""

    def read(self, *_: Any) -> bytes:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    readinto = read  # type: ignore[assignment]


@pytest.fixture
def local_shards(tmp_path: Path) -> Shards:
    made = shards_in(LocalFiles(str(tmp_path)))
    made.commit("00000", TABLE)
    return made


@pytest.mark.parametrize("look", [Shards.read, Shards.facts, Shards.set_aside])
def test_an_input_output_error_does_not_make_a_shard_bad(local_shards: Shards, monkeypatch: pytest.MonkeyPatch, look: Any) -> None:
    with monkeypatch.context() as failing:
        failing.setattr(local_shards.files, "open", lambda _: Unreadable())
        with pytest.raises(OSError, match="Input/output error"):
            look(local_shards, "00000")
    assert local_shards.names() == {"00000"}
    assert not local_shards.names_set_aside()


def test_a_passing_input_output_error_is_retried(local_shards: Shards, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = local_shards.files.open
    answers = iter([Unreadable()])
    monkeypatch.setattr(local_shards.files, "open", lambda path: next(answers, None) or opened(path))
    assert local_shards.read("00000").equals(TABLE)


# Setting bad shards aside


def test_a_bad_shard_that_is_set_aside_is_no_longer_listed_and_its_bytes_are_kept(any_shards: Shards) -> None:
    any_shards.commit("00000", TABLE)
    overwrite(any_shards, "00000", cut)
    bad = any_shards.files.read(any_shards.path("00000"))
    assert any_shards.set_aside("00000")
    assert any_shards.names() == set()
    aside = [name for name in any_shards.files.files(any_shards.directory) if name.startswith("_bad-") and name.endswith("-00000.parquet")]
    assert [any_shards.files.read(f"{any_shards.directory}/{name}") for name in aside] == [bad]


def test_a_shard_that_was_set_aside_can_be_made_again(any_shards: Shards) -> None:
    any_shards.commit("00000", TABLE)
    overwrite(any_shards, "00000", cut)
    any_shards.set_aside("00000")
    assert any_shards.commit("00000", TABLE)
    assert any_shards.read("00000").equals(TABLE)


def test_a_good_shard_is_not_set_aside(any_shards: Shards) -> None:
    any_shards.commit("00000", TABLE)
    assert not any_shards.set_aside("00000")
    assert any_shards.read("00000").equals(TABLE)
    assert not any_shards.names_set_aside()


def test_a_missing_shard_is_not_set_aside(any_shards: Shards) -> None:
    assert not any_shards.set_aside("00000")


def test_a_shard_made_again_is_still_listed_as_set_aside_before(any_shards: Shards) -> None:
    any_shards.commit("1", TABLE)
    any_shards.commit("10", TABLE)
    overwrite(any_shards, "10", cut)
    any_shards.set_aside("10")
    any_shards.commit("10", TABLE)
    assert any_shards.names_set_aside() == {"10"}


def test_a_shard_that_another_run_replaces_just_before_the_rename_is_put_back(any_shards: Shards, monkeypatch: pytest.MonkeyPatch) -> None:
    any_shards.commit("00000", TABLE)
    overwrite(any_shards, "00000", cut)
    move = any_shards.files.move

    def move_after_the_other(path: str, to: str) -> None:
        monkeypatch.setattr(any_shards.files, "move", move)
        assert any_shards.set_aside("00000")
        assert any_shards.commit("00000", TABLE, {"writer": "other"})
        move(path, to)

    monkeypatch.setattr(any_shards.files, "move", move_after_the_other)
    assert not any_shards.set_aside("00000")
    assert any_shards.read("00000").equals(TABLE)
    assert any_shards.facts("00000")["writer"] == "other"


def test_a_shard_that_another_run_sets_aside_just_before_the_rename_is_left_to_it(any_shards: Shards, monkeypatch: pytest.MonkeyPatch) -> None:
    any_shards.commit("00000", TABLE)
    overwrite(any_shards, "00000", cut)
    move = any_shards.files.move

    def move_after_the_other(path: str, to: str) -> None:
        monkeypatch.setattr(any_shards.files, "move", move)
        assert any_shards.set_aside("00000")
        move(path, to)

    monkeypatch.setattr(any_shards.files, "move", move_after_the_other)
    assert not any_shards.set_aside("00000")
