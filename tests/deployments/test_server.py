"""The patches of Prefect's server. That the server works is proved by the tests of the stack."""

import asyncio
import inspect
import sqlite3
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from prefect.server.database import provide_database_interface
from prefect.server.events import triggers
from prefect.server.events.models.automations import create_automation
from prefect.server.events.schemas.automations import Automation, EventTrigger, Posture
from prefect.server.events.services.triggers import ReactiveTriggers
from prefect.settings import PREFECT_API_DATABASE_CONNECTION_URL, temporary_settings
from prefect.types._datetime import now
from sqlalchemy import select, text

from deployments.server import automations_session, restart_periods


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


def test_at_a_start_automations_wait_their_whole_time_for_the_next_event(tmp_path: Path) -> None:
    """The server was down for an hour. A period in which the event has come is left alone."""

    async def ends_after_start() -> dict[str, datetime]:
        interface = provide_database_interface()
        await interface.create_db()
        automation = Automation(
            name="crashed", trigger=EventTrigger(posture=Posture.Proactive, after={"alive"}, expect={"alive"}, within=timedelta(seconds=90)), actions=[]
        )
        began = now("UTC") - timedelta(hours=1)
        async with automations_session(begin_transaction=True) as session:
            created = await create_automation(session, automation)
            for key, count in [("silent", 0), ("alive", 1)]:
                bucket = {"bucketing_key": [key], "count": count, "start": began, "end": began + timedelta(seconds=90)}
                session.add(interface.AutomationBucket(automation_id=created.id, trigger_id=created.trigger.id, last_operation="", **bucket))
        await restart_periods()
        async with automations_session() as session:
            found = await session.scalars(select(interface.AutomationBucket))
            return {bucket.bucketing_key[0]: bucket.end for bucket in found}

    with temporary_settings({PREFECT_API_DATABASE_CONNECTION_URL: f"sqlite+aiosqlite:///{tmp_path / 'prefect.db'}"}):
        began = now("UTC")
        ends = asyncio.run(ends_after_start())
    assert began <= ends["silent"] - timedelta(seconds=90) <= now("UTC")
    assert ends["alive"] < began - timedelta(seconds=3000)


def test_prefect_still_has_the_code_that_is_patched() -> None:
    assert "automations_session" in inspect.unwrap(triggers.reactive_evaluation).__code__.co_names
    assert inspect.signature(triggers.automations_session).parameters.keys() >= {"begin_transaction"}
    assert {"triggers", "consumer"} <= set(ReactiveTriggers.start.__code__.co_names)
