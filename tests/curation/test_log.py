"""The log of curation: no act is lost with concurrent writers, after kills, or after damage."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gsec_core.curation import Act, Log, replay
from gsec_core.curation.log import RENAME
from gsec_core.errors import BadRecord, Refused, Unreachable
from gsec_core.store.files import LocalFiles, open_files

from ..store.examples import reproducible
from ..store.simulation import BEST, WORST, Machine, Promised, after_power_loss, machine
from .examples import model, random_act, slowly, told


def log_on(disk: Machine) -> Log:
    """The log as a new process opens it."""
    return Log(LocalFiles(str(disk.folder / "store")), "nightly")


@dataclass
class Writer:
    """A process that appends some acts, one after the other, and may be killed on the way."""

    disk: Machine
    name: str
    acts: int
    said: list[Act] = field(default_factory=list)
    """The acts that it was told are in the log."""

    def __call__(self) -> None:
        log, random = log_on(self.disk), Random(self.name)
        for _ in range(self.acts):
            act = log.append(lambda before: random_act(random, before, self.name))
            self.said.append(act)
            self.disk.promise(f"store/curation/nightly/{act.number:08d}.json")


schedules = st.lists(st.tuples(st.integers(0, 1), st.integers(1, 30)), max_size=30)
kills = st.none() | st.integers(0, 400)


@reproducible(60)
@given(schedules, kills, kills, st.integers(0, 99))
def test_two_writers_killed_at_any_call_in_any_order_lose_no_act(schedule: list[tuple[int, int]], first: int | None, second: int | None, seed: int) -> None:
    with machine() as disk:
        writers = [Writer(disk, f"ann {seed}", 16), Writer(disk, f"bob {seed}", 16)]
        disk.run(writers, schedule, [first, second])
        found = log_on(disk).read()
        assert [act.number for act in found] == list(range(1, len(found) + 1)), "no number may be left out or given twice"
        by_number = {act.number: act for act in found}
        for writer in writers:
            assert all(by_number[act.number] == act for act in writer.said)
            its = [act.number for act in found if act.who == writer.name]
            assert its[: len(writer.said)] == [act.number for act in writer.said]
            assert len(its) <= len(writer.said) + 1, "a killed writer may have logged one act more than it was told of"
        again = replay(log_on(disk).read(), model())
        assert told(again, model()) == told(replay(found, model()), model()) == slowly(found, model())


@reproducible(20)
@given(schedules, kills)
def test_after_a_power_loss_every_act_that_a_writer_was_told_of_is_in_the_log(schedule: list[tuple[int, int]], killed: int | None) -> None:
    with machine() as disk:
        writers = [Writer(disk, name, 3) for name in ("ann", "bob")]
        disk.run(writers, schedule, [killed, None])
        whole = {f"store/curation/nightly/{act.number:08d}.json": act for act in log_on(disk).read()}
    for end in range(disk.began, len(disk.trace) + 1):
        promised = {event.what for event in disk.trace[:end] if isinstance(event, Promised)}
        for fate in (WORST, BEST):
            left = {path: data for path, data in after_power_loss(disk.trace[:end], fate).items() if path.endswith(".json")}
            assert promised <= left.keys() <= whole.keys()
            assert all(json.loads(data)["who"] == whole[path].who for path, data in left.items())


def rename(name: str) -> Callable[[list[Act]], Act]:
    return lambda before: Act(RENAME, "ann", "2026-01-01T00:00:00.000+00:00", None, 1, text=name)


def test_a_writer_that_loses_the_race_for_a_number_reads_the_new_act_and_takes_the_next(tmp_path: Path) -> None:
    log, seen = Log(LocalFiles(str(tmp_path)), "nightly"), list[int]()

    def slow(before: list[Act]) -> Act:
        seen.append(len(before))
        if len(before) < 2:
            Log(LocalFiles(str(tmp_path)), "nightly").append(rename("other"))
        return rename("mine")(before)

    assert log.append(slow).number == 3
    assert seen == [0, 1, 2]
    assert [act.text for act in Log(LocalFiles(str(tmp_path)), "nightly").read()] == ["other", "other", "mine"]


def test_acts_of_every_kind_are_read_back_as_they_were_written(any_url: str) -> None:
    log, random = Log(open_files(any_url), "nightly"), Random(0)
    said = [log.append(lambda before: random_act(random, before)) for _ in range(60)]
    assert {act.kind for act in said} == {"rename", "describe", "merge", "split", "move", "hide", "show", "star", "unstar", "undo"}
    assert Log(open_files(any_url), "nightly").read() == said
    assert Log.pipelines(open_files(any_url)) == ["nightly"]


@pytest.fixture(params=["folder", "memory"])
def any_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path) if request.param == "folder" else f"memory://{tmp_path.name}"


GOOD = b'{"at": "2026", "key": 1, "kind": "rename", "text": "a", "who": "ann"}'
SPLIT = b'{"at": "2026", "key": 1, "kind": "split", "keys": [1000000], "encoder": "lite", "who": "ann", "centres": '


@pytest.mark.parametrize(
    "data",
    [
        b"",
        GOOD[:-5],
        b"[]",
        b"\xff\x00",
        b"{}",
        GOOD.replace(b', "text": "a"', b""),
        GOOD.replace(b"1", b'"one"'),
        GOOD.replace(b"1", b"-1"),
        GOOD.replace(b'"rename"', b"7"),
        GOOD.replace(b'"rename"', b"[]"),
        GOOD.replace(b"rename", b"hide").replace(b', "text": "a"', b"").replace(b'"key": 1, ', b""),
        GOOD.replace(b"rename", b"move").replace(b'"text": "a"', b'"images": [["x", "y"]]'),
        SPLIT + b'"AAAA"}',
        SPLIT + b'"no base64!"}',
        SPLIT + b'"AHwAfAB8AHw="}',
    ],
)
def test_a_damaged_act_is_an_error_that_names_it_and_once_renamed_the_others_count(tmp_path: Path, data: bytes) -> None:
    log = Log(LocalFiles(str(tmp_path)), "nightly")
    for name in "abc":
        log.append(rename(name))
    path = tmp_path / "curation" / "nightly" / "00000002.json"
    path.write_bytes(data)
    for do in (lambda: Log(log.files, "nightly").read(), lambda: Log(log.files, "nightly").append(rename("d"))):
        with pytest.raises(BadRecord, match=r"it is not what gsec writes \(.*\)\. Put .* or rename it to 00000002\.json\.damaged: ") as raised:
            do()
        assert str(raised.value).startswith(f"{path}: ")
    path.rename(f"{path}.damaged")
    assert [act.text for act in log.read()] == ["a", "c"]
    assert log.append(rename("d")).number == 4


def test_acts_of_a_newer_gsec_are_read_with_a_list_of_their_unknown_parts(tmp_path: Path) -> None:
    log = Log(LocalFiles(str(tmp_path)), "nightly")
    folder = tmp_path / "curation" / "nightly"
    folder.mkdir(parents=True)
    (folder / "00000001.json").write_bytes(GOOD.replace(b"rename", b"recolour"))
    (folder / "00000002.json").write_bytes(GOOD.replace(b'"key": 1', b'"key": 1, "until": "2027", "tone": 2'))
    (folder / "00000003.json").write_bytes(GOOD)
    (folder / "00000003.json.bak").write_bytes(b"")
    (folder / "notes").write_bytes(b"")
    acts = log.read()
    assert [(act.number, act.kind, act.unknown) for act in acts] == [(1, "recolour", ("kind",)), (2, "rename", ("tone", "until")), (3, "rename", ())]
    assert log.append(rename("d")).number == 4


def test_an_invalid_pipeline_and_a_number_taken_by_a_folder_are_refused_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="a pipeline's name has"):
        Log(LocalFiles(str(tmp_path)), "../nightly")
    (tmp_path / "curation" / "nightly" / "00000001.json").mkdir(parents=True)
    with pytest.raises(Unreachable, match="attempts to write it met another writer"):
        Log(LocalFiles(str(tmp_path)), "nightly").append(rename("a"))
