import re
import sys
from pathlib import Path

import pytest

from gsec_core.errors import Refused
from gsec_core.sources import normalise_url, open_source, source_name


@pytest.mark.parametrize(
    ("given", "normal"),
    [
        ("/data/images/", "/data/images"),
        ("file:///data/./images", "/data/images"),
        ("s3://bucket/folder/", "s3://bucket/folder"),
        ("s3://KEY:se/c?ret@bucket/me@home.parquet", "s3://bucket/me@home.parquet"),
        ("s3://bucket/x.tar?X-Amz-Signature=a@b", "s3://bucket/x.tar"),
        ("GCS://bucket/x/*.tar", "gs://bucket/x/*.tar"),
        ("az://container@account.dfs.core.windows.net/x", "abfs://container@account.dfs.core.windows.net/x"),
    ],
)
def test_an_address_is_normalised_to_one_spelling_without_credentials(given: str, normal: str) -> None:
    assert normalise_url(given) == normal
    assert normalise_url(normal) == normal


def test_relative_paths_become_absolute_and_links_are_not_resolved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    monkeypatch.chdir(tmp_path)
    assert normalise_url("link") == str(tmp_path / "link")


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("", "has no name"),
        ("https://user:secret@host/images", "https://, which is not supported"),
        ("hf://datasets/x", "hf://, which is not supported"),
        ("simplecache::s3://bucket/x", "chained"),
        ("s3://", "names no bucket"),
        ("images.tar.gz", "compressed tar"),
        ("images.TGZ", "compressed tar"),
    ],
)
def test_unsupported_addresses_are_refused_without_their_credentials(url: str, sentence: str) -> None:
    with pytest.raises(Refused, match=sentence) as refusal:
        open_source(url)
    assert "secret" not in str(refusal.value)


def test_a_protocol_whose_package_is_not_installed_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "adlfs", None)
    with pytest.raises(Refused, match="adlfs"):
        open_source("abfs://container/images")


def test_names_of_corpora_are_readable_and_distinct_for_distinct_sources() -> None:
    assert re.fullmatch(r"my-flowers-[0-9a-f]{8}", source_name("/data/My Flowers/"))
    assert source_name("/data/flowers") != source_name("/other/flowers")
    assert source_name("s3://KEY:secret@bucket/flowers") == source_name("s3://bucket/flowers/")


@pytest.mark.parametrize("url", ["/", "/data/..*", "/data/日本", "/data/" + "x" * 300, "/data/\udce9"])
def test_names_of_corpora_have_only_safe_characters(url: str) -> None:
    assert re.fullmatch(r"[a-z0-9][a-z0-9._-]{0,63}-[0-9a-f]{8}", source_name(url))
