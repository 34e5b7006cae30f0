import csv
import math
from pathlib import Path
from typing import Any

import fsspec
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gsec_core.errors import Refused, Unreachable
from gsec_core.images.decode import content_hash
from gsec_core.results.export import write_csv
from gsec_core.sources.keyed import file_digest, read_keyed

SETTING = "--labels"


def parquet(path: Path, **columns: Any) -> str:
    pq.write_table(pa.table(columns), path)
    return str(path)


def read(file: str, column: str = "label") -> dict[Any, object]:
    return dict(read_keyed(file, column, setting=SETTING).values)


def test_values_are_looked_up_by_uri(tmp_path: Path) -> None:
    table = read_keyed(parquet(tmp_path / "x.parquet", uri=["a/1.jpg", "x.parquet#000000002"], label=[3, 4]), "label", setting=SETTING)
    assert [table.lookup(uri, b"") for uri in ("a/1.jpg", "x.parquet#000000002", "other")] == [3, 4, None]


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary(), pa.struct({"path": pa.string(), "bytes": pa.binary()})])
def test_values_are_looked_up_by_the_images_bytes(tmp_path: Path, kind: pa.DataType) -> None:
    images: list[Any] = [b"one", None, b"two"]
    if pa.types.is_struct(kind):
        images = [{"path": "p", "bytes": b"one"}, None, {"path": "p", "bytes": b"two"}]
    table = read_keyed(parquet(tmp_path / "x.parquet", image=pa.array(images, kind), label=["a", "b", "c"]), "label", setting=SETTING)
    assert [table.lookup("any", content_hash(data)) for data in (b"one", b"two", b"three")] == ["a", "c", None]
    assert len(table.values) == 2


def test_with_both_columns_the_uri_is_preferred_to_the_image(tmp_path: Path) -> None:
    assert read(parquet(tmp_path / "x.parquet", image=[b"one"], uri=["a"], label=[1])) == {"a": 1}


def test_rows_without_a_value_or_a_key_are_left_out(tmp_path: Path) -> None:
    assert read(parquet(tmp_path / "x.parquet", uri=["a", "b", None], label=[1, None, 3])) == {"a": 1}


def test_nan_is_no_value(tmp_path: Path) -> None:
    assert read(parquet(tmp_path / "x.parquet", uri=["a", "b", "c", "c"], label=[1.0, math.nan, math.nan, 2.0])) == {"a": 1, "c": 2}
    (tmp_path / "x.csv").write_text("uri,label\na,1\nb,nan\n")
    assert read(str(tmp_path / "x.csv")) == {"a": 1}


def test_a_csv_file_with_quotes_line_breaks_and_uris_of_digits(tmp_path: Path) -> None:
    rows = [["uri", "n", "label"], ["007", "1", "a, b"], ["ü.jpg", "2", 'the "best"\none']]
    with (tmp_path / "X.CSV").open("w", encoding="utf-8-sig", newline="") as file:
        csv.writer(file).writerows(rows)
    assert read(str(tmp_path / "X.CSV")) == {"007": "a, b", "ü.jpg": 'the "best"\none'}
    assert read(str(tmp_path / "X.CSV"), "n") == {"007": 1, "ü.jpg": 2}


def test_numbers_with_leading_zeros_are_texts(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("uri,label,n\na,007,10\nb,7,0\nc,,-1\n")
    assert read(str(tmp_path / "x.csv")) == {"a": "007", "b": "7"}
    assert read(str(tmp_path / "x.csv"), "n") == {"a": 10, "b": 0, "c": -1}


def test_uris_of_an_exported_csv_file_are_read_without_the_apostrophe_before_a_formula(tmp_path: Path) -> None:
    uris = ["+49 123.jpg", "-1.jpg", "@home/a.jpg", "=x.jpg", "\u00a0=y.jpg", "\t.jpg", "line\n=.jpg", "'tis.jpg", "a.jpg"]
    with (tmp_path / "x.csv").open("wb") as file:
        write_csv(pl.DataFrame({"uri": uris, "label": list(range(len(uris)))}), file)
    assert read(str(tmp_path / "x.csv")) == {uri: number for number, uri in enumerate(uris)}


def test_a_csv_file_in_another_encoding_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_bytes("uri,label\na.jpg,café\nb.jpg,dog\n".encode("cp1252"))
    with pytest.raises(Refused, match=r'^--labels: the column "label" of .*x\.csv is not UTF-8: save the file in this encoding\.$'):
        read(str(tmp_path / "x.csv"))


def test_an_empty_cell_is_no_value_but_the_word_null_is(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text('uri,label,n\na,,1\nb,"",\nc,null,3\n,dog,4\n')
    assert read(str(tmp_path / "x.csv")) == {"c": "null"}
    assert read(str(tmp_path / "x.csv"), "n") == {"a": 1, "c": 3}


def test_repeated_equal_values_of_an_image_are_accepted_and_different_ones_refused(tmp_path: Path) -> None:
    assert read(parquet(tmp_path / "x.parquet", uri=["a", "a"], label=[1, 1])) == {"a": 1}
    with pytest.raises(Refused, match=r'--labels: row 3 of .*x\.parquet has 2 in "label", an earlier row has 1 for the same uri a\. Keep one'):
        read(parquet(tmp_path / "x.parquet", uri=["a", "b", "a"], label=[1, 1, 2]))
    with pytest.raises(Refused, match=r"row 2 .* for the same image\."):
        read(parquet(tmp_path / "x.parquet", image=[b"x", b"x"], label=["cat", "dog"]))


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"uri": ["a"], "class": [1]}, r'x\.parquet has no column "label"; it has uri, class\.'),
        ({"label": [1]}, r"name no images: it needs a column `uri`, .* or `image`"),
        ({"label": [1], "image": ["a path"]}, r"name no images"),
        ({"label": [1], "image": [{"path": "a"}]}, r"name no images"),
    ],
)
def test_missing_or_unusable_columns_are_refused(tmp_path: Path, columns: dict[str, Any], words: str) -> None:
    with pytest.raises(Refused, match=rf"^--labels: .*{words}"):
        read(parquet(tmp_path / "x.parquet", **columns))


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("x.parquet", None, "there is no file"),
        ("x.csv", None, "there is no file"),
        ("x.parquet", b"no Parquet", "damaged"),
        ("x.csv", b"uri,label\na,b,c\n", "damaged"),
        ("x.csv", b"", "damaged"),
        ("x.txt", b"", r"is neither a \.parquet nor a \.csv"),
    ],
)
def test_missing_or_damaged_files_are_refused(tmp_path: Path, name: str, content: bytes | None, words: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(Refused, match=rf"^--labels: .*{words}"):
        read(str(tmp_path / name))


def test_a_file_damaged_in_its_middle_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    parquet(path, uri=[f"{n}" for n in range(1000)], label=[f"{n}" for n in range(1000)])
    data = bytearray(path.read_bytes())
    data[4:2000] = bytes(1996)
    path.write_bytes(data)
    with pytest.raises(Refused, match=r"^--labels: .*x\.parquet is damaged"):
        read(str(path))


def test_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.parquet").mkdir()
    with pytest.raises(Refused, match="give one file"):
        read(str(tmp_path / "x.parquet"))


@pytest.mark.parametrize(
    "url", ["s3://key:secret@bucket/x.csv", "s3://bucket/x.csv?X-Amz-Signature=secret", "http://host/secret.csv", "zip::s3://bucket/secret.csv", ""]
)
def test_an_unsupported_address_is_refused_and_not_printed(url: str) -> None:
    for use in (read, lambda file: file_digest(file, setting=SETTING)):
        with pytest.raises(Refused, match=r"^--labels: give a local file") as refused:
            use(url)
        assert "secret" not in str(refused.value)


def test_a_table_on_s3_is_read_and_digested(bucket: str) -> None:
    with fsspec.open(f"{bucket}/x.csv", "wb") as file:
        file.write(b"uri,label\na,1\n")
    assert read(f"{bucket}/x.csv") == {"a": 1}
    before = file_digest(f"{bucket}/x.csv", setting=SETTING)
    with fsspec.open(f"{bucket}/x.csv", "wb") as file:
        file.write(b"uri,label\na,2\n")
    assert file_digest(f"{bucket}/x.csv", setting=SETTING) != before
    with pytest.raises(Refused, match=r"--labels: there is no file .*/y\.csv"):
        read(f"{bucket}/y.csv")


def test_a_store_that_does_not_answer_is_unreachable(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import s3fs

    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setattr(s3fs.S3FileSystem, "retries", 1)
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(Unreachable, match=r"--labels: s3://.* does not answer"):
        read(f"{bucket}/x.csv")
    s3fs.S3FileSystem.clear_instance_cache()


def test_the_digest_depends_only_on_the_content(tmp_path: Path) -> None:
    for name, content in (("a.csv", b"1"), ("b.csv", b"1"), ("c.csv", b"2")):
        (tmp_path / name).write_bytes(content)
    a, b, c = (file_digest(str(tmp_path / name), setting=SETTING) for name in ("a.csv", "b.csv", "c.csv"))
    assert (a == b, a == c) == (True, False)
    with pytest.raises(Refused, match="--labels: there is no file"):
        file_digest(str(tmp_path / "d.csv"), setting=SETTING)
