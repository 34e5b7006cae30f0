import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gsec_core.errors import Refused
from gsec_core.sources import ImageRef, RejectedImage, open_source, parquet

from .examples import Images, refs, write_parquet

STAMPS = Path(__file__).parents[3] / "shared" / "data" / "stamps.parquet"


KINDS = [pa.binary(), pa.large_binary(), pa.binary_view(), pa.dictionary(pa.int32(), pa.binary()), pa.dictionary(pa.int8(), pa.large_binary())]


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_images_in_a_plain_binary_column_are_read(tmp_path: Path, images: Images, kind: pa.DataType) -> None:
    pq.write_table(pa.table({"jpg": pa.array(images.values(), kind)}), tmp_path / "x.parquet", row_group_size=2)
    source = open_source(str(tmp_path / "x.parquet"), image_column="jpg")
    assert [source.fetch(ref) for ref in refs(source)] == list(images.values())


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_images_in_a_struct_with_bytes_of_any_layout_are_read(tmp_path: Path, images: Images, kind: pa.DataType) -> None:
    rows = pa.StructArray.from_arrays([pa.array(images.values(), kind), pa.array(images, pa.string())], ["bytes", "path"])
    pq.write_table(pa.table({"image": rows}), tmp_path / "x.parquet")
    source = open_source(str(tmp_path / "x.parquet"))
    assert [source.fetch(ref) for ref in refs(source)] == list(images.values())


def test_a_column_with_the_name_of_the_bytes_in_the_struct_is_not_read(tmp_path: Path, images: Images) -> None:
    rows = [{"bytes": data, "path": name} for name, data in images.items()]
    pq.write_table(pa.table({"image.bytes": [b"other"] * len(rows), "image": rows}), tmp_path / "x.parquet")
    source = open_source(str(tmp_path / "x.parquet"))
    assert [source.fetch(ref) for ref in refs(source)] == list(images.values())


def test_a_large_row_group_is_read_in_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Arrow refuses to read more than 2 GiB of a struct's bytes at once."""
    images = [bytes([grey]) * 1000 for grey in range(10)]
    pq.write_table(pa.table({"image": [{"bytes": image} for image in images]}), tmp_path / "x.parquet")
    source = open_source(str(tmp_path / "x.parquet"))
    monkeypatch.setattr(parquet, "_BATCH_BYTES", 2500)
    sizes = []
    iter_batches = pq.ParquetFile.iter_batches
    monkeypatch.setattr(pq.ParquetFile, "iter_batches", lambda file, size, **which: sizes.append(size) or iter_batches(file, size, **which))
    assert [source.fetch(ref) for ref in refs(source)] == images
    assert sizes == [2]


def test_images_in_a_column_of_fixed_size_are_read(tmp_path: Path) -> None:
    pq.write_table(pa.table({"image": pa.array([b"ab", b"cd"], pa.binary(2))}), tmp_path / "x.parquet")
    source = open_source(str(tmp_path / "x.parquet"))
    assert [source.fetch(ref) for ref in refs(source)] == [b"ab", b"cd"]


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_arrays([pa.array([b"a"]), pa.array([b"b"])], ["image", "image"]), tmp_path / "x.parquet")
    with pytest.raises(Refused, match="several columns of that name"):
        open_source(str(tmp_path / "x.parquet")).list()


def test_a_footer_that_is_torn_or_encrypted_is_refused(tmp_path: Path, images: Images) -> None:
    path = Path(write_parquet(tmp_path / "x.parquet", images))
    whole = path.read_bytes()
    for content in (whole[:-4], whole[:-20], whole[:-8] + b"\xff\xff\xff\x7fPAR1", whole[:-4] + b"PARE"):
        path.write_bytes(content)
        with pytest.raises(Refused, match=r"x\.parquet is not a Parquet file that can be read"):
            open_source(str(path)).list()


def test_a_missing_column_is_refused_by_the_name_of_its_setting(tmp_path: Path, images: Images) -> None:
    source = open_source(write_parquet(tmp_path / "x.parquet", images), image_column="img")
    with pytest.raises(Refused, match=r'ingest\.image_column = "img": .* it has image, label'):
        source.list()


def test_a_column_of_another_type_is_refused(tmp_path: Path, images: Images) -> None:
    source = open_source(write_parquet(tmp_path / "x.parquet", images), image_column="label")
    with pytest.raises(Refused, match=r'ingest\.image_column = "label": the column is int64'):
        source.list()


def test_a_row_without_bytes_is_rejected_and_its_path_not_followed(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"x")
    rows = [{"bytes": None, "path": str(tmp_path / "a.jpg")}, None, {"bytes": b"good", "path": None}]
    pq.write_table(pa.table({"image": rows}), tmp_path / "x.parquet")
    source = open_source(str(tmp_path / "x.parquet"))
    null_bytes, null_row, good = refs(source)
    for ref in (null_bytes, null_row):
        with pytest.raises(RejectedImage, match="no image bytes in the row"):
            source.fetch(ref)
    assert source.fetch(good) == b"good"


@pytest.mark.parametrize("member", ["000000005", "x", "", "-1", "9" * 30])
def test_a_uri_that_names_no_row_is_rejected(tmp_path: Path, images: Images, member: str) -> None:
    source = open_source(write_parquet(tmp_path / "x.parquet", images))
    with pytest.raises(RejectedImage, match="names no row"):
        source.fetch(ImageRef(f"x.parquet#{member}", -1, refs(source)[0].version))


@pytest.mark.parametrize("content", [b"", b"no Parquet at all", b"PAR1 torn"])
def test_a_file_that_is_not_parquet_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.parquet").write_bytes(content)
    with pytest.raises(Refused, match=r"x\.parquet is not a Parquet file that can be read"):
        open_source(str(tmp_path / "x.parquet")).list()


def test_a_damaged_row_group_is_rejected_and_the_others_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.parquet"
    contents = [bytes([row]) * 5000 + os.urandom(5000) for row in range(4)]
    write_parquet(path, {str(row): content for row, content in enumerate(contents)}, row_group_size=2)
    with path.open("r+b") as file:
        file.seek(10)
        file.write(b"\xff" * 3000)
    source = open_source(str(path))
    first, second, third, _ = refs(source)
    reads = count_reads(monkeypatch)
    for row in (first, second):
        with pytest.raises(RejectedImage, match="damaged"):
            source.fetch(row)
    assert source.fetch(third) == contents[2]
    assert reads == [0, 1], "a damaged group may be large: it must not be read again for each of its rows"


def count_reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of the row groups that are read from now on, in a list that grows."""
    reads: list[int] = []
    iter_batches = pq.ParquetFile.iter_batches

    def counted(self: pq.ParquetFile, size: int, *, row_groups: list[int], **arguments: object) -> Iterator[pa.RecordBatch]:
        reads.extend(row_groups)
        return iter_batches(self, size, row_groups=row_groups, **arguments)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", counted)
    return reads


def test_threads_that_read_rows_of_one_group_read_it_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    contents = {str(row): b"%d" % row for row in range(200)}
    source = open_source(write_parquet(tmp_path / "x.parquet", contents, row_group_size=50))
    listed = refs(source)
    reads = count_reads(monkeypatch)
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(source.fetch, listed[:100])) == list(contents.values())[:100]
    assert sorted(reads) == [0, 1]


@pytest.mark.skipif(not STAMPS.exists(), reason=f"the shared images are not there: {STAMPS}")
def test_real_images_of_a_parquet_file_are_listed_and_read() -> None:
    source = open_source(str(STAMPS))
    listed = refs(source)
    assert len(listed) == 317
    assert listed[-1].uri == "stamps.parquet#000000316"
    assert source.fetch(listed[-1]) == pq.read_table(STAMPS)["image"][316]["bytes"].as_py()
