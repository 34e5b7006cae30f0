import pytest
from hypothesis import given
from hypothesis import strategies as st

from gsec_core.sources import RejectedImage
from gsec_core.sources.uris import inside, to_path, to_uri


def test_only_characters_that_must_be_escaped_are_escaped() -> None:
    assert to_uri("a b/ü\n'\".jpg") == "a b/ü\n'\".jpg"
    assert to_uri("100%#1.jpg") == "100%25%231.jpg"
    assert to_uri(b"caf\xe9.jpg".decode("utf-8", "surrogateescape")) == "caf%E9.jpg"


@given(st.binary())
def test_any_file_name_survives_the_conversion_to_a_uri_and_back(name: bytes) -> None:
    path = name.decode("utf-8", "surrogateescape")
    uri = to_uri(path)
    uri.encode("utf-8")  # Arrow can hold it
    assert "#" not in uri
    assert to_path(uri) == path


@pytest.mark.parametrize(
    ("uri", "reason"),
    [
        ("../b.jpg", "leaves its folder"),
        ("a/../../b.jpg", "leaves its folder"),
        ("a/%2E%2E/b.jpg", "leaves its folder"),
        ("/etc/b.jpg", "absolute"),
        ("https://example.org/../../b.jpg", "leaves its folder"),
    ],
)
def test_uris_that_lead_outside_are_rejected(uri: str, reason: str) -> None:
    with pytest.raises(RejectedImage, match=reason):
        inside(uri)


def test_dots_within_names_are_allowed() -> None:
    assert inside("a..b/..c.jpg") == "a..b/..c.jpg"
