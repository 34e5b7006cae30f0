import gzip
import tarfile
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from gsec_core.errors import Refused
from gsec_core.sources import RejectedImage, open_source

from .examples import Images, add, refs, uris, write_tar


@pytest.mark.parametrize("tar_format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_with_long_and_non_ascii_names_are_read(tmp_path: Path, tar_format: int) -> None:
    names = ["d/" * 100 + "long.jpg", "ü" * 80 + ".jpg", "100%#1.jpg"]
    with tarfile.open(tmp_path / "x.tar", "w", format=tar_format) as tar:
        for name in names:
            add(tar, name, name.encode())
    source = open_source(str(tmp_path / "x.tar"))
    assert {source.fetch(ref).decode() for ref in refs(source)} == set(names)


def test_only_visible_images_are_listed(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for name in ("./1.jpg", "1.json", "1.cls", "./._1.jpg", ".cache/2.jpg"):
            add(tar, name, b"x")
        add(tar, "folder.jpg", type=tarfile.DIRTYPE)
    assert uris(open_source(str(tmp_path / "x.tar"))) == ["x.tar#1.jpg"]


def test_of_members_with_equal_names_the_last_is_read(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        add(tar, "a.jpg", b"old")
        add(tar, "./a.jpg", b"newer")
    source = open_source(str(tmp_path / "x.tar"))
    (ref,) = refs(source)
    assert source.fetch(ref) == b"newer"


def test_listing_a_tar_keeps_a_few_hundred_bytes_of_a_member(tmp_path: Path) -> None:
    source = open_source(write_tar(tmp_path / "x.tar", {f"{number:06d}.jpg": b"x" for number in range(2000)}))
    source.list()  # imports what it needs
    tracemalloc.start()
    source.list()
    assert tracemalloc.get_traced_memory()[1] / 2000 < 1000
    tracemalloc.stop()


@pytest.mark.parametrize("between", [0, 512, 10_240, 3 * 2**20])
def test_concatenated_tars_give_the_images_of_all(tmp_path: Path, between: int) -> None:
    parts = [{f"{part}/{number}.jpg": f"{part} {number}".encode() for number in range(5)} for part in range(3)]
    whole = [Path(write_tar(tmp_path / f"{number}.part", part)).read_bytes() for number, part in enumerate(parts)]
    (tmp_path / "x.tar").write_bytes(bytes(between).join(whole))
    source = open_source(str(tmp_path / "x.tar"))
    assert {ref.uri.removeprefix("x.tar#"): source.fetch(ref) for ref in refs(source)} == {**parts[0], **parts[1], **parts[2]}


def test_concatenated_tars_with_equal_names_are_refused(tmp_path: Path) -> None:
    one = Path(write_tar(tmp_path / "1.part", {"a.jpg": b"1"})).read_bytes()
    two = Path(write_tar(tmp_path / "2.part", {"a.jpg": b"2"})).read_bytes()
    (tmp_path / "x.tar").write_bytes(one + two)
    with pytest.raises(Refused, match=r"two of them contain a\.jpg"):
        open_source(str(tmp_path / "x.tar")).list()


@pytest.mark.parametrize("after", [b"\n", b"garbage" * 100, b"x" * 512])
def test_a_tar_followed_by_other_bytes_is_refused(tmp_path: Path, after: bytes) -> None:
    path = Path(write_tar(tmp_path / "x.tar", {"a.jpg": b"1"}))
    path.write_bytes(path.read_bytes() + after)
    with pytest.raises(Refused, match="not a whole, uncompressed tar"):
        open_source(str(path)).list()


def test_a_truncated_second_tar_is_refused(tmp_path: Path) -> None:
    one = Path(write_tar(tmp_path / "1.part", {"a.jpg": b"1"})).read_bytes()
    two = Path(write_tar(tmp_path / "2.part", {"b.jpg": b"2" * 2000})).read_bytes()
    for length in (100, 600, 1500):
        (tmp_path / "x.tar").write_bytes(one + two[:length])
        with pytest.raises(Refused, match="not a whole, uncompressed tar"):
            open_source(str(tmp_path / "x.tar")).list()


def test_an_empty_member_is_an_empty_image(tmp_path: Path) -> None:
    source = open_source(write_tar(tmp_path / "x.tar", {"a.jpg": b""}))
    assert source.fetch(refs(source)[0]) == b""


@pytest.mark.parametrize(
    ("name", "fields", "reason"),
    [
        ("/etc/a.jpg", {}, "absolute"),
        ("../a.jpg", {}, "leaves its folder"),
        ("b/../../a.jpg", {}, "leaves its folder"),
        ("a.jpg", {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"}, "a link in the tar"),
        ("a.jpg", {"type": tarfile.LNKTYPE, "linkname": "b.jpg"}, "a link in the tar"),
        ("a.jpg", {"type": tarfile.CHRTYPE}, "a device in the tar"),
        ("a.jpg", {"type": tarfile.FIFOTYPE}, "a device in the tar"),
    ],
)
def test_members_that_lead_outside_or_hold_no_bytes_are_listed_and_rejected(tmp_path: Path, name: str, fields: dict[str, Any], reason: str) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        add(tar, name, **fields)
        add(tar, "z.jpg", b"good")
    source = open_source(str(tmp_path / "x.tar"))
    bad, good = refs(source)
    assert bad.uri == f"x.tar#{name}"
    with pytest.raises(RejectedImage, match=reason):
        source.fetch(bad)
    assert source.fetch(good) == b"good"


def test_truncated_or_damaged_tars_are_refused(tmp_path: Path, images: Images) -> None:
    path = tmp_path / "x.tar"
    whole = Path(write_tar(path, images)).read_bytes()
    in_data, in_header, between_members = 512 + 20, 1024 + 100, 1024  # each image fills one block
    foreign_header = whole[:1024] + b"\xff" * 512 + whole[1536:]
    for torn in (b"", b"no tar at all" * 100, whole[:in_data], whole[:in_header], whole[:between_members], foreign_header, gzip.compress(whole)):
        path.write_bytes(torn)
        with pytest.raises(Refused, match=r"x\.tar is not a whole, uncompressed tar"):
            open_source(str(path)).list()


def test_a_tar_without_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="holds no images"):
        open_source(write_tar(tmp_path / "x.tar", {"a.txt": b"x"})).list()
