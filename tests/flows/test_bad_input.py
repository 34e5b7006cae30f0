"""The command on a folder with one file of every bad kind, and on stores and sources that fail."""

import json
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.dataset as ds
import pytest

from flows.cli import main
from gsec_core.stages import encode
from gsec_core.stages.base import Context
from gsec_core.store import Store
from tasks.slices import run_slice

from ..bad_files import OK, TWINS, Outcome, write_bad_files, write_odd_files
from ..command import SMALL, asking, gsec_here, last_json
from ..disks import as_anyone, counted_disk
from ..pictures import write_pictures

GOOD = 60


class Place(NamedTuple):
    """A folder of good, odd and bad files, clustered once."""

    folder: Path
    store: Path
    expected: dict[str, Outcome]
    """URI -> expected outcome, for every file."""
    result: dict[str, Any]
    stderr: str

    def command(self, *more: str) -> list[str | Path]:
        settings = ["encode.batch_size=32", "ingest.shard_rows=40", "baseline.n_init=2", "gsec.ensemble_size=4", "gsec.max_steps=20", "train.n_members=10"]
        return ["run", self.folder, "-k", "5", "--store", self.store, "--json", *(part for setting in settings for part in ("--set", setting)), *more]

    def embeddings(self) -> list[dict[str, Any]]:
        run = Store.open(str(self.store)).run(self.result["run_id"])
        rows: list[dict[str, Any]] = encode.encoded_rows(Context.of(run, run.config())).to_pylist()
        return rows

    def assignments(self) -> pa.Table:
        return ds.dataset(self.result["assignments"]).to_table()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, server: str) -> Place:
    top = tmp_path_factory.mktemp("bad")
    folder = write_pictures(top / "in", range(GOOD))
    expected = {f"{seed:03d}.jpg": OK for seed in range(GOOD)} | write_bad_files(folder) | write_odd_files(folder)
    unclustered = Place(folder, top / "store", expected, {}, "")

    def cluster() -> subprocess.CompletedProcess[str]:
        with asking(server):
            return gsec_here(*unclustered.command(), check=3)

    done = as_anyone(cluster)
    return unclustered._replace(result=last_json(done), stderr=done.stderr)


def test_every_file_has_one_row_with_its_status_and_its_reason(place: Place) -> None:
    rows = place.embeddings()
    assert {row["uri"]: Outcome(row["status"], row["reason"]) for row in rows} == place.expected
    assert len(rows) == len(place.expected)


def test_every_good_file_is_clustered_once_and_no_bad_file_is(place: Place) -> None:
    uris = place.assignments()["uri"].to_pylist()
    assert sorted(uris) == sorted(uri for uri, outcome in place.expected.items() if outcome.status == "ok")
    assert len(uris) > GOOD + 20


def test_files_with_the_same_bytes_have_a_row_each_and_are_marked_as_duplicates(place: Place) -> None:
    twins = [row for row in place.assignments().to_pylist() if row["is_duplicate"]]
    assert {row["uri"] for row in twins} == TWINS
    assert len({row["content_hash"] for row in twins}) == len({row["cluster"] for row in twins}) == 1


def test_the_counts_of_rejected_and_missing_files_add_up_and_are_printed(place: Place) -> None:
    statuses = [outcome.status for outcome in place.expected.values()]
    rejected, missing = statuses.count("rejected"), statuses.count("missing")
    assert (place.result["images"], place.result["rejected"], place.result["missing"]) == (len(statuses), rejected, missing)
    assert place.assignments().num_rows == len(statuses) - rejected - missing
    assert f"warning: {rejected} of {len(statuses)} images were rejected, more than max_rejects = 0.01 allows" in place.stderr
    assert f"{rejected} rejected, {missing} missing" in place.stderr
    assert "Traceback" not in place.stderr


def test_with_a_higher_allowed_share_of_rejects_the_same_run_succeeds(place: Place, server: str, capsys: pytest.CaptureFixture[str]) -> None:
    share = place.result["rejected"] / place.result["images"]
    assert as_anyone(lambda: code_of(server, *place.command("--set", f"max_rejects={share}"))) == 0
    said = capsys.readouterr()
    assert "nothing to do" in said.err
    assert json.loads(said.out.splitlines()[-1])["run_id"] == place.result["run_id"]


def code_of(server: str, *command: str | Path) -> object:
    """The exit code of a command in this process."""
    with asking(server), pytest.raises(SystemExit) as exit:
        main([str(part) for part in command])
    return exit.value.code


def test_a_store_that_becomes_full_ends_the_run_with_the_path_and_a_remedy(
    tmp_path: Path, server: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "disk").mkdir()
    counted_disk(tmp_path / "disk", monkeypatch).resize(80_000)
    monkeypatch.setattr(run_slice, "retry_delay_seconds", [0, 0, 0])
    source = write_pictures(tmp_path / "in", range(20))
    assert code_of(server, "run", source, "-k", "3", "--store", tmp_path / "disk" / "store", *SMALL) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith(f"error: [Errno 28] No space left on device; make room on its disk: '{tmp_path}/disk/store/")
    assert said.endswith("'. What was committed stays; a rerun continues.")
    assert len(list((tmp_path / "disk").rglob("embeddings/*/*.parquet"))) in (1, 2)


@pytest.mark.parametrize(
    ("place_of", "says"),
    [
        ("empty", "holds no image files"),
        ("full", "No space left on device"),
        ("forbidden", "Permission denied"),
        ("unreadable", "may not be read"),
    ],
)
def test_an_empty_or_unreadable_source_or_a_store_without_room_or_rights_is_refused_at_the_start(
    tmp_path: Path, place_of: str, says: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    source, store = write_pictures(tmp_path / "in", [] if place_of == "empty" else range(4)), tmp_path / "store"
    store.mkdir()
    if place_of == "full":
        counted_disk(store, monkeypatch)
    if place_of == "forbidden":
        store.chmod(0o555)
    if place_of == "unreadable":
        (source / "inner").mkdir(mode=0)
    monkeypatch.setattr("flows.commands._run_flow", lambda config, redo, of_run: pytest.fail("it started"))
    assert as_anyone(lambda: code_of("", "run", source, "-k", "2", "--store", store)) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert says in said
    assert str(source if place_of in ("empty", "unreadable") else store) in said
    assert said.count("\n") == 1
