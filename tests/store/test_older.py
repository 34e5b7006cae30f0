"""A store written by version 0.1, before methods had their own sections of settings: its runs are read and found again."""

import tarfile
from pathlib import Path

import pytest

from gsec_core import pipeline
from gsec_core.config import PipelineConfig
from gsec_core.results import finishing, publishing, status
from gsec_core.stages.base import Context, run_stage
from gsec_core.store import Store

from ..command import gsec_here


def older_run(folder: Path) -> Context:
    """The one run of the older store, which is unpacked in a folder."""
    with tarfile.open(Path(__file__).parent / "store-0.1.tgz") as archive:
        archive.extractall(folder, filter="data")
    store = Store.open(str(folder / "store"))
    [run] = store.runs()
    return Context.of(run, run.config())


@pytest.fixture
def older(tmp_path: Path) -> Context:
    return older_run(tmp_path)


def test_settings_of_an_older_run_keep_their_values_under_their_new_names(older: Context) -> None:
    request = older.run.request()["config"]
    assert (request["preset"], request["train"]["ensemble_size"]) == ("default", 32)
    assert older.config.of_method.model_dump() == {"preset": "default", "ensemble_size": 32, "max_steps": None, "tol": None}
    assert (older.config.method, older.config.text_source) == ("gsec", "captions")


def test_the_same_request_finds_the_older_run_with_all_its_tables(older: Context) -> None:
    again = pipeline.run_of(Store(older.run.files), older.corpus, PipelineConfig(clusters=3, store=older.run.files.url), older.generation.number)
    assert again.id == older.run.id
    for name in older.run.request()["stages"]:
        recorded = older.run.stage(name)
        assert recorded is not None
        assert pipeline.stage(name).fingerprint(older) == recorded["fingerprint"], name
        assert run_stage(older, pipeline.stage(name)) == {}, "nothing must be made again"


def test_an_older_run_can_be_summarised_and_is_still_published(older: Context) -> None:
    said = finishing.finish(older)
    assert (said["images"], said["clusters"], said["published"]) == (12, 3, True)
    assert sorted(row["size"] for row in said["cluster_rows"]) == [4, 4, 4]
    assert [row["key"] for row in said["cluster_rows"]] == [0, 1, 2]
    published = publishing.published(Store(older.run.files), older.config, older.corpus)
    assert published is not None
    assert published.run_id == older.run.id
    assert not status.verify(Store(older.run.files))


def test_status_publish_report_and_export_work_on_an_older_store(older: Context, tmp_path: Path) -> None:
    store = ["--store", older.run.files.url]
    gsec_here("status", *store)
    gsec_here("publish", "--run", older.run.id, *store)
    gsec_here("report", "--to", tmp_path / "report", *store)
    gsec_here("export", "--to", tmp_path / "export", *store)
    assert "binder" in (tmp_path / "export" / "clusters.csv").read_text()
