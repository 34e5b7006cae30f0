import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from flows.serve import explorer
from gsec_core.results import finishing
from gsec_core.stages.base import Context
from gsec_core.store import Store

from ...pictures import cluster, picture, settings, write_pictures
from .examples import HOSTILE, PER_PAGE, Shown, served


@pytest.fixture(scope="package")
def made(tmp_path_factory: pytest.TempPathFactory) -> Context:
    folder = tmp_path_factory.mktemp("explore")
    images = write_pictures(folder / "in", range(24))
    picture(99).save(images / HOSTILE)
    picture(3).save(images / "copy.jpg", quality=90)
    context, _, _ = cluster(settings(images, folder / "store", pipeline="nightly", clusters=3))
    assert finishing.finish(context)["published"]
    return context


@pytest.fixture
def shown(made: Context) -> Iterator[Shown]:
    """The store without any curation; curation made by a test is removed after it."""
    store = Store.open(made.config.store)
    before = (Path(store.url) / "published" / "nightly.json").read_bytes()
    yield Shown(store, made)
    shutil.rmtree(Path(store.url) / "curation", ignore_errors=True)
    (Path(store.url) / "published" / "nightly.json").write_bytes(before)


@pytest.fixture(autouse=True)
def _small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(explorer, "PER_PAGE", PER_PAGE)


@pytest.fixture
def client(shown: Shown) -> Iterator[TestClient]:
    with served(shown) as client:
        yield client


@pytest.fixture
def curator(shown: Shown) -> Iterator[TestClient]:
    with served(shown, curate=True) as client:
        yield client
