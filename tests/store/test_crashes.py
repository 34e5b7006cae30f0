"""The state of a store after a power loss, after a kill, and with concurrent writers; `simulation` explains the machine.

In each test, processes commit shards in turns whose order hypothesis draws; some are killed on the way.
Each of the last tests breaks a rule of the store and shows that the tests above notice it.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field
from functools import cache
from itertools import product
from pathlib import Path
from random import Random
from typing import Any
from unittest.mock import patch
from uuid import uuid4

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from gsec_core.errors import BadShard
from gsec_core.store import Shards, files, shards
from gsec_core.store.files import LocalFiles, open_files

from .examples import embeddings, reproducible
from .simulation import BEST, WORST, Fate, Machine, Promised, Schedule, after_power_loss, machine

ROWS = {name: embeddings(first=100 * number, rows=2) for number, name in enumerate(["00000", "00001", "00002"])}
"""The planned shards. Every writer computes the same rows for a shard; the footer also names the writer."""

PLAN = tuple(ROWS)


@cache
def content(name: str, writer: int) -> bytes:
    """The bytes of a shard as writer number ``writer`` makes it."""
    scratch = Shards(open_files(f"memory://{uuid4().hex}"), "shards")
    scratch.commit(name, ROWS[name], {"writer": writer})
    return scratch.files.read(scratch.path(name))


def shards_of(disk: Machine) -> Shards:
    """The table of the planned shards, as a new process opens it."""
    return Shards(LocalFiles(str(disk.folder / "store")), "corpus/embeddings/fingerprint")


# Processes


@dataclass(frozen=True)
class Writer:
    """A process that commits some shards, and may be killed after some calls."""

    names: tuple[str, ...] = PLAN
    kill_after: int | None = None


@dataclass
class Work:
    """Writers at work on one disk, and the order of their turns."""

    writers: list[Writer]
    schedule: Schedule = ()
    hard_links: bool = True
    returned: list[tuple[str, int, bool]] = field(default_factory=list)
    """For every commit that returned: the shard's name, the writer's number, whether it was told that it created the shard."""

    def on(self, disk: Machine, *others: Callable[[], None]) -> None:
        bodies = [self._body(disk, number, writer) for number, writer in enumerate(self.writers)]
        disk.run([*bodies, *others], self.schedule, [writer.kill_after for writer in self.writers])

    def _body(self, disk: Machine, number: int, writer: Writer) -> Callable[[], None]:
        def body() -> None:
            mine = shards_of(disk)
            for name in writer.names:
                created = mine.files.create(mine.path(name), content(name, number))  # as Shards.commit does
                self.returned.append((name, number, created))
                disk.promise(f"store/{mine.path(name)}")

        return body


def rerun(disk: Machine) -> None:
    """Do what a run does with such a store: set bad shards aside, then make the missing ones."""
    again = shards_of(disk)
    for name in again.names():
        again.set_aside(name)
    for name in PLAN:
        if name not in again.names():
            again.commit(name, ROWS[name], {"writer": "rerun"})


schedules = st.lists(st.tuples(st.integers(0, 3), st.integers(1, 6) | st.integers(7, 40)), max_size=10)
names = st.lists(st.sampled_from(PLAN), min_size=1, unique=True).map(tuple)
works = st.builds(Work, st.lists(st.builds(Writer, names), min_size=1, max_size=3), schedules, st.booleans())
works_with_kills = st.builds(Work, st.lists(st.builds(Writer, names, st.none() | st.integers(0, 30)), min_size=1, max_size=3), schedules, st.booleans())


def calls_of(writer: Writer) -> int:
    with machine() as disk:
        disk.run([Work([writer])._body(disk, 0, writer)])
        return disk.calls


# What must hold


def is_whole(disk: Machine, name: str) -> bool:
    """Whether a shard can be read under its name and has the planned rows."""
    try:
        return shards_of(disk).read(name).equals(ROWS[name])
    except BadShard:
        return False


def assert_all_whole(disk: Machine) -> None:
    for name in shards_of(disk).names():
        assert is_whole(disk, name), f"{name} is torn"


def assert_done(disk: Machine) -> None:
    """Each planned shard is there once, with its rows."""
    done = shards_of(disk)
    assert done.names() == set(PLAN)
    assert [table.to_pylist() for table in done.read_all(PLAN)] == [rows.to_pylist() for rows in ROWS.values()]


def what_may_be_left(disk: Machine, fate: Fate) -> Iterator[tuple[dict[str, bytes], set[str]]]:
    """For a power loss after each call: the files that may be left, and the paths promised by then."""
    for end in range(disk.began, len(disk.trace) + 1):
        promised = {event.what for event in disk.trace[:end] if isinstance(event, Promised)}
        for each in (WORST, BEST, fate):
            yield after_power_loss(disk.trace[:end], each), promised


def named(left: dict[str, bytes]) -> dict[str, bytes]:
    return {path: data for path, data in left.items() if path.endswith(".parquet") and "_bad-" not in path}


fates = st.builds(Fate, st.sampled_from([0.2, 0.5, 0.8]), st.integers(0, 2**16).map(Random))


# The power fails


@reproducible(150)
@given(works_with_kills, fates)
def test_after_a_power_loss_every_named_shard_is_as_one_of_its_writers_made_it(work: Work, fate: Fate) -> None:
    with machine(work.hard_links) as disk:
        work.on(disk)
    for left, _ in what_may_be_left(disk, fate):
        for path, data in named(left).items():
            assert data in [content(Path(path).stem, number) for number in range(len(work.writers))], path


@reproducible(300)
@given(works_with_kills, fates)
def test_after_a_power_loss_every_promised_shard_is_there(work: Work, fate: Fate) -> None:
    """Also where the promise was that another writer has made it, and where an earlier process was killed."""
    with machine(work.hard_links) as disk:
        work.on(disk)
    for left, promised in what_may_be_left(disk, fate):
        assert promised <= named(left).keys()


@pytest.mark.parametrize("killed", [True, False], ids=["killed", "stopped"])
def test_a_promise_holds_at_whatever_call_another_writer_was_interrupted(killed: bool) -> None:
    """A directory or file that the other writer has made but not synced is synced by the writer that relies on it."""
    for call in range(calls_of(Writer(("00000",))) + 1):
        with machine() as disk:
            Work([Writer(("00000",), call if killed else None), Writer(("00000",))], [(0, call), (1, 100)]).on(disk)
        for left, promised in what_may_be_left(disk, WORST):
            assert promised <= named(left).keys(), f"interrupted at call {call}"


@reproducible(100)
@given(works_with_kills, fates, st.data())
def test_after_a_power_loss_a_rerun_completes(work: Work, fate: Fate, data: st.DataObject) -> None:
    with machine(work.hard_links) as disk:
        work.on(disk)
    left, _ = data.draw(st.sampled_from(list(what_may_be_left(disk, fate))))
    with machine(work.hard_links, left) as disk:
        rerun(disk)
        assert_done(disk)


@reproducible(20)
@given(fates)
def test_after_a_power_loss_a_replaced_file_is_the_old_or_the_new_one(fate: Fate) -> None:
    with machine() as disk:
        published = LocalFiles(str(disk.folder / "store"))
        for run in ("old", "new"):
            published.replace("pipeline.json", run.encode() * 1000)
            disk.promise(run)
    for left, promised in what_may_be_left(disk, fate):
        allowed = [b"new" * 1000] if "new" in promised else [b"old" * 1000, b"new" * 1000] if "old" in promised else [None, b"old" * 1000, b"new" * 1000]
        assert left.get("store/pipeline.json") in allowed


# A process is killed


EVERY_CALL = range(calls_of(Writer()) + 1)


@pytest.mark.parametrize("hard_links", [True, False], ids=["hard links", "no hard links"])
@pytest.mark.parametrize("call", EVERY_CALL)
def test_a_writer_killed_at_any_call_leaves_whole_shards_and_a_rerun_completes(call: int, hard_links: bool) -> None:
    with machine(hard_links) as disk:
        Work([Writer(kill_after=call)]).on(disk)
        assert_all_whole(disk)
        rerun(disk)
        assert_done(disk)


@pytest.mark.parametrize("call", EVERY_CALL)
def test_a_writer_killed_at_any_call_leaves_at_most_one_temporary_file(call: int) -> None:
    with machine() as disk:
        Work([Writer(kill_after=call)]).on(disk)
        left = shards_of(disk)
        everything = {path.name for path in disk.folder.rglob("*") if path.is_file()}
        assert everything == {f"{name}.parquet" for name in left.names()} | left.files.leftovers(left.directory)
        assert len(left.files.leftovers(left.directory)) <= 1


# Concurrent writers and readers


# Exactly one of the writers of a shard is told that it created the shard, and its bytes are the ones that stay.
@reproducible(100)
@given(works)
def test_of_all_who_make_a_shard_one_is_told_so_and_its_bytes_stay(work: Work) -> None:
    with machine(work.hard_links) as disk:
        work.on(disk)
        for name in shards_of(disk).names():
            winners = [number for made, number, created in work.returned if made == name and created]
            assert winners == [shards_of(disk).facts(name)["writer"]]


@reproducible(100)
@given(works)
def test_concurrent_writers_all_finish_and_leave_no_files_but_the_shards(work: Work) -> None:
    with machine(work.hard_links) as disk:
        work.on(disk)
        assert len(work.returned) == sum(len(writer.names) for writer in work.writers)
        everything = {path.name for path in disk.folder.rglob("*") if path.is_file()}
        assert everything == {f"{name}.parquet" for writer in work.writers for name in writer.names}


@reproducible(100)
@given(works_with_kills)
def test_a_reader_meanwhile_sees_each_shard_whole_or_not_at_all(work: Work) -> None:
    with machine(work.hard_links) as disk:

        def read() -> None:
            seen: set[str] = set()
            for _ in range(5):
                now = shards_of(disk).names()
                assert seen <= now, "a shard is gone"
                seen = now
                assert_all_whole(disk)

        work.on(disk, read)


@reproducible(100)
@given(schedules)
def test_processes_may_check_a_store_for_writing_at_once(schedule: Schedule) -> None:
    """Each makes and removes a file, and with it a directory that the other is about to use."""
    with machine() as disk:

        def check() -> None:
            mine = LocalFiles(str(disk.folder / "store"))
            mine.create(f"runs/{id(mine)}", b"")
            mine.remove(f"runs/{id(mine)}")

        disk.run([check, check], schedule)


# A bad shard


BAD = content("00000", writer=0)[:-1]


def disk_with_a_bad_shard() -> AbstractContextManager[Machine]:
    return machine(left={"store/corpus/embeddings/fingerprint/00000.parquet": BAD})


@dataclass
class Mender:
    """A process that sets the bad shard aside and makes it again, as a run does when it finds one."""

    disk: Machine
    number: int = 0
    set_aside: bool | None = None

    def __call__(self) -> None:
        mine = shards_of(self.disk)
        self.set_aside = mine.set_aside("00000")
        self.disk.promise("aside")
        mine.files.create(mine.path("00000"), content("00000", self.number))
        self.disk.promise("mended")


def aside(disk: Machine) -> list[bytes]:
    """The content of all files that were set aside."""
    return [path.read_bytes() for path in disk.folder.rglob("_bad-*")]


def assert_mended(disk: Machine, menders: list[Mender]) -> None:
    """The shard is good, only the bad one was set aside, and exactly one process has done that."""
    assert is_whole(disk, "00000")
    assert aside(disk) == [BAD]
    assert [mender.set_aside for mender in menders].count(True) == 1


def test_when_two_mend_a_shard_at_once_a_good_one_stays() -> None:
    """Tried in every order in which each interrupts the other at most once."""
    for first, second in product(range(25), range(25)):
        with disk_with_a_bad_shard() as disk:
            menders = [Mender(disk, 0), Mender(disk, 1)]
            disk.run(menders, [(0, first), (1, second)])
            assert_mended(disk, menders)


@reproducible(150)
@given(schedules)
def test_when_three_mend_a_shard_at_once_a_good_one_stays(schedule: Schedule) -> None:
    with disk_with_a_bad_shard() as disk:
        menders = [Mender(disk, number) for number in range(3)]
        disk.run(menders, schedule)
        assert_mended(disk, menders)


@reproducible(100)
@given(schedules)
def test_a_reader_of_a_shard_that_is_mended_sees_its_rows_or_no_shard(schedule: Schedule) -> None:
    with disk_with_a_bad_shard() as disk:

        def read() -> None:
            for _ in range(5):
                with suppress(BadShard, FileNotFoundError):
                    assert shards_of(disk).read("00000").equals(ROWS["00000"])

        disk.run([Mender(disk, 0), Mender(disk, 1), read], schedule)


@reproducible(100)
@given(schedules, st.integers(0, 30), st.none() | st.integers(0, 30))
def test_when_menders_are_killed_a_rerun_mends(schedule: Schedule, first: int, second: int | None) -> None:
    with disk_with_a_bad_shard() as disk:
        disk.run([Mender(disk, 0), Mender(disk, 1)], schedule, [first, second])
        rerun(disk)
        assert_done(disk)


@reproducible(100)
@given(fates)
def test_after_a_power_loss_a_shard_is_bad_until_it_is_aside_and_good_when_it_is_mended(fate: Fate) -> None:
    with disk_with_a_bad_shard() as disk:
        Mender(disk)()
    good, bad, none = [content("00000", 0)], [BAD], []  # type: ignore[var-annotated]
    allowed = {frozenset(): [bad, none], frozenset({"aside"}): [none, good], frozenset({"aside", "mended"}): [good]}
    for left, promised in what_may_be_left(disk, fate):
        assert list(named(left).values()) in allowed[frozenset(promised)]


# The tests above notice if a rule is broken


def create_in_place(self: LocalFiles, path: str, data: bytes) -> bool:
    """Breaks a rule: the file is exclusive, and durable in the end, but visible before it is complete."""
    final = self.location(path)
    files._make_directory(os.path.dirname(final))
    try:
        descriptor = files.os.open(final, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    except FileExistsError:
        return False
    while data:
        data = data[files.os.write(descriptor, data) :]
    files.os.fsync(descriptor)
    files.os.close(descriptor)
    files._sync_directory(os.path.dirname(final))
    return True


def rename_over(temporary: str, final: str) -> bool:
    files.os.rename(temporary, final)
    return True


def make_directory_trusting_others(directory: str) -> None:
    """Breaks a rule: the directory is durable only if no other process made it, or was killed while it made it."""
    if not os.path.isdir(directory):
        make_directory_trusting_others(os.path.dirname(directory))
        with suppress(FileExistsError):
            files.os.mkdir(directory)
        files._sync_directory(os.path.dirname(directory))


def create_trusting_others(self: LocalFiles, path: str, data: bytes) -> bool:
    """Breaks a rule: trusts that another process that made the file also made its name durable."""
    return not files.os.path.exists(self.location(path)) and real_create(self, path, data)


def sync_directories_only(self: Machine, descriptor: int) -> None:
    if self.is_directory(descriptor):
        real_fsync(self, descriptor)


real_create, real_fsync = LocalFiles.create, Machine.fsync

whole_after_power_loss = test_after_a_power_loss_every_named_shard_is_as_one_of_its_writers_made_it
there_after_power_loss = test_after_a_power_loss_every_promised_shard_is_there
one_winner = test_of_all_who_make_a_shard_one_is_told_so_and_its_bytes_stay
whole_for_a_reader = test_a_reader_meanwhile_sees_each_shard_whole_or_not_at_all


@pytest.mark.parametrize(
    ("broken", "noticed_by", "drawn"),
    [
        pytest.param(patch.object(Machine, "fsync", sync_directories_only), whole_after_power_loss, [works_with_kills, fates], id="files not synced"),
        pytest.param(patch.object(files, "_sync_directory", lambda _: None), there_after_power_loss, [works_with_kills, fates], id="directories not synced"),
        pytest.param(patch.object(LocalFiles, "create", create_in_place), whole_after_power_loss, [works_with_kills, fates], id="written in place, power lost"),
        pytest.param(patch.object(LocalFiles, "create", create_in_place), whole_for_a_reader, [works_with_kills], id="written in place, read"),
        pytest.param(patch.object(files, "_link_exclusively", rename_over), one_winner, [works], id="the last wins"),
    ],
)
def test_each_broken_rule_of_writing_makes_a_test_above_fail(
    broken: AbstractContextManager[object], noticed_by: Any, drawn: list[st.SearchStrategy[Any]]
) -> None:
    search = settings(reproducible(1000), phases=[Phase.generate])(given(*drawn)(noticed_by.hypothesis.inner_test))
    with broken, pytest.raises(AssertionError):
        search()


@pytest.mark.parametrize("killed", [True, False])
@pytest.mark.parametrize(
    "trusting",
    [
        pytest.param(patch.object(files, "_make_directory", make_directory_trusting_others), id="directories"),
        pytest.param(patch.object(LocalFiles, "create", create_trusting_others), id="files"),
    ],
)
def test_trust_in_unsynced_files_or_directories_of_others_makes_a_test_above_fail(trusting: AbstractContextManager[object], killed: bool) -> None:
    with trusting, pytest.raises(AssertionError):
        test_a_promise_holds_at_whatever_call_another_writer_was_interrupted(killed)


def test_a_good_shard_that_is_set_aside_and_not_put_back_makes_a_test_above_fail() -> None:
    with patch.object(shards, "_is_good", lambda _: False), pytest.raises(AssertionError):
        test_when_two_mend_a_shard_at_once_a_good_one_stays()
