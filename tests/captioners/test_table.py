from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gsec_core.captioners import Answer, Captioner, Subject, captioner_identity, load_captioner
from gsec_core.captioners.table import file_and_column
from gsec_core.config import DescribeConfig
from gsec_core.errors import Refused
from gsec_core.tables import DESCRIBED, FAILED, FREE

from .examples import GOOD, STAMPS, describe, png, subject


def table(path: Path, column: str | None = None, **columns: Any) -> Captioner:
    pq.write_table(pa.table(columns), path)
    return load_captioner(DescribeConfig(captioner=f"table:{path}" + (f":{column}" if column else "")), device="cpu", threads=1)


def test_a_table_gives_descriptions_by_uri(tmp_path: Path) -> None:
    texts = [GOOD, "A red\nbus.", None, " ", "x" * 600]
    captioner = table(tmp_path / "x.parquet", "words", uri=["good", "free", "null", "blank", "long"], words=texts)
    answers = {uri: describe(captioner, subject(uri=uri)) for uri in ("good", "free", "null", "blank", "long", "absent")}
    assert [answer.status for answer in answers.values()] == [DESCRIBED, FREE, FAILED, FAILED, FAILED, FAILED]
    assert (answers["good"].text, answers["good"].object) == (GOOD, "red bus")
    assert answers["free"] == Answer("A red bus.", None, (), FREE)
    assert answers["absent"].reason == answers["null"].reason == "the table has no description of this image"
    assert captioner.model == "table:words"
    captioner.check()


def test_a_table_gives_descriptions_by_content_hash_without_reading_the_image(tmp_path: Path) -> None:
    captioner = table(tmp_path / "x.parquet", image=[png("red"), png("blue")], text=["A red ground.", "A blue ground."])
    [red, blue] = [Subject("elsewhere", subject(png(colour)).content_hash, pytest.fail) for colour in ("red", "blue")]
    assert (describe(captioner, red).text, describe(captioner, blue).text) == ("A red ground.", "A blue ground.")


@pytest.mark.parametrize(
    ("reference", "file", "column"),
    [
        ("a.parquet", "a.parquet", "text"),
        ("/x/a.csv:words", "/x/a.csv", "words"),
        ("s3://bucket/a.parquet", "s3://bucket/a.parquet", "text"),
        ("s3://bucket/a.parquet:words", "s3://bucket/a.parquet", "words"),
        ("gs://bucket/a.CSV:my words: all/any", "gs://bucket/a.CSV", "my words: all/any"),
        ("odd:name/a.parquet:words", "odd:name/a.parquet", "words"),
    ],
)
def test_a_table_reference_is_split_into_file_and_column(reference: str, file: str, column: str) -> None:
    assert file_and_column(reference) == (file, column)


@pytest.mark.parametrize("reference", ["a.txt", "a.parquet:", "a:b", "s3://bucket/a"])
def test_an_invalid_table_reference_is_refused(reference: str) -> None:
    with pytest.raises(Refused, match=r"describe\.captioner: write `table:FILE:COLUMN`"):
        file_and_column(reference)


@pytest.mark.parametrize(("name", "words"), [("no.csv", "there is no file"), ("x.parquet:words", "no column"), ("x.parquet:label", "'label' holds int values")])
def test_a_wrong_file_or_column_is_refused_by_the_name_of_the_setting(tmp_path: Path, name: str, words: str) -> None:
    pq.write_table(pa.table({"uri": ["a"], "label": [1]}), tmp_path / "x.parquet")
    with pytest.raises(Refused, match=rf"^describe\.captioner: .*{words}"):
        load_captioner(DescribeConfig(captioner=f"table:{tmp_path}/{name}"), device="cpu", threads=1)


def test_the_identity_of_a_table_covers_its_content_and_column_but_not_its_path(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("uri,text\n1,x\n")
    (tmp_path / "b.csv").write_text("uri,text\n1,x\n")
    identities = [captioner_identity(DescribeConfig(captioner=f"table:{tmp_path}/{name}")) for name in ("a.csv", "b.csv:text", "a.csv:words")]
    assert identities[0] == identities[1] != identities[2]
    assert str(tmp_path) not in str(identities)
    (tmp_path / "b.csv").write_text("uri,text\n1,other\n")
    assert captioner_identity(DescribeConfig(captioner=f"table:{tmp_path}/b.csv")) != identities[0]


@pytest.mark.skipif(not STAMPS.exists(), reason=f"the shared images are not there: {STAMPS}")
def test_a_table_of_real_descriptions_can_be_used() -> None:
    captioner = load_captioner(DescribeConfig(captioner=f"table:{STAMPS}:description"), device="cpu", threads=1)
    for row in pq.read_table(STAMPS).to_pylist()[::20]:
        assert describe(captioner, subject(row["image"]["bytes"])) == Answer(" ".join(row["description"].split()), None, (), FREE)
