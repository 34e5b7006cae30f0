from collections.abc import Iterator

import pytest

from gsec_core.captioners import pool

from .server import Server


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        yield running


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shortens the waits between two attempts."""
    monkeypatch.setattr(pool, "FIRST_WAIT", 0.01)
    monkeypatch.setattr(pool, "LONGEST_WAIT", 0.05)
