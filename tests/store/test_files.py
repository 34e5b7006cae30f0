"""On every kind of filesystem a file appears complete under its name or not at all."""

import errno
import os
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError
from s3fs.errors import translate_boto_error

from gsec_core.errors import GsecError, Refused, Unreachable
from gsec_core.store import Store, files
from gsec_core.store.files import Files, LocalFiles, RemoteFiles, open_files

from ..disks import as_anyone

# On every filesystem


def test_a_created_file_holds_the_bytes_that_were_written(any_files: Files) -> None:
    assert any_files.create("corpus/table/a", b"first")
    assert any_files.read("corpus/table/a") == b"first"


def test_a_file_may_be_empty(any_files: Files) -> None:
    assert any_files.create("redo/encode-1", b"")
    assert any_files.read("redo/encode-1") == b""
    assert not any_files.create("redo/encode-1", b"")


def test_the_first_of_two_writers_wins(any_files: Files) -> None:
    any_files.create("a", b"first")
    assert not any_files.create("a", b"second")
    assert any_files.read("a") == b"first"


def test_replace_makes_a_file_or_replaces_it(any_files: Files) -> None:
    any_files.replace("published/run.json", b"old")
    any_files.replace("published/run.json", b"new")
    assert any_files.read("published/run.json") == b"new"
    assert any_files.files("published") == {"run.json"}


def test_move_leaves_nothing_under_the_old_name(any_files: Files) -> None:
    any_files.create("table/a", b"bytes")
    any_files.move("table/a", "table/b")
    assert any_files.files("table") == {"b"}
    assert any_files.read("table/b") == b"bytes"


def test_moving_a_missing_file_is_an_error(any_files: Files) -> None:
    with pytest.raises(FileNotFoundError):
        any_files.move("table/a", "table/b")


def test_reading_or_opening_a_missing_file_is_an_error(any_files: Files) -> None:
    with pytest.raises(FileNotFoundError):
        any_files.read("table/a")
    with pytest.raises(FileNotFoundError):
        any_files.open("table/a")


def test_an_open_file_can_be_read_at_any_position(any_files: Files) -> None:
    any_files.create("a", b"0123456789")
    with any_files.open("a") as file:
        file.seek(4)
        assert file.read(3) == b"456"


def test_files_and_directories_are_listed_apart(any_files: Files) -> None:
    any_files.create("corpus/corpus.json", b"{}")
    any_files.create("corpus/table/a", b"")
    assert any_files.files("corpus") == {"corpus.json"}
    assert any_files.directories("corpus") == {"table"}
    assert any_files.directories("") == {"corpus"}


def test_a_missing_directory_is_listed_as_empty(any_files: Files) -> None:
    assert any_files.files("nowhere") == any_files.directories("nowhere") == any_files.leftovers("nowhere") == set()


def test_remove_removes_only_the_named_file(any_files: Files) -> None:
    any_files.create("table/a", b"")
    any_files.create("table/b", b"")
    any_files.remove("table/a")
    assert any_files.files("table") == {"b"}


def test_a_directory_is_removed_with_its_last_file(any_files: Files) -> None:
    any_files.create("corpus/kept", b"")
    any_files.create("corpus/table/a", b"")
    any_files.remove("corpus/table/a")
    assert any_files.directories("corpus") == set()


def test_modified_gives_the_time_of_writing(any_files: Files) -> None:
    any_files.create("a", b"")
    assert abs(any_files.modified("a") - datetime.now(UTC)) < timedelta(minutes=1)


def test_location_gives_the_address_that_a_user_would_type(any_files: Files, url: str) -> None:
    assert any_files.location("corpus/table/a") == f"{url}/corpus/table/a"


def raising(error: OSError, then: Callable[..., Any] | None = None) -> Callable[..., Any]:
    """A function that raises ``error``: on every call, or only on the first if ``then`` is given for later ones."""
    calls = iter([error])

    def call(*arguments: Any, **options: Any) -> Any:
        if then is None or next(calls, None):
            raise error
        return then(*arguments, **options)

    return call


# Addresses


@pytest.mark.parametrize("url", ["http://host/store", "https://host/store", "ftp://host/store", "zip://store", "S3://bucket"])
def test_unsupported_protocols_are_refused(url: str) -> None:
    with pytest.raises(Refused, match=f"--store {url}: a store is a folder or one of file://, s3://"):
        open_files(url)


@pytest.mark.parametrize("url", ["simplecache::s3://bucket/store", "zip::file:///store.zip", "memory://a::b", "folder::other"])
def test_chained_protocols_are_refused(url: str) -> None:
    with pytest.raises(Refused, match="a store is a folder or one of"):
        open_files(url)


def test_a_missing_client_library_is_refused_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def without(*_: Any, **__: Any) -> None:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(files.fsspec.core, "url_to_fs", without)
    with pytest.raises(Refused, match=r"pip install 'gsec\[s3\]'"):
        open_files("s3://bucket/store")


def test_a_file_url_is_a_folder(tmp_path: Path) -> None:
    open_files(f"file://{tmp_path}/store").create("a", b"bytes")
    assert (tmp_path / "store" / "a").read_bytes() == b"bytes"


def test_a_file_is_refused_as_a_store(tmp_path: Path) -> None:
    (tmp_path / "x").touch()
    for url in (f"{tmp_path}/x", f"file://{tmp_path}/x"):
        with pytest.raises(Refused, match=r"^--store .*/x: it is a file; give a folder\.$"):
            open_files(url)


def test_a_relative_folder_stays_the_same_after_the_working_directory_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    store = open_files("store")
    monkeypatch.chdir("/")
    store.create("a", b"bytes")
    assert (tmp_path / "store" / "a").read_bytes() == b"bytes"


# A folder


@pytest.fixture
def folder(tmp_path: Path) -> LocalFiles:
    return LocalFiles(str(tmp_path / "store"))


def everything_in(folder: LocalFiles) -> set[str]:
    return {os.path.relpath(os.path.join(where, name), folder.url) for where, _, names in os.walk(folder.url) for name in names}


def failing(code: int) -> Callable[..., Any]:
    return raising(OSError(code, os.strerror(code)))


WRITES: list[Callable[[Files, str, bytes], object]] = [LocalFiles.create, LocalFiles.replace]


@pytest.mark.parametrize("write", WRITES)
def test_a_write_to_a_disk_that_becomes_full_leaves_no_file(folder: LocalFiles, monkeypatch: pytest.MonkeyPatch, write: Any) -> None:
    os_write = os.write
    room = iter([2])

    def write_some(descriptor: int, data: memoryview) -> int:
        for bytes_left in room:
            return os_write(descriptor, data[:bytes_left])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files.os, "write", write_some)
    with pytest.raises(OSError, match="No space left on device"):
        write(folder, "table/a", b"bytes")
    assert everything_in(folder) == set()


@pytest.mark.parametrize("write", WRITES)
def test_a_write_into_a_forbidden_folder_leaves_no_file(folder: LocalFiles, monkeypatch: pytest.MonkeyPatch, write: Any) -> None:
    folder.create("table/other", b"")
    monkeypatch.setattr(files.os, "open", failing(errno.EACCES))
    with pytest.raises(PermissionError):
        write(folder, "table/a", b"bytes")
    assert everything_in(folder) == {"table/other"}


@pytest.mark.parametrize("write", WRITES)
def test_a_write_whose_fsync_fails_leaves_no_file(folder: LocalFiles, monkeypatch: pytest.MonkeyPatch, write: Any) -> None:
    folder.create("table/other", b"")
    monkeypatch.setattr(files, "_sync_directory", lambda _: None)
    monkeypatch.setattr(files.os, "fsync", failing(errno.EIO))
    with pytest.raises(OSError, match="Input/output error"):
        write(folder, "table/a", b"bytes")
    assert everything_in(folder) == {"table/other"}


def test_a_write_whose_final_name_cannot_be_given_leaves_no_file(folder: LocalFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files.os, "link", failing(errno.EACCES))
    monkeypatch.setattr(files.os, "rename", failing(errno.EACCES))
    for write in WRITES:
        with pytest.raises(PermissionError):
            write(folder, "table/a", b"bytes")
    assert everything_in(folder) == set()


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (errno.ENOSPC, "No space left on device; make room on its disk: "),
        (errno.EDQUOT, "Disk quota exceeded; make room, or ask for a larger quota: "),
        (errno.EROFS, "Read-only file system; mount its disk for writing: "),
        (errno.EIO, "Input/output error: "),
    ],
)
def test_the_error_of_a_failed_write_names_the_file_and_a_remedy_if_there_is_one(
    folder: LocalFiles, monkeypatch: pytest.MonkeyPatch, code: int, words: str
) -> None:
    monkeypatch.setattr(files.os, "write", failing(code))
    for write in WRITES:
        with pytest.raises(OSError, match=re.escape(f"[Errno {code}] {words}'{folder.location('table/a')}'")):
            write(folder, "table/a", b"bytes")


@pytest.mark.parametrize("mode", [0o555, 0o000])
def test_the_error_of_a_forbidden_directory_names_it_and_a_remedy(folder: LocalFiles, mode: int) -> None:
    folder.create("table/other", b"")
    (Path(folder.url) / "table").chmod(mode)
    with pytest.raises(PermissionError, match=re.escape(f"Permission denied; allow this user to read and write there: '{folder.url}/table")):
        as_anyone(lambda: (folder.files("table"), folder.create("table/a", b"bytes")))


def test_the_error_of_a_file_that_may_not_be_read_names_it_and_a_remedy(folder: LocalFiles) -> None:
    folder.create("table/a", b"")
    (Path(folder.url) / "table" / "a").chmod(0)
    with pytest.raises(PermissionError, match=re.escape(f"allow this user to read and write there: '{folder.location('table/a')}'")):
        as_anyone(lambda: folder.read("table/a"))


def test_after_a_full_disk_has_room_again_the_same_write_succeeds(folder: LocalFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as full:
        full.setattr(files.os, "write", failing(errno.ENOSPC))
        with pytest.raises(OSError, match="No space left"):
            folder.create("a", b"bytes")
    assert folder.create("a", b"bytes")


def test_short_writes_are_continued(folder: LocalFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    os_write = os.write
    monkeypatch.setattr(files.os, "write", lambda descriptor, data: os_write(descriptor, data[:2]))
    folder.create("a", b"bytes")
    assert folder.read("a") == b"bytes"


def test_a_folder_above_the_store_need_not_be_readable(folder: LocalFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    os_open = os.open
    Path(folder.url).mkdir()
    above = os.path.dirname(folder.url)

    def open_below(path: str, *arguments: Any) -> int:
        if path == above:
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return os_open(path, *arguments)

    monkeypatch.setattr(files.os, "open", open_below)
    assert folder.create("table/a", b"bytes")


def test_temporary_files_are_listed_as_leftovers_and_not_as_files(folder: LocalFiles) -> None:
    folder.create("table/a", b"")
    (Path(folder.url) / "table" / ".tmp-killed").write_bytes(b"half")
    assert folder.files("table") == {"a"}
    assert folder.leftovers("table") == {".tmp-killed"}


@pytest.mark.parametrize("code", [errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK])
def test_without_hard_links_the_first_writer_wins_by_an_exclusive_rename(folder: LocalFiles, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    monkeypatch.setattr(files.os, "link", failing(code))
    assert folder.create("table/a", b"first")
    assert not folder.create("table/a", b"second")
    assert folder.read("table/a") == b"first"
    assert everything_in(folder) == {"table/a"}


class LibcWithout:
    """A C library without renameat2, or with one that the filesystem does not support."""

    def __init__(self, has_function: bool) -> None:
        if has_function:
            self.renameat2 = lambda *_: files.ctypes.set_errno(errno.EINVAL) or -1


@pytest.mark.parametrize("has_function", [True, False])
def test_a_filesystem_without_any_exclusive_write_is_an_error_with_a_remedy(folder: LocalFiles, monkeypatch: pytest.MonkeyPatch, has_function: bool) -> None:
    monkeypatch.setattr(files.os, "link", failing(errno.EPERM))
    monkeypatch.setattr(files.ctypes, "CDLL", lambda *_, **__: LibcWithout(has_function))
    with pytest.raises(GsecError, match=r"Put the store elsewhere\."):
        folder.create("a", b"bytes")
    assert everything_in(folder) == set()


def test_two_processes_may_remove_an_emptied_directory_at_once(folder: LocalFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.create("table/a", b"")
    os_rmdir = os.rmdir

    def rmdir(directory: str) -> None:
        os_rmdir(directory)  # as the other process does just before
        os_rmdir(directory)

    monkeypatch.setattr(files.os, "rmdir", rmdir)
    folder.remove("table/a")
    assert folder.directories("") == set()


def test_a_directory_that_another_process_removes_during_a_write_is_made_again(folder: LocalFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.create("table/last", b"")
    os_open = os.open
    others = iter([lambda: folder.remove("table/last")])

    def open_after_the_other(path: str, flags: int, mode: int = 0o777) -> int:
        if flags & os.O_CREAT:
            next(others, lambda: None)()
        return os_open(path, flags, mode)

    monkeypatch.setattr(files.os, "open", open_after_the_other)
    assert folder.create("table/a", b"bytes")
    assert folder.read("table/a") == b"bytes"


def test_a_store_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    with pytest.raises(Refused, match=r"cannot be written .*Permission denied.* Choose another store"):
        as_anyone(Store.open(str(tmp_path / "store")).check_writable)


def test_a_store_on_a_read_only_disk_is_refused(folder: LocalFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files.os, "mkdir", failing(errno.EROFS))
    with pytest.raises(Refused, match=r"cannot be written .*Read-only file system"):
        Store(folder).check_writable()


def test_the_check_whether_a_store_can_be_written_leaves_no_file(any_store: Store) -> None:
    any_store.check_writable()
    assert any_store.files.files("runs") == any_store.files.directories("") == set()


# S3


@pytest.fixture
def s3(bucket: str) -> RemoteFiles:
    made = open_files(f"{bucket}/store")
    assert isinstance(made, RemoteFiles)
    return made


def test_the_folder_of_a_store_on_s3_may_follow_two_slashes(bucket: str) -> None:
    made = open_files(f"{bucket}//store")
    made.create("runs/1/request.json", b"{}")
    assert made.directories("runs") == {"1"}
    assert made.url == f"{bucket}/store", "both addresses must be one store"


def test_listings_of_s3_are_never_cached(s3: RemoteFiles, bucket: str) -> None:
    """A run must see files that other processes have written."""
    s3.create("table/a", b"")
    assert s3.files("table") == {"a"}
    boto3.client("s3").put_object(Bucket=bucket.removeprefix("s3://"), Key="store/table/b", Body=b"")
    assert s3.files("table") == {"a", "b"}


def test_the_marker_of_a_folder_on_s3_is_no_file(s3: RemoteFiles, bucket: str) -> None:
    """The console and some mounts mark a folder with an empty object of its name."""
    s3.create("table/a", b"")
    boto3.client("s3").put_object(Bucket=bucket.removeprefix("s3://"), Key="store/table/", Body=b"")
    assert s3.files("table") == {"a"}
    assert s3.directories("table") == set()


def test_on_s3_the_put_itself_excludes_the_second_writer(s3: RemoteFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    puts: list[bytes] = []
    put = s3._filesystem.pipe_file
    with monkeypatch.context() as blind:
        blind.setattr(s3._filesystem, "exists", lambda _: False)
        blind.setattr(s3._filesystem, "pipe_file", lambda where, data, **options: (puts.append(data), put(where, data, **options)))
        assert s3.create("table/a", b"winner")
        assert not s3.create("table/a", b"loser")
    assert puts == [b"winner", b"loser"]
    assert s3.read("table/a") == b"winner"


def s3_error(code: str) -> OSError:
    """An error as s3fs raises it for an answer to a PUT. Not every S3 server names the condition that failed."""
    error: OSError = translate_boto_error(ClientError({"Error": {"Code": code, "Message": code}}, "PutObject"))
    return error


def test_a_failed_precondition_means_that_another_writer_was_first(s3: RemoteFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3._filesystem, "pipe_file", raising(s3_error("PreconditionFailed")))
    assert not s3.create("table/a", b"loser")


def test_a_conflict_with_another_upload_that_failed_is_retried(s3: RemoteFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3._filesystem, "pipe_file", raising(s3_error("ConditionalRequestConflict"), then=s3._filesystem.pipe_file))
    assert s3.create("table/a", b"bytes")
    assert s3.read("table/a") == b"bytes"


@pytest.mark.parametrize(("there", "made"), [(b"bytes", True), (b"another's", False)])
def test_an_upload_whose_reply_was_lost_counts_as_ours_if_the_file_has_our_bytes(
    s3: RemoteFiles, monkeypatch: pytest.MonkeyPatch, there: bytes, made: bool
) -> None:
    put = s3._filesystem.pipe_file

    def after_a_lost_reply(where: str, data: bytes, **options: Any) -> None:
        put(where, there)
        raise s3_error("NoSuchUpload")

    monkeypatch.setattr(s3._filesystem, "pipe_file", after_a_lost_reply)
    assert s3.create("table/a", b"bytes") == made


def test_a_conflict_that_does_not_end_is_raised_as_unreachable(s3: RemoteFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    conflict = raising(s3_error("ConditionalRequestConflict"))
    monkeypatch.setattr(s3._filesystem, "pipe_file", conflict)
    with pytest.raises(Unreachable, match=r"store/table/a: .* met another writer"):
        s3.create("table/a", b"bytes")


def test_a_refused_put_is_not_taken_for_a_lost_race(s3: RemoteFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3._filesystem, "pipe_file", raising(s3_error("AccessDenied")))
    with pytest.raises(PermissionError):
        s3.create("table/a", b"bytes")


def test_the_error_of_a_refused_read_after_a_lost_race_names_the_store_once(s3: RemoteFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3._filesystem, "pipe_file", raising(s3_error("PreconditionFailed")))
    monkeypatch.setattr(s3._filesystem, "cat_file", raising(s3_error("AccessDenied")))
    with pytest.raises(PermissionError) as refused:
        s3.create("table/a", b"loser")
    assert str(refused.value).count("refuses access") == 1


def test_a_store_in_a_missing_bucket_is_refused(bucket: str) -> None:
    with pytest.raises(Refused, match="cannot be written"):
        Store.open(f"{bucket}-missing").check_writable()


def test_a_multipart_upload_excludes_the_second_writer(s3: RemoteFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    part = 5 * 2**20
    winner, loser = bytes(2 * part + 1), bytes(2 * part + 2)
    with monkeypatch.context() as blind:
        blind.setattr(s3._filesystem, "exists", lambda _: False)
        blind.setattr(s3._filesystem, "pipe_file", partial(s3._filesystem.pipe_file, chunksize=part))
        assert s3.create("table/a", winner)
        assert not s3.create("table/a", loser)
    assert s3.read("table/a") == winner
