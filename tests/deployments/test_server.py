"""The patch of Prefect's server. That the server works is proved by the tests of the stack."""

import asyncio
import inspect
import sqlite3
from pathlib import Path

import pytest
from prefect.server.events import triggers
from prefect.settings import PREFECT_API_DATABASE_CONNECTION_URL, temporary_settings
from sqlalchemy import text

from deployments.server import automations_session


@pytest.mark.parametrize(("begin_transaction", "locked"), [(True, True), (False, False)])
def test_a_transaction_of_an_automation_takes_the_write_lock_before_it_reads(tmp_path: Path, begin_transaction: bool, locked: bool) -> None:
    path = tmp_path / "prefect.db"

    async def others_may_write() -> bool:
        async with automations_session(begin_transaction) as session:
            await session.execute(text("SELECT 1"))
            other = sqlite3.connect(path, timeout=0, isolation_level=None)
            try:
                other.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError as error:
                return error.sqlite_errorname != "SQLITE_BUSY"
            finally:
                other.close()
        return True

    with temporary_settings({PREFECT_API_DATABASE_CONNECTION_URL: f"sqlite+aiosqlite:///{path}"}):
        assert asyncio.run(others_may_write()) is not locked


def test_prefect_still_has_the_code_that_is_patched() -> None:
    assert "automations_session" in inspect.unwrap(triggers.reactive_evaluation).__code__.co_names
    assert inspect.signature(triggers.automations_session).parameters.keys() >= {"begin_transaction"}
