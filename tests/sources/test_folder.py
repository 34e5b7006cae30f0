import os
from pathlib import Path

import pytest
from PIL import Image

from gsec_core.errors import Refused, Unreachable
from gsec_core.images import FORMATS
from gsec_core.sources import ImageRef, MissingImage, RejectedImage, open_source
from gsec_core.sources.listing import IMAGE_EXTENSIONS

from ..disks import as_anyone
from .examples import Images, refs, uris, write_folder


def test_hidden_and_other_files_are_left_out(tmp_path: Path) -> None:
    write_folder(tmp_path, dict.fromkeys(["a.JPG", "b.webp", ".c.jpg", ".git/d.jpg", "notes.txt", "jpg", "e.jpg/f.avif"], b"x"))
    assert uris(open_source(str(tmp_path))) == ["a.JPG", "b.webp", "e.jpg/f.avif"]


def test_every_kind_of_file_that_is_decoded_is_listed() -> None:
    Image.init()
    assert {ending for ending, form in Image.registered_extensions().items() if form in FORMATS} <= set(IMAGE_EXTENSIONS)


def test_photos_in_formats_that_are_not_decoded_are_listed_to_be_rejected_and_not_lost(tmp_path: Path) -> None:
    write_folder(tmp_path, dict.fromkeys(["a.heic", "b.HEIF", "c.jxl"], b"x"))
    assert uris(open_source(str(tmp_path))) == ["a.heic", "b.HEIF", "c.jxl"]


def test_a_changed_file_has_a_new_version_and_is_read_as_it_is(tmp_path: Path) -> None:
    write_folder(tmp_path, {"a.jpg": b"old"})
    source = open_source(str(tmp_path))
    (listed,) = refs(source)
    (tmp_path / "a.jpg").write_bytes(b"new!")
    assert refs(source)[0].version != listed.version
    assert source.fetch(listed) == b"new!"


def test_names_of_any_bytes(tmp_path: Path) -> None:
    for name in (b"caf\xe9.jpg", b"100%#1.jpg", b"line\nbreak.jpg", "ü.jpg".encode()):
        (Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name))).write_bytes(name)
    source = open_source(str(tmp_path))
    assert uris(source) == ["100%25%231.jpg", "caf%E9.jpg", "line\nbreak.jpg", "ü.jpg"]
    assert [source.fetch(ref) for ref in refs(source)] == [b"100%#1.jpg", b"caf\xe9.jpg", b"line\nbreak.jpg", "ü.jpg".encode()]


def test_links_to_files_are_images_and_links_to_folders_are_not_entered(tmp_path: Path) -> None:
    write_folder(tmp_path, {"a/1.jpg": b"one"})
    (tmp_path / "2.jpg").symlink_to("a/1.jpg")
    (tmp_path / "a" / "circle").symlink_to(tmp_path)
    (tmp_path / "folder.jpg").symlink_to("a")
    source = open_source(str(tmp_path))
    assert uris(source) == ["2.jpg", "a/1.jpg"]
    assert source.fetch(refs(source)[0]) == b"one"


def test_the_root_may_be_a_link(tmp_path: Path, images: Images) -> None:
    write_folder(tmp_path / "real", images)
    (tmp_path / "link").symlink_to("real")
    source = open_source(str(tmp_path / "link"))
    assert [source.fetch(ref) for ref in refs(source)] == list(images.values())


def test_a_link_out_of_the_folder_is_rejected(tmp_path: Path) -> None:
    write_folder(tmp_path, {"secret.jpg": b"s", "secrets/1.jpg": b"s", "secret/a.jpg": b"a"})
    source = open_source(str(tmp_path / "secret"))
    (tmp_path / "secret" / "b.jpg").symlink_to("../secret.jpg")
    (tmp_path / "secret" / "c").symlink_to("../secrets")
    with pytest.raises(RejectedImage, match="leaves the source folder"):
        source.fetch(refs(source)[1])
    with pytest.raises(RejectedImage, match="leaves the source folder"):
        source.fetch(ImageRef("c/1.jpg", 1, ""))


def test_links_that_lead_nowhere(tmp_path: Path) -> None:
    (tmp_path / "circle.jpg").symlink_to("circle.jpg")
    (tmp_path / "dangling.jpg").symlink_to("gone.jpg")
    source = open_source(str(tmp_path))
    circle, dangling = refs(source)
    with pytest.raises(RejectedImage, match="circle"):
        source.fetch(circle)
    with pytest.raises(MissingImage, match="gone"):
        source.fetch(dangling)


def test_a_pipe_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.jpg")
    source = open_source(str(tmp_path))
    with pytest.raises(RejectedImage, match="not a regular file"):
        source.fetch(refs(source)[0])


def test_a_file_that_may_not_be_read_is_missing(tmp_path: Path) -> None:
    write_folder(tmp_path, {"a.jpg": b"x"})
    source = open_source(str(tmp_path))
    (ref,) = refs(source)
    (tmp_path / "a.jpg").chmod(0)
    with pytest.raises(MissingImage, match="permission denied"):
        as_anyone(lambda: source.fetch(ref))


def test_a_folder_that_may_not_be_read_is_refused_and_what_is_in_it_not_lost(tmp_path: Path) -> None:
    write_folder(tmp_path, {"a.jpg": b"x", "inner/b.jpg": b"x"})
    (tmp_path / "inner").chmod(0)
    with pytest.raises(Refused, match=r"may not be read \(.*/inner'\): allow it for this user"):
        as_anyone(open_source(str(tmp_path)).list)


def test_other_failures_are_left_to_a_retry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_folder(tmp_path, {"a.jpg": b"x"})
    source = open_source(str(tmp_path))
    (ref,) = refs(source)

    def fail(*args: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("builtins.open", fail)
    with pytest.raises(OSError, match="Input/output error"):
        source.fetch(ref)


def test_a_folder_without_images_is_refused_and_an_emptied_one_does_not_answer(tmp_path: Path) -> None:
    source = open_source(str(tmp_path))
    with pytest.raises(Refused, match="holds no image files"):
        source.list()
    with pytest.raises(Unreachable, match="is its disk mounted"):
        source.check()
