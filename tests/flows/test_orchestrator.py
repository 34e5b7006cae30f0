"""Prefect's temporary server: how commands start it."""

import fcntl
from pathlib import Path

import pytest
from prefect.settings import PREFECT_HOME, temporary_settings

from flows.orchestrator import _alone


def test_one_command_at_a_time_starts_a_server_on_a_prefect_home(tmp_path: Path) -> None:
    home = tmp_path / "home"
    with temporary_settings({PREFECT_HOME: home}), _alone(), (home / "gsec.lock").open("w") as other, pytest.raises(BlockingIOError):
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    with (home / "gsec.lock").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_a_home_without_a_place_for_the_lock_is_left_to_the_server(tmp_path: Path) -> None:
    (tmp_path / "home").write_text("a file")
    with temporary_settings({PREFECT_HOME: tmp_path / "home"}), _alone():
        assert (tmp_path / "home").read_text() == "a file"
