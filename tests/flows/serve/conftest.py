import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from gsec_core import pipeline
from gsec_core.results import finishing
from gsec_core.stages.base import Context
from gsec_core.store import Store

from ...pictures import settings, write_pictures
from ...stages.steps import run_stages
from .examples import HOSTILE, Shown, served, worked_on


@pytest.fixture(scope="package")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Shown:
    folder = tmp_path_factory.mktemp("serve")
    images = write_pictures(folder / "in", range(16))
    (images / "bad.jpg").write_text("no image")
    config = settings(images, folder / "store", pipeline="nightly", max_rejects=1)
    run, _ = pipeline.request(config)
    finished = worked_on(Context.of(run, config), *run.request()["stages"])
    assert finishing.finish(finished)["published"]
    unfinished = worked_on(run_stages(config.model_copy(update={"clusters": 3})), "encode", "baseline")
    failed = run_stages(config.model_copy(update={"clusters": 4}))
    with pytest.raises(OSError, match="No space"), failed.run.attempt({"stage": "train"}):
        raise OSError(f"No space left on <b>device</b> {HOSTILE}")
    new = pipeline.assignment_config(finished.run, settings(write_pictures(folder / "new", range(20, 24)), folder / "store"))
    run, _ = pipeline.request(new, of_run=finished.run.id)
    assigned = worked_on(Context.of(run, new), *run.request()["stages"])
    finishing.finish(assigned)
    counting = run_stages(config.model_copy(update={"clusters": "auto"}))
    return Shown(Store.open(config.store), finished, unfinished, failed, assigned, counting)


@pytest.fixture
def client(shown: Shown) -> Iterator[TestClient]:
    with served(shown.store) as client:
        yield client


@pytest.fixture
def copied(shown: Shown, tmp_path: Path) -> Path:
    """A copy of the store, which a test can damage."""
    return Path(shutil.copytree(shown.folder, tmp_path / "store"))
