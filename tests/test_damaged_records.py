"""Damaged records of runs and publications: what each command says about them, and that no other record is affected."""

import shutil
from pathlib import Path

import pytest

from gsec_core.errors import BadRecord
from gsec_core.stages.base import Context
from gsec_core.store import Publication, Run, Store

from .command import gsec_here, last_json
from .pictures import settings, write_pictures
from .stages.steps import make_up

TORN = [b"", b'{"corpus": ', b"[]", b"null", bytes(100), b"\xff\x00"]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Where the store of a few runs will be; the folder "in" beside it has images."""
    write_pictures(tmp_path / "in", range(10))
    return tmp_path / "store"


def made(place: Path, clusters: int) -> Context:
    return make_up(settings(place.parent / "in", place, clusters=clusters))


@pytest.mark.parametrize("torn", TORN)
@pytest.mark.parametrize("record", ["request", "stage-encode"])
def test_the_error_of_a_damaged_run_record_names_the_file_and_a_remedy_that_works(place: Path, record: str, torn: bytes) -> None:
    run = made(place, 2).run
    path = place / "runs" / run.id / f"{record}.json"
    path.write_bytes(torn)
    with pytest.raises(BadRecord) as raised:
        Run(run.files, run.id).is_finished()  # as a new process finds it
    said = str(raised.value)
    assert said.startswith(f"{path}: it is not what gsec writes (")
    if record == "request":
        assert f"Remove the directory {path.parent}: " in said
        shutil.rmtree(path.parent)
    else:
        assert "Remove this file: " in said
        path.unlink()
    again = made(place, 2).run
    assert (again.id, again.is_finished()) == (run.id, True)


@pytest.mark.parametrize("record", ["request", "stage-encode", "attempt"])
def test_status_lists_a_damaged_run_beside_the_others_and_prune_refuses(place: Path, record: str) -> None:
    damaged, other, newest = (made(place, clusters).run for clusters in (2, 3, 4))
    with damaged.attempt({}):
        pass
    [path] = (place / "runs" / damaged.id).glob(f"{record}*start.json" if record == "attempt" else f"{record}.json")
    path.write_bytes(b"")
    store = ["--store", str(place)]
    rows = {row["run"]: row for row in last_json(gsec_here("status", *store, "--json"))["runs"]}
    assert {id: row["state"] for id, row in rows.items()} == {damaged.id: "damaged", other.id: "finished", newest.id: "finished"}
    assert str(path) in rows[damaged.id]["error"]
    shown = gsec_here("status", *store).stdout
    assert f"run {damaged.id}  damaged\n    {path}: it is not what gsec writes" in shown
    assert f"run {newest.id}  finished" in shown
    if record == "attempt":
        return  # prune and export do not need the records of attempts
    before = set(place.rglob("*"))
    for command in (["prune", "--keep-runs", "1"], *([["export", "--to", place.parent / "out"]] if record == "request" else [])):
        error = gsec_here(*command, *store, check=1).stderr
        assert error.startswith(f"error: {path}: it is not what gsec writes")
        assert "Traceback" not in error
    assert set(place.rglob("*")) == before


@pytest.mark.parametrize("torn", [*TORN, b'{"number": 2}', b'{"another": "shape"}'])
def test_the_error_of_a_damaged_publication_names_it_and_once_removed_the_previous_counts(place: Path, torn: bytes) -> None:
    context = made(place, 2)
    publications = Store(context.run.files).publications
    first, second = (Publication("nightly", number, context.run.id, context.corpus.name, 1, "a" * 32, 2, None, None, "2026-01-01") for number in (1, 2))
    assert publications.add(first)
    assert publications.add(second)
    path = place / "published" / "nightly" / "00000002.json"
    path.write_bytes(torn)
    with pytest.raises(BadRecord) as raised:
        publications.newest("nightly")
    assert str(raised.value).startswith(f"{path}: it is not what gsec writes (")
    assert "Remove this file: what was published before counts then" in str(raised.value)
    path.unlink()
    assert publications.newest("nightly") == first


def test_status_shows_a_damaged_publication_and_prune_and_run_refuse(place: Path) -> None:
    context = made(place, 2)
    publications = Store(context.run.files).publications
    for name in ("nightly", "other"):
        assert publications.add(Publication(name, 1, context.run.id, context.corpus.name, 1, "a" * 32, 2, None, None, "2026-01-01"))
    path = place / "published" / "nightly" / "00000001.json"
    path.write_bytes(b"")
    store = ["--store", str(place)]
    said = last_json(gsec_here("status", *store, "--json"))
    assert [(row["pipeline"], row["run_id"]) for row in said["published"]] == [("nightly", "damaged"), ("other", context.run.id)]
    assert [row["state"] for row in said["runs"]] == ["finished"]
    shown = gsec_here("status", *store).stdout
    assert f"    {path}: it is not what gsec writes" in shown
    assert f"run {context.run.id}  finished" in shown
    for command in (["prune"], ["run", place.parent / "in", "-k", "2", "--pipeline", "nightly"]):
        error = gsec_here(*command, *store, check=1).stderr
        assert error.startswith(f"error: {path}: it is not what gsec writes")
        assert "Traceback" not in error


def images(context: Context) -> set[str]:
    return set(context.corpus.live_rows(context.generation)["uri"].to_pylist())


@pytest.mark.parametrize("torn", [*TORN, b'{"another": "shape"}', b'{"shards": [{"name": "a"}]}'])
@pytest.mark.parametrize("number", [1, 2])
def test_the_error_of_a_damaged_generation_names_the_file_and_a_remedy_that_works(place: Path, number: int, torn: bytes) -> None:
    first = made(place, 2)
    if number == 2:
        write_pictures(place.parent / "in", range(10, 12))
    context = made(place, 2)
    generations = place / context.corpus.name / "generations"
    path = generations / f"{number:06d}.json"
    path.write_bytes(torn)
    store = ["--store", str(place)]
    said = last_json(gsec_here("status", *store, "--json"))
    assert [(row["generation"], row["images"]) for row in said["corpora"]] == [(None, None)]
    assert [row["state"] for row in said["runs"]].count("damaged") == 1
    shown = gsec_here("status", *store).stdout
    assert shown.count(f"    {path}: it is not what gsec writes (") == 2
    error = gsec_here("run", place.parent / "in", "-k", "2", *store, check=1).stderr
    assert error.startswith(f"error: {path}: it is not what gsec writes (")
    assert 'Replace it by a copy of the file before it, or by {"shards": []} if there is none: ' in error
    if number == 1:
        path.write_text('{"shards": []}')
    else:
        shutil.copy(generations / "000001.json", path)
    again = made(place, 2)
    assert again.generation.number == number + 1
    assert again.run.id not in {first.run.id, context.run.id}
    assert images(again) == images(first) | images(context)


@pytest.mark.parametrize("torn", TORN)
def test_the_error_of_a_damaged_corpus_record_names_the_file_and_a_remedy_that_works(place: Path, torn: bytes) -> None:
    context = made(place, 2)
    path = place / context.corpus.name / "corpus.json"
    before = path.read_bytes()
    path.write_bytes(torn)
    store = ["--store", str(place)]
    shown = gsec_here("status", *store).stdout
    assert f"    {path}: it is not what gsec writes (" in shown
    assert f"run {context.run.id}  finished" in shown
    error = gsec_here("run", place.parent / "in", "-k", "2", *store, check=1).stderr
    assert error.startswith(f"error: {path}: it is not what gsec writes (")
    assert "Remove this file: " in error
    path.unlink()
    assert made(place, 2).run.id == context.run.id
    assert path.read_bytes() == before
