import shutil
from pathlib import Path

import pytest

from gsec_core.stages import describe, encode

from ...pictures import settings, write_pictures
from ..steps import run_stages
from .examples import IMAGES, Fake, Install


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Install:
    """A function that makes every run use the given captioner."""

    def installed(captioner: Fake) -> Fake:
        monkeypatch.setattr(describe, "loaded_captioner", lambda config: captioner)
        monkeypatch.setattr(describe, "captioner_identity", lambda config: {"name": "fake"})
        monkeypatch.setattr(describe, "captioner_model", lambda config: "fake")
        return captioner

    return installed


@pytest.fixture
def captioner(install: Install) -> Fake:
    return install(Fake())


@pytest.fixture(scope="package")
def encoded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a source in ``in``, encoded in ``store``."""
    directory = tmp_path_factory.mktemp("encoded")
    run_stages(settings(write_pictures(directory / "in", range(IMAGES)), directory / "store", corpus="discs"), encode.STAGE)
    return directory


@pytest.fixture
def place(encoded: Path, tmp_path: Path) -> Path:
    """The test's own copy of the store and its source. Nothing is encoded again, as the source's files keep their times."""
    shutil.copytree(encoded / "store", tmp_path / "store")
    shutil.copytree(encoded / "in", tmp_path / "in")
    (tmp_path / "store" / "discs" / "corpus.json").unlink()  # the corpus is bound to the path of its source, which is another one now
    return tmp_path
