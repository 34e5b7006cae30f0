import os
from pathlib import Path

import pytest
from PIL import Image

from gsec_core.errors import Refused, Unreachable
from gsec_core.images.decode import FORMATS
from gsec_core.sources import ImageRef, MissingImage, RejectedImage, open_source
from gsec_core.sources.listing import IMAGE_EXTENSIONS

from ..disks import as_anyone
from .examples import Images, refs, uris, write_folder, write_tar


def test_hidden_files_and_files_without_an_image_ending_are_not_listed(tmp_path: Path) -> None:
    write_folder(tmp_path, dict.fromkeys(["a.JPG", "b.webp", ".c.jpg", ".git/d.jpg", "notes.txt", "jpg", "e.jpg/f.avif"], b"x"))
    assert uris(open_source(str(tmp_path))) == ["a.JPG", "b.webp", "e.jpg/f.avif"]


def test_every_ending_of_a_decodable_format_is_listed() -> None:
    Image.init()
    assert {ending for ending, form in Image.registered_extensions().items() if form in FORMATS} <= set(IMAGE_EXTENSIONS)


def test_photos_in_undecodable_formats_are_listed_so_that_they_are_reported_as_rejected(tmp_path: Path) -> None:
    write_folder(tmp_path, dict.fromkeys(["a.heic", "b.HEIF", "c.jxl"], b"x"))
    assert uris(open_source(str(tmp_path))) == ["a.heic", "b.HEIF", "c.jxl"]


def test_a_changed_file_has_a_new_version_and_its_current_bytes_are_read(tmp_path: Path) -> None:
    write_folder(tmp_path, {"a.jpg": b"old"})
    source = open_source(str(tmp_path))
    (listed,) = refs(source)
    (tmp_path / "a.jpg").write_bytes(b"new!")
    assert refs(source)[0].version != listed.version
    assert source.fetch(listed) == b"new!"


def test_file_names_of_any_bytes_become_uris(tmp_path: Path) -> None:
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


def test_links_to_folders_are_counted_and_followed_if_asked(tmp_path: Path) -> None:
    write_folder(tmp_path, {"in/a/1.jpg": b"one", "out/b/2.jpg": b"two", "out/3.jpg": b"three"})
    (tmp_path / "in" / "z").symlink_to("../out")
    (tmp_path / "in" / "y").symlink_to("a")  # its images are listed by their own path and not by the link
    (tmp_path / "out" / "up").symlink_to("../in")
    (tmp_path / "out" / "self").symlink_to(".")
    (tmp_path / "in" / "twice").symlink_to("../out/b")
    plain = open_source(str(tmp_path / "in"))
    assert uris(plain) == ["a/1.jpg"]
    assert plain.skipped == {"linked_folders": 3}
    following = open_source(str(tmp_path / "in"), follow_links=True)
    assert uris(following) == ["a/1.jpg", "twice/2.jpg", "z/3.jpg"]
    assert [following.fetch(ref) for ref in refs(following)] == [b"one", b"two", b"three"]
    assert not following.skipped


def test_a_folder_with_only_links_to_folders_is_refused_with_the_setting_that_follows_them(tmp_path: Path) -> None:
    write_folder(tmp_path, {"out/1.jpg": b"one"})
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a").symlink_to("../out")
    with pytest.raises(Refused, match=r"1 links to folders: .* ingest\.follow_links=true"):
        open_source(str(tmp_path / "in")).list()


PROGRAMS = ["@eaDir/a.jpg/SYNOPHOTO_THUMB_M.jpg", "b/@eaDir/1.jpg", "__MACOSX/a.jpg", "#recycle/old.jpg", "$RECYCLE.BIN/$R1.jpg", "lost+found/1.jpg"]


@pytest.mark.parametrize("name", PROGRAMS)
def test_folders_made_by_programs_are_skipped_and_counted(tmp_path: Path, name: str) -> None:
    write_folder(tmp_path / "folder", {name: b"x", "b/1.jpg": b"y"})
    write_tar(tmp_path / "x.tar", {name: b"x", "b/1.jpg": b"y"})
    for address, uri in ((tmp_path / "folder", "b/1.jpg"), (tmp_path / "x.tar", "x.tar#b/1.jpg")):
        source = open_source(str(address))
        assert uris(source) == [uri]
        assert source.skipped == {"excluded": 1}
        assert len(refs(open_source(str(address), exclude=""))) == 2


@pytest.mark.parametrize(
    ("exclude", "left"),
    [("*.gif", ["a/1.jpg", "a/raw/2.jpg"]), ("raw", ["a/1.jpg", "b.gif"]), ("a/*", ["b.gif"]), (" a , *.gif", []), ("a/raw/2.jpg", ["a/1.jpg", "b.gif"])],
)
def test_files_that_match_the_users_globs_are_excluded(tmp_path: Path, exclude: str, left: list[str]) -> None:
    write_folder(tmp_path, {"a/1.jpg": b"1", "a/raw/2.jpg": b"2", "b.gif": b"3"})
    source = open_source(str(tmp_path), exclude=exclude)
    if left:
        assert uris(source) == left
    else:
        with pytest.raises(Refused, match="holds no image files"):
            source.list()


def test_the_error_without_images_counts_each_excluded_path_once(tmp_path: Path) -> None:
    write_folder(tmp_path, dict.fromkeys(["@eaDir/a.jpg", "b/@eaDir/a.jpg", "b/c.txt"], b"x"))
    with pytest.raises(Refused, match="leaves out 2 files and folders"):
        open_source(str(tmp_path), exclude="@eaDir").list()


def test_the_source_folder_may_be_a_link(tmp_path: Path, images: Images) -> None:
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


def test_circular_links_are_rejected_and_dangling_ones_missing(tmp_path: Path) -> None:
    (tmp_path / "circle.jpg").symlink_to("circle.jpg")
    (tmp_path / "dangling.jpg").symlink_to("gone.jpg")
    source = open_source(str(tmp_path))
    circle, dangling = refs(source)
    with pytest.raises(RejectedImage, match="circle"):
        source.fetch(circle)
    with pytest.raises(MissingImage, match="gone"):
        source.fetch(dangling)


def test_a_named_pipe_is_rejected_without_blocking(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.jpg")
    source = open_source(str(tmp_path))
    with pytest.raises(RejectedImage, match="not a regular file"):
        source.fetch(refs(source)[0])


def test_a_file_without_permission_to_read_is_missing(tmp_path: Path) -> None:
    write_folder(tmp_path, {"a.jpg": b"x"})
    source = open_source(str(tmp_path))
    (ref,) = refs(source)
    (tmp_path / "a.jpg").chmod(0)
    with pytest.raises(MissingImage, match="permission denied"):
        as_anyone(lambda: source.fetch(ref))


def test_a_source_with_an_unreadable_subfolder_is_refused(tmp_path: Path) -> None:
    write_folder(tmp_path, {"a.jpg": b"x", "inner/b.jpg": b"x"})
    (tmp_path / "inner").chmod(0)
    with pytest.raises(Refused, match=r"may not be read \(.*/inner'\): allow it for this user"):
        as_anyone(open_source(str(tmp_path)).list)


def test_other_read_errors_are_raised_for_a_retry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
