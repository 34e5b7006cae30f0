"""Fixtures with stores of every kind: in a folder, in memory, and on S3."""

from pathlib import Path
from uuid import uuid4

import pytest

from gsec_core.store import Store
from gsec_core.store.files import Files, open_files


@pytest.fixture(params=["folder", "memory", "s3"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The address of a store, for each kind of filesystem."""
    match request.param:
        case "folder":
            return str(tmp_path / "store")
        case "memory":
            return f"memory://{uuid4().hex}/store"
        case _:
            return f"{request.getfixturevalue('bucket')}/store"


@pytest.fixture
def any_files(url: str) -> Files:
    """A `Files` object for each kind of filesystem."""
    return open_files(url)


@pytest.fixture
def any_store(url: str) -> Store:
    """An empty store for each kind of filesystem."""
    return Store.open(url)
