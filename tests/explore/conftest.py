import shutil
from pathlib import Path

import pytest

from gsec_core.explore import Collection
from gsec_core.store import Run, Store

from .runs import Nights, two_nights


@pytest.fixture(scope="package")
def nights(tmp_path_factory: pytest.TempPathFactory) -> Nights:
    return two_nights(tmp_path_factory.mktemp("explore"))


@pytest.fixture(scope="package")
def first(nights: Nights) -> Collection:
    return Collection(nights.first.run, nights.config)


@pytest.fixture(scope="package")
def second(nights: Nights) -> Collection:
    """A collection on the second run, which keeps the model of the first."""
    return Collection(nights.second.run, nights.config)


@pytest.fixture
def copied(nights: Nights, tmp_path: Path) -> Collection:
    """A collection on the second run in a copy of the store, which a test can damage or curate."""
    shutil.copytree(nights.store, tmp_path / "store")
    return Collection(Run(Store.open(str(tmp_path / "store")).files, nights.second.run.id), nights.config)
