"""What holds for every kind of source, on a local disk and on object stores."""

import os
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from gsec_core.errors import Refused, Unreachable
from gsec_core.sources import LISTING, ImageRef, MissingImage, RejectedImage, open_source

from .examples import Images, png, refs, uris, write_folder, write_parquet, write_tar


@pytest.fixture
def local(tmp_path: Path, images: Images) -> str:
    """A place with the images in a folder, in a Parquet file and in a tar."""
    write_folder(tmp_path / "folder", images)
    write_parquet(tmp_path / "x.parquet", images)
    write_tar(tmp_path / "x.tar", images)
    return str(tmp_path)


@pytest.fixture
def memory(local: str) -> Iterator[str]:
    fs = fsspec.filesystem("memory")
    fs.put(local + "/", "/bucket/", recursive=True)
    yield "memory://bucket"
    fs.store.clear()
    fs.pseudo_dirs[:] = [""]


@pytest.fixture
def s3(local: str, bucket: str) -> str:
    fsspec.filesystem("s3").put(local + "/", f"{bucket}/", recursive=True)
    return bucket


@pytest.fixture(params=["local", "memory", "s3"])
def place(request: pytest.FixtureRequest) -> str:
    return str(request.getfixturevalue(request.param))


def test_all_kinds_of_source_give_the_same_bytes(place: str, images: Images) -> None:
    expected = list(images.values())
    for address in ("folder", "x.parquet", "*.parquet", "x.tar", "*.tar"):
        source = open_source(f"{place}/{address}")
        listing = source.list()
        assert listing.schema == LISTING
        assert uris(source) == sorted(uris(source))
        source.check()
        assert [source.fetch(ref) for ref in refs(source)] == expected, address


def test_uris_are_relative_to_the_source(place: str, images: Images) -> None:
    assert uris(open_source(f"{place}/folder")) == list(images)
    assert uris(open_source(f"{place}/x.tar")) == [f"x.tar#{name}" for name in images]
    assert uris(open_source(f"{place}/x.parquet")) == [f"x.parquet#{row:09}" for row in range(5)]


def test_a_listing_of_an_unchanged_source_is_equal(place: str) -> None:
    for address in ("folder", "x.parquet", "x.tar"):
        assert open_source(f"{place}/{address}").list() == open_source(f"{place}/{address}").list()


def test_sizes_are_listed_where_they_are_known(place: str, images: Images) -> None:
    sizes = [len(content) for content in images.values()]
    assert [ref.size_bytes for ref in refs(open_source(f"{place}/folder"))] == sizes
    assert [ref.size_bytes for ref in refs(open_source(f"{place}/x.tar"))] == sizes
    assert [ref.size_bytes for ref in refs(open_source(f"{place}/x.parquet"))] == [-1] * 5


@pytest.mark.parametrize("address", ["nowhere", "nowhere.tar", "nowhere.parquet", "no*.tar", "nowhere/*.parquet"])
def test_listing_a_missing_source_is_refused(place: str, address: str) -> None:
    source = open_source(f"{place}/{address}")
    with pytest.raises(Refused, match=r"is not there|matches no file"):
        source.list()


def test_the_check_of_a_missing_source_is_unreachable(place: str) -> None:
    for address in ("nowhere", "nowhere.tar", "nowhere/*.parquet", "no*.tar"):
        with pytest.raises(Unreachable, match="does not answer"):
            open_source(f"{place}/{address}").check()


def test_a_folder_with_only_tar_or_parquet_files_is_refused_with_a_hint(place: str) -> None:
    (fs, path) = fsspec.url_to_fs(f"{place}/folder")
    fs.rm(path, recursive=True)
    with pytest.raises(Refused, match=r"holds no image files but \.(parquet|tar) files: pass '.*/\*\.(parquet|tar)'"):
        open_source(place).list()


@pytest.mark.parametrize("folders", [[""], ["k=[1]*"], ["", "train", "test/a?b"]])
@pytest.mark.parametrize("ending", [".parquet", ".PARQUET"])
def test_the_hint_of_a_folder_without_images_finds_all_its_files(tmp_path: Path, images: Images, folders: list[str], ending: str) -> None:
    root = tmp_path / "photos [2024]"
    for number, folder in enumerate(folders):
        (root / folder).mkdir(parents=True, exist_ok=True)
        write_parquet(root / folder / f"{number}{ending}", images)
    with pytest.raises(Refused, match=r"pass '.*'\.$") as refused:
        open_source(str(root)).list()
    hint = str(refused.value).split("pass '")[1].removesuffix("'.")
    assert open_source(hint).list().num_rows == len(images) * len(folders)


def test_an_image_removed_after_the_listing_is_missing(place: str) -> None:
    for address in ("folder", "x.tar", "x.parquet"):
        source = open_source(f"{place}/{address}")
        first = refs(source)[0]
        fs, path = fsspec.url_to_fs(f"{place}/{address}")
        fs.rm(path, recursive=True)
        with pytest.raises(MissingImage, match="gone"):
            source.fetch(first)


def test_images_of_a_tar_or_parquet_file_that_changed_are_missing(place: str, images: Images) -> None:
    for name, address in (("x.tar", "x.tar"), ("x.parquet", "*.parquet")):
        source = open_source(f"{place}/{address}")
        first = refs(source)[0]
        fs, path = fsspec.url_to_fs(f"{place}/{name}")
        fs.pipe(path, fs.cat(path)[:600])  # the file becomes shorter, so that the read itself fails
        with pytest.raises(MissingImage, match="changed after it was listed"):
            source.fetch(first)


@pytest.mark.parametrize(
    "name", ["std::vector.png", "https://example.org/a.png", "s3://other/b.png", "file:///etc/c.png", "simplecache::s3:d.png", "zip::e.png"]
)
def test_file_names_that_look_like_addresses_are_read_as_names(tmp_path: Path, name: str) -> None:
    folder = write_folder(tmp_path / "a::b", {name: png(1)})
    assert [open_source(folder).fetch(ref) for ref in refs(open_source(folder))] == [png(1)]
    tar = open_source(write_tar(tmp_path / "a::b" / "x::y.tar", {name: png(2)}))
    assert [(ref.uri, tar.fetch(ref)) for ref in refs(tar)] == [(f"x::y.tar#{name}", png(2))]


@pytest.mark.parametrize("uri", ["s3://other/b.png", "x::b.png", "file:///etc/passwd"])
def test_a_uri_that_looks_like_an_address_is_looked_up_in_the_source(place: str, uri: str) -> None:
    with pytest.raises(MissingImage):
        open_source(f"{place}/folder").fetch(ImageRef(uri, 1, "1"))


@pytest.mark.parametrize("uri", ["../b.png", "/etc/b.png", "../x.tar#b.png", "../x.parquet#000000000"])
def test_uris_that_lead_outside_the_source_are_rejected(place: str, uri: str) -> None:
    for address in ("folder", "x.parquet", "x.tar"):
        is_key = address == "folder" and "://" in place and uri.startswith("/")  # looked up below the prefix, where it is not
        with pytest.raises(MissingImage if is_key else RejectedImage):
            open_source(f"{place}/{address}").fetch(ImageRef(uri, 1, "1@0+1"))


def test_keys_with_two_slashes_in_a_row_are_read(bucket: str) -> None:
    contents = {"/a.png": png(1), "b.png": png(2), "c//d.png": png(3)}
    for name, content in contents.items():
        fsspec.filesystem("s3").pipe_file(f"{bucket}/folder/{name}", content)
    source = open_source(f"{bucket}/folder")
    assert {ref.uri: source.fetch(ref) for ref in refs(source)} == contents


def test_a_file_of_no_known_kind_is_refused(place: str) -> None:
    with pytest.raises(Refused, match="unknown kind"):
        open_source(f"{place}/folder/b.png").list()


def test_with_globs_uris_are_relative_to_the_fixed_part_of_the_path(tmp_path: Path, images: Images) -> None:
    for name in ("one/train #1.tar", "two/train.tar", "two/.hidden.tar"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write_tar(tmp_path / name, {"b.png": images["b.png"]})
    source = open_source(f"{tmp_path}/*/*.tar")
    assert uris(source) == ["one/train %231.tar#b.png", "two/train.tar#b.png"]
    assert {source.fetch(ref) for ref in refs(source)} == {images["b.png"]}


def test_a_tar_may_be_a_link_and_its_name_may_look_like_a_glob(tmp_path: Path, images: Images) -> None:
    write_tar(tmp_path / "blob", images)
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "x[1].tar").symlink_to("../blob")
    for address in ("links/x[1].tar", "links/*.tar"):
        source = open_source(f"{tmp_path}/{address}")
        assert [source.fetch(ref) for ref in refs(source)] == list(images.values())


def test_a_named_pipe_is_refused_as_a_tar(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.tar")
    (tmp_path / "link.tar").symlink_to("x.tar")
    for address in ("x.tar", "*.tar"):
        with pytest.raises(Refused, match=r"not a file|matches no file"):
            open_source(f"{tmp_path}/{address}").list()


def test_a_folder_with_the_name_of_a_container_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.parquet").mkdir()
    with pytest.raises(Refused, match=r"pass files, as in '.*x\.parquet/\*\*/\*\.parquet'"):
        open_source(str(tmp_path / "x.parquet")).list()


def test_a_source_that_does_not_answer_is_refused_at_the_listing_and_unreachable_later(memory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class DriverError(Exception):
        """Like errors of botocore and aiohttp, this is not an OSError."""

    def fail(*args: object, **kwargs: object) -> None:
        raise DriverError("connection refused")

    source = open_source(f"{memory}/folder")
    first = refs(source)[0]
    for method in ("find", "info", "cat_file"):
        monkeypatch.setattr("fsspec.implementations.memory.MemoryFileSystem." + method, fail)
    with pytest.raises(Refused, match=r"connection refused\. Check the network and the credentials"):
        source.list()
    with pytest.raises(Unreachable, match="connection refused"):
        source.check()
    with pytest.raises(OSError, match="connection refused"):
        source.fetch(first)
