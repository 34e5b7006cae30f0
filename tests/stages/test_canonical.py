import errno
import os
import pickle
from pathlib import Path
from threading import Barrier, Thread
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray

from gsec_core.errors import GsecError, Refused
from gsec_core.stages import canonical, encode
from gsec_core.stages.base import Context, once
from gsec_core.store.arrays import to_matrix
from gsec_core.tables import EMBEDDINGS_TABLE

from ..pictures import settings, write_pictures
from .steps import run_stages


def encoded(tmp_path: Path, pictures: int = 20, **more: object) -> Context:
    source = write_pictures(tmp_path / "in", range(pictures))
    return run_stages(settings(source, tmp_path / "store", **more), encode.STAGE)


def by_id(context: Context, column: str) -> dict[bytes, list[float]]:
    embeddings = context.shards(encode.STAGE, EMBEDDINGS_TABLE)
    return {row["image_id"]: row[column] for name in embeddings.names() for row in embeddings.read(name).to_pylist()}


def test_vectors_are_loaded_in_canonical_order_independent_of_their_shards(tmp_path: Path) -> None:
    context = encoded(tmp_path)
    rows = canonical.usable(context).rows
    assert rows["content_hash"].to_pylist() == sorted(rows["content_hash"].to_pylist())
    assert len(set(rows["shard"].to_pylist())) == 3
    for load, column in ((canonical.load_embeddings, "embedding"), (canonical.load_joint, "joint")):
        expected = by_id(context, column)
        np.testing.assert_array_equal(load(context), np.array([expected[image] for image in rows["image_id"].to_pylist()], np.float16))


def test_embeddings_without_a_joint_column_serve_as_joint_vectors_themselves(tmp_path: Path) -> None:
    context = encoded(tmp_path)
    embeddings = context.shards(encode.STAGE, EMBEDDINGS_TABLE)
    for name in embeddings.names():
        embeddings.replace(name, embeddings.read(name).drop_columns(["joint"]), {})
    np.testing.assert_array_equal(canonical.load_joint(context), canonical.load_embeddings(context))


def test_rejected_images_have_no_row_in_the_matrix(tmp_path: Path) -> None:
    source = write_pictures(tmp_path / "in", range(5))
    (source / "broken.jpg").write_bytes(b"no image")
    context = run_stages(settings(source, tmp_path / "store"), encode.STAGE)
    assert len(canonical.load_embeddings(context)) == 5


def test_the_scratch_file_is_unlinked_and_lies_in_the_folder_of_the_setting(tmp_path: Path) -> None:
    (tmp_path / "scratch").mkdir()
    context = encoded(tmp_path, scratch=str(tmp_path / "scratch"))
    X = canonical.load_embeddings(context)
    assert isinstance(X, np.memmap)
    assert str(tmp_path / "scratch") in Path("/proc/self/maps").read_text()
    assert not list((tmp_path / "scratch").iterdir())


def test_a_missing_scratch_folder_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "scratch").mkdir()
    context = encoded(tmp_path, scratch=str(tmp_path / "scratch"))
    (tmp_path / "scratch").rmdir()
    with pytest.raises(Refused, match=r"scratch = .*scratch.*Make the folder, or name another"):
        canonical.load_embeddings(context)


def test_a_full_scratch_disk_is_an_error_and_not_a_crash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(file: int, offset: int, length: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    context = encoded(tmp_path)
    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match=r"No space left on device; make room there.*: '/"):
        canonical.load_embeddings(context)


def test_an_embedding_that_is_not_finite_is_an_error_that_names_its_shard(tmp_path: Path) -> None:
    context = encoded(tmp_path)
    embeddings = context.shards(encode.STAGE, EMBEDDINGS_TABLE)
    name = sorted(embeddings.names())[1]
    table = embeddings.read(name)
    vectors = to_matrix(table, "embedding").copy()
    vectors[3, 7] = np.nan
    column = encode._vectors(list(vectors), vectors.shape[1])
    embeddings.replace(name, table.set_column(table.column_names.index("embedding"), table.schema.field("embedding"), column), {})
    with pytest.raises(GsecError, match=rf"{name}.* not finite"):
        canonical.load_embeddings(context)


def test_threads_that_ask_for_the_embeddings_together_load_them_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    context = encoded(tmp_path)
    loads: list[int] = []
    load = canonical._load_vectors

    def counted(*asked: Any) -> NDArray[np.float16]:
        loads.append(1)
        return load(*asked)

    monkeypatch.setattr(canonical, "_load_vectors", counted)
    together = Barrier(4)

    def begin() -> None:
        together.wait()
        canonical.load_embeddings(context)

    threads = [Thread(target=begin) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(loads) == 1


def test_once_returns_a_kept_value_without_loading_and_holds_only_the_latest() -> None:
    loads: list[str] = []

    @once
    def load(name: str) -> str:
        loads.append(name)
        return name.upper()

    load.keep("A as it was made", "a")
    assert [load("a"), load("b"), load("b"), load("a")] == ["A as it was made", "B", "B", "A"]
    assert loads == ["b", "a"]


def test_a_function_that_loads_once_is_pickled_by_its_name() -> None:
    assert pickle.loads(pickle.dumps(canonical.load_embeddings)) is canonical.load_embeddings  # noqa: S301 - its own


def test_fewer_images_than_clusters_can_be_loaded_but_are_refused_for_clustering(tmp_path: Path) -> None:
    source = write_pictures(tmp_path / "in", range(3))
    (source / "broken.jpg").write_bytes(b"no image")
    context = run_stages(settings(source, tmp_path / "store", clusters=4), encode.STAGE)
    assert len(canonical.usable(context)) == 3
    with pytest.raises(Refused, match="clusters = 4: only 3 of 4 images are usable"):
        canonical.check_enough(context)


def test_parts_cover_all_rows_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(canonical, "PART_ROWS", 8)
    context = encoded(tmp_path)
    rows = canonical.usable(context).rows
    found = canonical.parts(context, canonical.part_names(context))
    assert [(part.start, part.stop) for part in found] == [(0, 8), (8, 16), (16, 20)]
    assert [image for part in found for image in part.rows["image_id"].to_pylist()] == rows["image_id"].to_pylist()
    assert canonical.rows_of_parts(context, ["part-00000", "part-00002"]) == 12


@pytest.mark.parametrize(("labels", "separation"), [([0, 0, 2, 2], [1, None, 1, None]), ([0, 0, 0, 0], [None] * 4)])
def test_a_cluster_without_images_has_no_measures_and_is_no_neighbour(labels: list[int], separation: list[float | None]) -> None:
    X = np.array([[1, 0], [1, 0], [0, 1], [0, 1]], np.float16)
    assignments = pa.table({"cluster": pa.array(labels, pa.int32()), "agreement": pa.array([1, 1, 1, 1], pa.float32())})
    table = canonical.cluster_table(X, assignments, 4, np.array([1, 0, 1, 0], np.float32))
    assert table["separation"].to_pylist() == separation
    for name in ("cohesion", "agreement", "stability"):
        assert [value is None for value in table[name].to_pylist()] == [size == 0 for size in table["size"].to_pylist()]
