"""A run with --redo, and the same request made again after its process was killed."""

from pathlib import Path

import pytest

from gsec_core import pipeline
from gsec_core.config import PipelineConfig
from gsec_core.results import finishing
from gsec_core.stages.base import Context
from gsec_core.stages.describe import RETRY

from .pictures import cluster, settings, write_pictures


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> PipelineConfig:
    top = tmp_path_factory.mktemp("redo")
    return settings(write_pictures(top / "in", range(20)), top / "store")


@pytest.fixture(scope="module")
def finished(config: PipelineConfig) -> Context:
    context, _, _ = cluster(config)
    finishing.finish(context)
    return context


def test_a_restarted_request_finds_the_run_of_its_redo(config: PipelineConfig, finished: Context) -> None:
    def of_request(asked_by: str) -> str:
        return pipeline.request(config, ["baseline"], asked_by=asked_by)[0].id

    def of_stage(asked_by: str, run_id: str | None) -> str:
        return pipeline.run_for_stage("encode", config, run_id, redo=True, asked_by=asked_by)[0].id

    first = of_request("one")
    assert of_request("one") == first != finished.run.id
    second = of_request("other")
    assert second not in (first, finished.run.id)
    third = of_stage("third", finished.run.id)
    assert third not in (first, second, finished.run.id)
    assert of_stage("third", finished.run.id) == third
    fourth = of_stage("fourth", None)
    assert of_stage("fourth", None) == fourth != third


def test_asking_failed_descriptions_again_is_nothing_to_do_if_none_failed(tmp_path: Path) -> None:
    config = settings(write_pictures(tmp_path / "in", range(20)), tmp_path / "store")
    context, _, _ = cluster(config)
    found = pipeline.nothing_to_do(config, [RETRY])
    assert found is not None
    assert found.id == context.run.id
    assert pipeline.nothing_to_do(config, [RETRY, "baseline"]) is None
